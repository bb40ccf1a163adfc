"""One case at one ratio, measured in a process of its own: ``python tools/bench_case.py CASE RATIO
[--small]`` prints JSON."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils import _pytree as pytree

import irprune
import models
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis, factors, find, parts
from irprune.ir.graph import Graph
from irprune.ir.size import probe_of

PASSES = 8  # of a proof: four, and four with random weights at other sizes


def fraction(axis: Axis, ratio: float, held: Container[Axis] = ()) -> float:
    """The share of an axis that a ratio leaves: of a sum the mean of its parts, of a product one
    factor's; frozen and held leaves stay."""
    axis = find(axis)
    if len(several := parts(axis)) > 1:
        return sum(probe_of(p.size) * fraction(p, ratio, held) for p in several) / probe_of(
            axis.size
        )
    if len(several := factors(axis)) > 1:
        return min(fraction(f, ratio, held) for f in several)
    return 1.0 if axis.reason is not None or axis.size == 1 or axis in held else 1 - ratio


def implied(graph: Graph, ratio: float) -> float:
    """How many parameters the ratio would take from a graph, after choose, if every width in reach
    met it exactly.

    A weight loses what is left after each of its dimensions shrank to its ``fraction``: a frozen
    dimension stays, a free one keeps ``1 - ratio`` of its width. A width that is made of factors
    (heads and head_dim) shrinks once: in a dimension that is their product, and where they are
    dimensions of their own, by the factor that carries the ratio while the others are held. Tied
    weights count once."""
    held = {a for a, why in graph.skipped.items() if why.startswith("held:")}
    total = 0.0
    for weight in graph.weights.values():
        if weight.kind == "parameter":
            left = math.prod(fraction(a, ratio, held) for a in weight.axes or ())
            total += math.prod(probe_of(s) for s in weight.shape) * (1 - left)
    return total


def trains(module: torch.nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether one step of gradient descent on the sum of squares moves the outputs and leaves them
    finite."""

    def outputs() -> list[torch.Tensor]:
        made = pytree.tree_leaves(module(*args, **kwargs))
        return [t for t in made if isinstance(t, torch.Tensor) and t.is_floating_point()]

    with torch.no_grad():
        before = outputs()
    parameters = [p for p in module.parameters() if p.requires_grad]
    module.train()
    loss = sum((t.float().square().mean() for t in outputs()), torch.zeros(()))
    loss.backward()
    moved = [
        p
        for p in parameters
        if p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any())
    ]
    torch.optim.SGD(parameters, lr=1e-3).step()
    module.eval()
    with torch.no_grad():
        after = outputs()
    finite = all(bool(t.isfinite().all()) for t in after)
    return (
        bool(moved)
        and finite
        and any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    )


def digest(pruned: Any, folder: Path) -> str:
    """A hash over everything that a call hands out: kept indices, tensors and the ONNX file."""
    found = hashlib.sha256(json.dumps(pruned.kept, sort_keys=True).encode())
    for name, tensor in pruned.module.state_dict().items():
        raw = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(
            name.encode() + str(tensor.dtype).encode() + raw.view(torch.uint8).numpy().tobytes()
        )
    for file in sorted(folder.rglob("*")):
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()


def in_float64(pruned: Any) -> float:
    """The oracle's error with every float in float64."""
    from irprune.run.error import relative_error
    from irprune.run.interpret import evaluate
    from irprune.run.oracle import silenced

    graph, cut = pruned.graph, pruned.cut
    inputs = [
        t.double() if t.is_floating_point() else t
        for t in graph.source.tensors(graph.source.args, graph.source.kwargs)
    ]
    return relative_error(
        evaluate(cut, inputs, dtype=torch.float64),
        silenced(graph, graph.kept, inputs, torch.float64),
    )


def exportable(model: torch.nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether ``torch.onnx.export`` takes the original: where it does not, it cannot be asked to
    take the pruned model."""
    try:
        torch.onnx.export(
            model.eval(), tuple(args), kwargs=dict(kwargs), dynamo=True, verbose=False
        )
    except torch.onnx.errors.OnnxExporterError:
        return False
    return True


def measure(name: str, ratio: float, small: bool, onnx: bool = True) -> dict[str, Any]:
    """Everything the table says about a case; a refusal as ``refused`` with its message."""
    case = models.get(name)
    row: dict[str, Any] = {"case": name, "ratio": ratio, "small": small}
    torch.manual_seed(0)
    model = case.build(small=small)
    args, kwargs = case.example_inputs(small=small)
    began = time.perf_counter()
    try:
        pruned = irprune.prune(model, args, kwargs, ratio=ratio, calibration=False)
    except IrpruneError as refused:
        return row | {"refused": str(refused), "expected": case.refused is not None}
    if case.refused is not None:
        return row | {"refused": "", "expected": False}
    row["seconds"] = time.perf_counter() - began
    target = implied(pruned.graph, ratio)
    report = pruned.report
    row |= {"before": report.params.before, "after": report.params.after, "implied": target}
    row["met"] = (report.params.before - report.params.after) / target if target else 1.0
    row |= {
        "float32": report.proof.float32_error
        if report.proof.float32_error is not None
        else report.proof.max_error
    }
    row["float64"] = in_float64(pruned)
    row["passes"] = report.proof.passes
    digests = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            if onnx:
                try:
                    pruned.onnx(Path(folder) / "model.onnx")
                    row |= {
                        "parity": pruned.report.parity.max_error,
                        "provider": pruned.report.parity.provider,
                    }
                except IrpruneError as refused:
                    if exportable(model, args, kwargs):
                        raise
                    row["onnx"] = f"refused, for the original too: {refused}"
            digests.append(digest(pruned, Path(folder)))
        if len(digests) == 1:
            row["trains"] = trains(pruned.module, args, kwargs)
            pruned = irprune.prune(model, args, kwargs, ratio=ratio, calibration=False)
    row["same"] = digests[0] == digests[1]
    return row


def passes(row: dict[str, Any]) -> bool:
    """Whether a row meets what must hold for every case."""
    if "refused" in row:
        return bool(row["expected"])
    bounds = (
        row["float32"] <= 1e-4
        and row["float64"] <= 1e-9
        and row.get("parity", 0.0) <= 1e-4
        and row["passes"] <= PASSES
    )
    return bool(bounds and row["met"] >= 0.8 and row["trains"] and row["same"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    flags = sys.argv[3:]
    print(
        json.dumps(
            measure(sys.argv[1], float(sys.argv[2]), "--small" in flags, "--no-onnx" not in flags)
        )
    )
