"""Whether channels are missed at all: the original beside itself without them, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.analysis.sizes import example_symbols
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.ops.arrays import as_numpy
from irprune.ops.registry import draws
from irprune.run.inputs import random_inputs, redraw

__all__ = ["changes_nothing"]

_SEEDS = (0, 1, 2)


def changes_nothing(graph: Graph, kept: Selection) -> bool:
    """Whether an analysed ``graph`` computes exactly the same when what ``kept`` drops is silenced,
    on random inputs. False for a graph that draws random numbers."""
    if any(map(draws, graph.nodes)):
        return False
    dialect = graph.source.dialect if graph.source is not None else ""
    outputs = _onnx_outputs if dialect == "onnx" else _torch_outputs
    return all(
        all(
            np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
            for a, b in zip(
                outputs(graph, kept, seed), outputs(graph, Selection({}), seed), strict=True
            )
        )
        for seed in _SEEDS
    )


def _torch_outputs(graph: Graph, kept: Selection, seed: int) -> list[NDArray[Any]]:
    import torch

    from irprune.frontend.torch.source import torch_source
    from irprune.run.oracle import silenced

    source = torch_source(graph)
    args, kwargs = redraw(source.args, source.kwargs, seed, tails=seed % 2 == 1)
    with torch.no_grad():
        found = silenced(graph, kept, source.tensors(args, kwargs))
    return [as_numpy(t) for t in found if isinstance(t, torch.Tensor)]


def _onnx_outputs(graph: Graph, kept: Selection, seed: int) -> list[NDArray[Any]]:
    from irprune.validate.onnx_oracle import silenced_model
    from irprune.validate.onnx_run import run_model

    inputs = random_inputs(graph, example_symbols(graph), seed=seed)
    model, data = silenced_model(graph, kept, inputs)
    return run_model(model, inputs, optimise=False, data=data)
