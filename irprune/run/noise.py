"""Random inputs as calibration data, for those who have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from irprune.ir.graph import Graph
from irprune.ir.size import Sym, probe_of
from irprune.ops.arrays import as_tensor
from irprune.run.batch import batch_size
from irprune.run.calibration import Calibration
from irprune.run.inputs import drawn, index_limits

__all__ = ["noise"]


def noise(
    graph: Graph,
    samples: int = 256,
    *,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
    batch: int = 64,
) -> Calibration:
    """Inputs drawn at random, for repair without data: uniform in ``low .. high`` where both are
    given, else normal.

    Integer inputs that index a table are drawn below its size; other integers are 0 or 1 (masks).
    Dynamic sizes other than the first dimension are as large as the capture's example. The same
    seed gives the same inputs."""
    below = index_limits(graph)
    limits = [probe_of(below[v]) if v in below else None for v in graph.inputs]
    within = None if low is None or high is None else (low, high)
    example = [
        tuple(_example_size(graph, i, d) for d in range(v.rank)) for i, v in enumerate(graph.inputs)
    ]
    own = batch_size(graph)

    def items() -> Iterator[Any]:
        generator = np.random.default_rng(seed)
        step = 1 if own is None else batch
        for at in range(0, samples, step):
            n = min(step, samples - at)
            if own is not None and not isinstance(own, Sym):
                n = -(-n // own) * own
            made = [
                as_tensor(
                    drawn(
                        generator,
                        (n, *shape[1:]) if own is not None and shape else shape,
                        v.dtype,
                        limit,
                        within,
                    )
                )
                for v, shape, limit in zip(graph.inputs, example, limits, strict=True)
            ]
            yield tuple(made)

    return Calibration(_Stream(items), graph, batch=batch)


class _Stream:
    """An iterable that starts over each time; its items are flat tensors already."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def _example_size(graph: Graph, i: int, d: int) -> int:
    """A size for dimension ``d`` of input ``i``: the captured example's where the size is
    dynamic."""
    size = graph.inputs[i].shape[d]
    if not isinstance(size, Sym):
        return int(size)
    shapes = graph.source.example_shapes() if graph.source is not None else None
    return 8 if shapes is None else shapes[i][d]
