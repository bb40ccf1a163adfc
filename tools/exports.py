"""Every case of models/, small, through both exporters of torch, with and without dynamic sizes,
simplified by onnxsim and not, then pruned from the file: does it keep the channels that it keeps
from PyTorch?

    python tools/exports.py               all cases; rows are kept in tools/exports.json,
                                          ``--again`` starts over
    python tools/exports.py --case llama  one case, told in full

Exporters rename, transpose, stack and reorder weights, so what was kept is compared by value: the
numbers in matrices and kernels that are left in the cut file must be those that are left of the
PyTorch model, no more and no less; or else the plan from PyTorch, replayed on the file, must be the
file's own choice (an exporter that computes a position table ahead keeps only some of its rows),
and names the groups that differ where it is not. Exporters and onnxsim fold batch norms into the
convolution before, and compute ahead what derives from weights alone (weight norm, tables of
positions), which changes what magnitude sees: there the PyTorch graph is pruned with the same
folded by irprune's own passes. Each file is proven as well (silenced original against cut file, on
onnxruntime)."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from tables import RESULTS, write_table  # noqa: E402

if TYPE_CHECKING:
    import irprune
    from irprune.choice.plan import Plan
    from irprune.ir.graph import Graph

Row = dict[str, Any]
VARIANTS = ("TorchScript", "TorchScript, dynamic", "dynamo", "dynamo, dynamic")
RATIO = 0.5
# As the table says it
FOLDED = {
    "": "same",
    "batch norms folded": "same, bn",
    "weights computed ahead": "same, ahead",
}


# -- one case, in a process of its own -------------------------------------------------------------


def measure(name: str) -> Iterator[Row]:
    """A row for each way to write the case as a file."""
    import models

    case = models.get(name)
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            if "dynamic" in variant and not case.dynamic:
                continue
            path = Path(folder) / "model.onnx"
            row: Row = {"case": name, "export": variant}
            try:
                model, args, kwargs = built(case)
                with hushed():
                    write(model, args, kwargs, path, variant, case.dynamic)
            except Exception as refused:  # exporters fail in many ways of their own
                text = str(refused).strip().splitlines() or [""]
                yield row | {"refused": f"{type(refused).__name__}: {text[0][:120]}"}
                continue
            yield row | {"simplified": False} | compared(case, path)
            try:
                with hushed():
                    simplify(path)
            except Exception as refused:  # and so does the simplifier
                text = str(refused).strip().splitlines() or [""]
                yield row | {
                    "simplified": True,
                    "refused": f"onnxsim: {type(refused).__name__}: {text[0][:120]}",
                }
                continue
            yield row | {"simplified": True} | compared(case, path)


def built(case: Any) -> tuple[Any, Any, Any]:
    """The small model in eval mode and its call, the same every time."""
    import torch

    torch.manual_seed(0)
    model = case.build(small=True).eval()
    return model, *case.example_inputs(small=True)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Exporters talk a lot."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def write(model: Any, args: Any, kwargs: Any, path: Path, variant: str, dynamic: Any) -> None:
    """Export as ``variant`` says; ``dynamic`` is the case's ``dynamic_shapes``, which the older
    exporter takes as ``dynamic_axes``."""
    import torch

    if variant.startswith("dynamo"):
        given = {"dynamic_shapes": dynamic} if "dynamic" in variant else {}
        torch.onnx.export(
            model,
            args,
            str(path),
            kwargs=kwargs,
            dynamo=True,
            external_data=False,
            verbose=False,
            **given,
        )
        return
    given = {}
    if "dynamic" in variant:
        given = {
            "input_names": list(dynamic),
            "dynamic_axes": {
                name: {axis: dim.__name__ for axis, dim in sizes.items()}
                for name, sizes in dynamic.items()
                if isinstance(sizes, dict)
            },
        }
    torch.onnx.export(
        model,
        (*args, kwargs) if kwargs else args,
        str(path),
        dynamo=False,
        opset_version=17,
        **given,
    )


def simplify(path: Path) -> None:
    """Let onnxsim simplify the file in place."""
    import onnx
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(path))
    onnx.save(model, path)


def compared(case: Any, path: Path) -> Row:
    """How the file's choice relates to that from PyTorch, what is left, and the proof's error."""
    import irprune
    from irprune.errors import CheckFailed, IrpruneError

    try:
        pruned = irprune.prune(path, ratio=RATIO)
    except (IrpruneError, CheckFailed) as failed:
        return {"failed": str(failed)[:200]}
    row: Row = {
        "left": pruned.report.params.left,
        "error": pruned.report.proof.max_error if pruned.report.proof else None,
    }
    told = []
    for folded in FOLDED:
        told.append(differing(pruned.graph, from_torch(case, folded).plan))
        if not told[-1] or same_values(pruned, from_torch(case, folded), 2e-6 if folded else 0.0):
            return row | {"same": ", ".join(("yes", *([folded] if folded else [])))}
    return row | {"same": "no", "differs": min(told, key=len)}


@dataclass(frozen=True)
class Reference:
    """What irprune makes of the PyTorch model: the graph with its choice, the cut one, and the
    plan."""

    graph: Graph
    cut: Graph
    plan: Plan


@functools.cache
def from_torch(case: Any, folded: str) -> Reference:
    """The reference for a case, folded as one of ``FOLDED`` says; with the weights, the batch norms
    are folded too."""
    import irprune
    from irprune.choice.plan import Plan
    from irprune.driver.pipelines import cut_graph
    from irprune.passes.choose import Choose
    from irprune.passes.dead_code import DeadCode
    from irprune.passes.fold_batch_norm import FoldBatchNorm
    from irprune.passes.infer_axes import InferAxes
    from irprune.passes.score import Score

    model, args, kwargs = built(case)
    graph = irprune.capture(model, args, kwargs)
    if folded:
        FoldBatchNorm().run(graph)
    if folded == "weights computed ahead":
        compute_ahead(graph)
    for step in (DeadCode(), InferAxes(), Score(), Choose(RATIO)):
        step.run(graph)
    return Reference(graph, cut_graph(graph), Plan.from_graph(graph))


def compute_ahead(graph: Graph) -> None:
    """Compute now what derives from weights alone; it counts as learned, as it does in a file."""
    from irprune.passes.fold_constants import FoldConstants

    learned = [w for w in graph.weights.values() if w.kind == "parameter"]
    for w in learned:
        w.kind = "constant"
    before = set(graph.weights)
    FoldConstants().run(graph)
    for w in (*learned, *(w for name, w in graph.weights.items() if name not in before)):
        if w.dtype == "f32" and w.rank:
            w.kind, w.trainable = "parameter", True


def same_values(ours: irprune.Pruned, theirs: Reference, rounding: float) -> bool:
    """Whether the cut file holds those numbers of the PyTorch model's matrices and kernels that its
    own cut holds, and no others.

    Numbers that differ by ``rounding``, relatively, are the same. What the file holds beside
    (constants, stacked biases) agrees with some of the numbers that were dropped by chance: up to a
    tenth is forgiven. What must be there has to be there without exception."""
    import numpy as np

    whole, left, found = (numbers(g) for g in (theirs.graph, theirs.cut, ours.cut))

    def near(a: Any, b: Any) -> Any:
        at = np.clip(np.searchsorted(b, a), 1, len(b) - 1)
        return (
            np.minimum(np.abs(b[at] - a), np.abs(b[at - 1] - a))
            <= rounding * np.abs(a) + rounding * 1e-3
        )

    dropped = np.setdiff1d(whole, left)
    return bool(near(left, found).all()) and near(dropped, found).sum() <= max(1, len(dropped) / 10)


def numbers(graph: Graph) -> Any:
    """The values in the graph's matrices and kernels, each once, sorted."""
    import numpy as np

    from irprune.ops.arrays import as_tensor

    found = [
        as_tensor(w.load()).detach().double().numpy().reshape(-1)
        for w in graph.weights.values()
        if w.dtype == "f32" and sum(s != 1 for s in w.shape) > 1
    ]
    return np.unique(np.concatenate(found)) if found else np.zeros(0)


def differing(graph: Graph, plan: Plan) -> list[str]:
    """The groups of the file whose choice is not the plan's; where the plan cannot be replayed,
    why."""
    import numpy as np

    from irprune.choice.replay import replay
    from irprune.errors import IrpruneError
    from irprune.ir.group import groups_of

    try:
        theirs = replay(plan, graph)
    except IrpruneError as refused:
        return [f"cannot be replayed: {refused}"[:200]]
    ours = graph.kept
    assert ours is not None
    out = []
    for group in groups_of(graph):
        a, b = ours.choice.get(group.axis), theirs.choice.get(group.axis)
        whole = np.arange(group.size)
        a, b = whole if a is None else a, whole if b is None else b
        if not np.array_equal(a, b):
            out.append(f"{group.name}: {np.shape(a)[-1]} and {np.shape(b)[-1]} of {group.size}")
    return out


# -- the table -------------------------------------------------------------------------------------

REASONS = {  # why a file's choice is another one, for the cases where it is known
    "gnn": "the file expands the indices once for the two attention layers, which have as many heads, and so couples their heads",
    "gru_speech": "the exporter gives the layers one zero state, which couples their widths",
    "lstm_tagger": "in the file each layer has a width of its own; nn.LSTM has one for all",
    "wavenet": "onnxsim multiplies the scale of a residual into the kernel that reads it: the file holds other numbers",
}


def table(rows: list[Row]) -> str:
    """A line per case: what each way of writing it gives, then the reasons."""
    head = ("case", *(f"{v}{s}" for v in VARIANTS for s in ("", ", simplified")), "left", "error")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    notes: list[str] = []
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    for name, many in cases.items():
        cells = []
        for variant in VARIANTS:
            for simplified in (False, True):
                found = next(
                    (
                        r
                        for r in many
                        if r["export"] == variant and r.get("simplified", False) == simplified
                    ),
                    None,
                )
                cells.append(_cell(found, notes))
        done = [r for r in many if "left" in r]
        left = (
            " to ".join(dict.fromkeys(f"{f(r['left'] for r in done):.0%}" for f in (min, max)))
            if done
            else ""
        )
        error = f"{max(r['error'] for r in done):.0e}" if done else ""
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {left} | {error} |")
    same = sum(r.get("same", "").startswith("yes") for r in rows)
    files = sum("left" in r or "failed" in r for r in rows)
    first = (
        f"{len(cases)} cases, {files} files; {same} of them keep the channels that irprune keeps from PyTorch (bn: with its batch "
        "norms folded, ahead: with what derives from weights alone computed, as in the file).\n"
    )
    return "\n".join([first, *lines, "", *(f"{i}. {n}" for i, n in enumerate(notes, 1))]) + "\n"


def _cell(row: Row | None, notes: list[str]) -> str:
    if row is None:
        return ""
    if row.get("same", "").startswith("yes"):
        return FOLDED[row["same"].removeprefix("yes").removeprefix(", ")]
    if "refused" in row:
        text, word = row["refused"], "-"
    elif "failed" in row:
        text, word = row["failed"], "FAILS"
    else:
        text, word = REASONS.get(row["case"]) or "; ".join(row["differs"][:3]), "differs"
    text = re.sub(r"\x1b\[[\d;]*m", "", text.replace("|", "/"))
    if text not in notes:
        notes.append(text)
    return f"{word} ({notes.index(text) + 1})"


@click.command(help=__doc__)
@click.option("--case", "cases", multiple=True, help="only these cases, told in full")
@click.option("--again", is_flag=True, help="measure anew what is in the store")
@click.option("--limit", default=600.0, help="seconds for one case")
@click.option(
    "--store",
    default=HERE / "exports.json",
    type=click.Path(path_type=Path),
    help="where rows are kept",
)
@click.option("--worker", hidden=True)
def main(
    cases: tuple[str, ...], again: bool, limit: float, store: Path, worker: str | None
) -> None:
    if worker:
        for row in measure(worker):
            print(json.dumps(row), flush=True)
        return
    import models

    known: dict[str, list[Row]] = (
        {} if again or not store.exists() else json.loads(store.read_text())
    )
    for name in cases or models.names():
        if name in known and not cases:
            continue
        command = [sys.executable, "-W", "ignore", __file__, "--worker", name]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, check=False
            )
            lines, error = (
                done.stdout,
                (done.stderr.strip().splitlines() or ["?"])[-1] if done.returncode else "",
            )
        except subprocess.TimeoutExpired as slow:
            lines, error = (slow.stdout or b"").decode(), f"no end within {limit:.0f} s"
        known[name] = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
        if error:
            known[name].append({"case": name, "export": "?", "failed": error[:200]})
        store.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        for row in known[name]:
            print(
                json.dumps(row)
                if cases
                else f"{name}: {row['export']} {row.get('same', row.get('failed', 'refused'))}"
            )
    rows = [row for name in models.names() for row in known.get(name, [])]
    write_table(RESULTS / "exports.md", table(rows))


if __name__ == "__main__":
    main()
