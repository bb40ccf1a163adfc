"""Outputs that all but vanish once channels are silenced, so that rounding is all that is left of
them: a sigmoid far in its tail is a matter of the last bit, whatever was cut.

The error on onnxruntime is then relative to what the original itself gives, and float64 decides
whether the cut is exact: the silenced original against the cut graph, both in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.base.tolerance import FAINT
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.ops.arrays import as_numpy
from irprune.run.error import array_error
from irprune.validate.onnx_oracle import silenced_model
from irprune.validate.onnx_run import run_model

__all__ = ["faint_error", "in_float64"]

Array = NDArray[Any]


def faint_error(
    graph: Graph, inputs: Mapping[str, Array], ours: Sequence[Any], theirs: Sequence[Any]
) -> float | None:
    """The error where outputs that differ are faint beside those of the original on the same
    ``inputs``; None where one is not."""
    model, data = silenced_model(graph, Selection({}), inputs)
    whole = run_model(model, inputs, optimise=False, data=data)
    worst = 0.0
    for a, b, c in zip(ours, theirs, whole, strict=True):
        own, least = _magnitude(b), FAINT * _magnitude(c)
        error = array_error(a, b)
        if own < least:
            error *= own / least
        worst = max(worst, error)
    return (
        worst
        if any(_magnitude(b) < FAINT * _magnitude(c) for b, c in zip(theirs, whole, strict=True))
        else None
    )


def in_float64(
    graph: Graph, cut: Graph, inputs: Mapping[str, Array]
) -> tuple[list[Any], list[Any]] | None:
    """What the silenced ``graph`` and the ``cut`` graph give in float64; None where torch is
    missing or cannot run them."""
    try:
        import torch

        from irprune.run.interpret import evaluate
        from irprune.run.oracle import silenced
    except ImportError:
        return None
    assert graph.kept is not None
    arrays = [torch.from_numpy(np.array(inputs[v.name])) for v in graph.inputs]
    feed = [t.double() if t.is_floating_point() else t for t in arrays]
    try:
        theirs = silenced(graph, graph.kept, feed, torch.float64)
        return theirs, evaluate(cut, feed, dtype=torch.float64)
    except (RuntimeError, NotImplementedError, LookupError, IrpruneError):
        return None


def _magnitude(x: Any) -> float:
    array = as_numpy(x)
    if array.dtype.kind != "f" or not array.size:
        return 0.0
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max()) if finite.size else 0.0
