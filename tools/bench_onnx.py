"""irprune beside onnxsim's pruner, on the same ONNX files at ratio 0.5: each file and each pruner
in a process of its own.

    python tools/bench.py --against onnxsim

Parameters are counted in the files that come out; weights with a side that must stay (a classifier
on a frozen output, a vocabulary) are counted apart. ``heads`` is how many attention heads the
captured model has before and after. The error is that of the proof: the pruned file against the
silenced original; onnxsim does not say what it dropped, so there is none for it, only whether
onnxruntime loads and runs the file. Seconds include imports, reading and writing the file, without
the proof. What must hold: at most 35 % left of what may shrink, in no more seconds than onnxsim
takes plus one. Rows are kept in tools/onnxsim.json as they come; ``--again`` starts over. RegNetY
comes from torchvision, the others from models/."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

__all__ = ["CASES", "HEAD", "apart", "beside_onnxsim", "held", "holds", "line"]

CASES = (
    "resnet50",
    "densenet121",
    "shufflenetv2",
    "regnet_y_400mf",
    "efficientnet",
    "vit_b16",
    "swin_t",
    "gpt2",
    "unet",
    "lstm_tagger",
    "llama",
)
HEAD = (
    "file",
    "left",
    "of that which must stay",
    "left by onnxsim",
    "MACs",
    "MACs by onnxsim",
    "heads",
    "heads by onnxsim",
    "runs",
    "error",
    "s",
    "s by onnxsim",
    "holds",
)
MOST = 0.35  # of what may shrink


def export(case: str, path: Path) -> None:
    """Write the case as the exporter of torch does."""
    import torch

    import models
    from irprune.api.load import load_model

    torch.manual_seed(0)
    if case in models.names():
        found = models.get(case)
        model = found.build().eval()
        args, kwargs = found.example_inputs()
    else:
        loaded = load_model(f"torchvision:{case}")
        model, args, kwargs = loaded.model.eval(), loaded.args, loaded.kwargs
    torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False).save(
        str(path), external_data=False
    )


def ours(source: Path, out: Path) -> dict[str, Any]:
    """Prune by irprune; the time is that of the call with its imports."""
    began = time.perf_counter()
    import irprune

    pruned = irprune.prune(str(source), ratio=0.5, proof=False, calibration=False)
    pruned.onnx(str(out))
    return {"seconds": time.perf_counter() - began}


def proven(source: Path, out: Path) -> dict[str, Any]:
    """The same with the proof, not timed: the error of the pruned file against the silenced
    original."""
    import irprune

    del out
    return {
        "error": irprune.prune(
            str(source), ratio=0.5, proof=True, calibration=False
        ).report.proof.max_error
    }


def theirs(source: Path, out: Path) -> dict[str, Any]:
    """Prune by onnxsim: channels, then attention heads, as its own documentation chains them."""
    began = time.perf_counter()
    import onnx
    from onnxsim import pruning

    model = pruning.apply_structured_pruning(str(source), 0.5)
    model = pruning.apply_attention_head_pruning(model, 0.5)
    onnx.save(model, str(out))
    return {"seconds": time.perf_counter() - began}


def counted(source: Path, out: Path) -> dict[str, Any]:
    """Parameters, MACs and heads of a file, and whether onnxruntime runs it."""
    from irprune.analysis.cost import cost
    from irprune.api.calls import capture
    from irprune.driver.pipelines import analyse
    from irprune.run.inputs import random_inputs
    from irprune.validate.onnx_run import run_model

    del out
    graph = analyse(capture(str(source)))
    spent = cost(graph)
    run_model(str(source), random_inputs(graph))
    fixed = sum(math.prod(w.shape) for w in held(graph))
    return {
        "params": spent.params,
        "macs": spent.macs,
        "held": fixed,
        "heads": heads(graph),
        "runs": True,
    }


def held(graph: Any) -> list[Any]:
    """Weights with a side that must stay: that of an output, or of what is looked up by index."""
    from irprune.ir.axis import leaves

    def stays(weight: Any) -> bool:
        reasons = [str(x.reason or "") for a in weight.axes for x in leaves(a) if x.size != 1]
        return any(r.startswith(("graph output", "indexed at run time")) for r in reasons)

    return [w for w in graph.weights.values() if w.kind == "parameter" and w.rank > 1 and stays(w)]


def heads(graph: Any) -> int:
    """Attention heads, all layers together: what may shrink before the two dimensions of the
    scores."""
    from irprune.ir.axis import leaves

    scores = [
        n.operand(0)
        for n in graph.nodes
        if n.op in ("softmax", "scaled_dot_product_attention") and n.operand(0).rank > 3
    ]
    return sum(
        math.prod(x.size for a in v.axes[:-2] for x in leaves(a) if x.reason is None)
        for v in scores
    )


def apart(step: str, source: Path, out: Path, limit: float = 600) -> dict[str, Any]:
    """``step`` in a process of its own; {"failed": why} where it fails."""
    command = [sys.executable, "-W", "ignore", __file__, step, str(source), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return dict(json.loads(lines[-1]))


def beside_onnxsim(names: Sequence[str] = CASES, store: Path | None = None) -> list[dict[str, Any]]:
    """One row per case, from ``store`` where it is there."""
    known: dict[str, dict[str, Any]] = (
        json.loads(store.read_text()) if store is not None and store.exists() else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if name in known:
                continue
            source, mine, other = (
                Path(folder) / f"{name}{end}.onnx" for end in ("", "-ours", "-theirs")
            )
            row: dict[str, Any] = {"file": name, "export": apart("export", source, source)}
            row |= {
                "before": apart("counted", source, source),
                "proof": apart("proven", source, mine),
            }
            row |= {"ours": apart("ours", source, mine), "theirs": apart("theirs", source, other)}
            row |= {
                "ours_left": apart("counted", mine, mine),
                "theirs_left": apart("counted", other, other),
            }
            known[name] = row
            if store is not None:
                store.write_text(json.dumps(known, indent=1) + "\n")
            for part in (source, mine, other):
                part.unlink(missing_ok=True)
    return [known[name] for name in names]


def left(row: dict[str, Any], side: str) -> float | None:
    """The share left of the parameters that may shrink; None where it is not known."""
    before, after = row["before"], row[side]
    return (
        (after["params"] - after["held"]) / (before["params"] - before["held"])
        if "params" in before and "params" in after
        else None
    )


def holds(row: dict[str, Any]) -> bool:
    """Whether the row meets what must hold."""
    share, seconds = left(row, "ours_left"), row["ours"].get("seconds")
    fast = seconds is not None and seconds <= row["theirs"].get("seconds", float("inf")) + 1
    return (
        share is not None
        and share <= MOST
        and fast
        and row["ours_left"].get("runs", False)
        and row["proof"].get("error", 1.0) <= 1e-4
    )


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a row."""
    before = row["before"]

    def shrinking(side: str) -> str:
        share = left(row, side)
        return row[side].get("failed", "-")[:40] if share is None else f"{share:.0%}"

    def of(side: str, key: str) -> str:
        return (
            f"{row[side][key] / before[key]:.0%}" if row[side].get(key) and before.get(key) else "-"
        )

    def counts(side: str) -> str:
        return (
            f"{before['heads']} -> {row[side]['heads']}"
            if before.get("heads") and "heads" in row[side]
            else "-"
        )

    runs = "/".join("yes" if row[s].get("runs") else "no" for s in ("ours_left", "theirs_left"))
    error = row["proof"].get("error")
    seconds = tuple(
        f"{row[s]['seconds']:.1f}" if "seconds" in row[s] else row[s]["failed"][:40]
        for s in ("ours", "theirs")
    )
    cells = (
        shrinking("ours_left"),
        of("ours_left", "held"),
        shrinking("theirs_left"),
        of("ours_left", "macs"),
        of("theirs_left", "macs"),
        counts("ours_left"),
        counts("theirs_left"),
    )
    return (
        row["file"],
        *cells,
        runs,
        "-" if error is None else f"{error:.0e}",
        *seconds,
        "yes" if holds(row) else "NO",
    )


def _main() -> None:
    step, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if step == "export":
        sys.path.insert(0, str(HERE.parent))
        export(source.stem, out)
        print(json.dumps({"bytes": out.stat().st_size}))
        return
    print(
        json.dumps(
            {"ours": ours, "theirs": theirs, "counted": counted, "proven": proven}[step](
                source, out
            )
        )
    )


if __name__ == "__main__":
    _main()
