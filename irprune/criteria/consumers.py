"""Where a group is read: the layers that sum over its leaf, and what of their weights and inputs
belongs to which index.

Dropping an index silences it where it is consumed, so data-driven criteria look there: at the
inputs of the layers that read a group rather than at the weights that make it. What is lost is put
in relation to all that a layer gives, so that layers of different scale can be added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from irprune.criteria import Scores
from irprune.criteria.magnitude import Magnitude
from irprune.criteria.places import Place, place_of
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.dtype import is_half
from irprune.ir.graph import Graph
from irprune.ir.group import Group, Member
from irprune.ir.size import probe_of

if TYPE_CHECKING:
    from irprune.analysis.layers import Layer
    from irprune.run.calibration import Calibration

__all__ = [
    "Reader",
    "Reading",
    "calibrated",
    "collected",
    "portions",
    "readers",
    "readings",
    "shares",
    "whole",
]

WIDEST = (
    6144  # inputs of a layer beyond which no Gram matrix is made, as in the repair by least squares
)
MEMORY = 1 << 30  # bytes of Gram matrices held at a time


@dataclass(frozen=True)
class Reader:
    """``layer`` sums over a leaf: ``owner[b, k]`` is the index (in blocks: ``outer * size +
    index``) that input k of block b belongs to, -1 for inputs of other leaves; ``shape`` is that of
    the leaf's scores."""

    layer: Layer
    owner: NDArray[np.int64]
    shape: tuple[int, ...]

    def gathered(self, values: NDArray[Any]) -> Scores:
        """Values per input [b, k] summed onto the leaf's indices."""
        mine = self.owner >= 0
        total = np.bincount(
            self.owner[mine],
            weights=np.asarray(values, dtype=np.float64)[mine],
            minlength=int(np.prod(self.shape)),
        )
        return np.asarray(total.reshape(self.shape), dtype=np.float64)


@dataclass
class Reading:
    """What a layer read over the calibration data, in float64: ``count`` rows, their ``mean`` [b,
    k], mean ``square`` [b, k] and, where asked and no more than ``WIDEST`` inputs wide, the mean of
    products ``gram`` [b, k, k]; ``weight`` is [b, k, o]."""

    weight: Any
    count: int = 0
    mean: Any = None
    square: Any = None
    gram: Any = None


def calibrated(source: Any, graph: Graph, criterion: str, batch: int = 64) -> Calibration:
    """``source`` as calibration data for ``graph``. Raises IrpruneError where there is none."""
    if source is None:
        raise IrpruneError(
            f"criterion {criterion!r} needs calibration data",
            "importance",
            "give calibration=: an iterable of inputs, a tensor, or a folder of .npy, .npz or image files",
        )
    from irprune.run.calibration import Calibration

    return Calibration(
        source,
        graph,
        samples=source.samples if isinstance(source, Calibration) else None,
        batch=batch,
    )


def readers(
    graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
) -> dict[Axis, list[Reader]]:
    """For each group's leaf the layers that sum over it, in graph order."""
    from irprune.analysis.layers import layers

    members: dict[tuple[str, int], list[tuple[Axis, Member]]] = {}
    for group in groups:
        for m in group.members:
            members.setdefault((m.weight.name, m.dim), []).append((group.axis, m))
    out: dict[Axis, list[Reader]] = {g.axis: [] for g in groups}
    for layer in layers(graph):
        for dim in layer.inputs:
            for leaf, m in members.get((layer.weight.name, dim), ()):
                out[leaf].append(_reader(layer, place_of(m, blocks.get(leaf))))
    return out


def _reader(layer: Layer, place: Place) -> Reader:
    import torch

    shape = [int(probe_of(s)) for s in layer.weight.shape]
    at = torch.zeros(shape, dtype=torch.int64)
    for d in place.dims:
        at = at * shape[d] + torch.arange(shape[d]).reshape(
            [-1 if k == d else 1 for k in range(len(shape))]
        )
    position = layer.matrix(at)[..., 0].numpy()  # [b, k]: where along the dimensions an input lies
    *own, _ = place.at.shape
    owner = np.full(prod(shape[d] for d in place.dims), -1, dtype=np.int64)
    owner[place.at] = np.arange(prod(own)).reshape(*own, 1)
    return Reader(layer, owner[position], tuple(own))


def readings(
    graph: Graph,
    found: Mapping[Axis, Sequence[Reader]],
    calibration: Calibration,
    *,
    gram: bool,
    rows: int = 32768,
) -> dict[str, Reading]:
    """What the layers in ``found`` read: see ``readings_of``."""
    return readings_of(
        graph, [r.layer for many in found.values() for r in many], calibration, gram=gram, rows=rows
    )


def readings_of(
    graph: Graph,
    layers: Sequence[Layer],
    calibration: Calibration,
    *,
    gram: bool,
    rows: int = 32768,
) -> dict[str, Reading]:
    """Statistics of what ``layers`` read, by ``key_of``, from one run over the data; Gram matrices
    of at most about ``rows`` rows.

    Raises IrpruneError where activations are NaN or infinite.
    """
    import torch

    from irprune.run.interpret import evaluate

    wanted = {layer.node: layer for layer in layers}
    out = {key_of(layer): Reading(layer.held()) for layer in wanted.values()}
    strides: dict[str, int] = {}

    def hook(node: Any, operands: list[Any], run: Any) -> Any:
        layer = wanted.get(node)
        if layer is not None:
            key = key_of(layer)
            x = layer.read(operands)
            products = gram and x.shape[2] <= WIDEST
            limit = max(rows, 4 * x.shape[2]) if products else 8 * rows
            stride = strides.setdefault(key, max(1, -(-x.shape[0] * 4 // limit)))
            _add(out[key], x[::stride].transpose(0, 1).double().cpu(), products, node.where)
        return run(*operands)

    half = torch.float32 if any(is_half(v.dtype) for v in graph.values()) else None
    for batch in calibration:
        evaluate(graph, batch.inputs, wanted=[n.out for n in wanted], dtype=half, hook=hook)
    for reading in out.values():
        reading.mean, reading.square = reading.mean / reading.count, reading.square / reading.count
        if reading.gram is not None:
            reading.gram = reading.gram / reading.count
    return out


def key_of(layer: Layer) -> str:
    return f"{layer.weight.name} at {layer.node.outputs[0].name}"


def _add(reading: Reading, x: Any, gram: bool, where: str) -> None:
    """Add rows [b, n, k]."""
    import torch

    if not bool(torch.isfinite(x).all()):
        raise IrpruneError(
            "activations are NaN or infinite on the calibration data",
            where,
            "check the model and the data",
        )
    first = reading.count == 0
    reading.count += x.shape[1]
    total, square = x.sum(1), x.square().sum(1)
    reading.mean = total if first else reading.mean + total
    reading.square = square if first else reading.square + square
    if gram:
        product = x.transpose(1, 2) @ x
        reading.gram = product if first else reading.gram + product


def portions(
    found: Mapping[Axis, Sequence[Reader]], memory: int = MEMORY
) -> Iterator[dict[Axis, Sequence[Reader]]]:
    """``found`` in runs of leaves whose layers' Gram matrices and their inverses fit ``memory``; a
    leaf that does not stands by itself."""
    some: dict[Axis, Sequence[Reader]] = {}
    held: dict[str, int] = {}
    for leaf, readers in found.items():
        mine = {
            key_of(r.layer): 16 * r.owner.shape[0] * r.owner.shape[1] ** 2
            for r in readers
            if r.owner.shape[1] <= WIDEST
        }
        if some and sum((held | mine).values()) > memory:
            yield some
            some, held = {}, {}
        some[leaf] = readers
        held |= mine
    if some:
        yield some


def collected(
    graph: Graph,
    groups: Sequence[Group],
    blocks: Mapping[Axis, Axis],
    calibration: Calibration,
    *,
    gram: bool = False,
) -> tuple[dict[Axis, list[Reader]], dict[str, Reading]]:
    """The readers of all groups and what they read."""
    found = readers(graph, groups, blocks)
    return found, readings(graph, found, calibration, gram=gram)


def whole(
    scores: dict[Axis, Scores], graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
) -> dict[Axis, Scores]:
    """``scores`` with groups that no layer reads (queries and keys, which meet each other) ranked
    by magnitude, at the mean level of the others."""
    missing = [g for g in groups if g.axis not in scores]
    if not missing:
        return scores
    level = float(np.mean([s.mean() for s in scores.values()])) if scores else 1.0
    for leaf, s in Magnitude().scores(graph, missing, blocks).items():
        scores[leaf] = s * (level / s.mean()) if s.mean() > 0 else s
    return {g.axis: scores[g.axis] for g in groups if g.axis in scores}


def shares(
    graph: Graph,
    groups: Sequence[Group],
    blocks: Mapping[Axis, Axis],
    calibration: Calibration,
    weigh: Callable[[Reading], Any],
) -> dict[Axis, Scores]:
    """What ``weigh`` gives each input of a layer [b, k], as a share of the layer's sum, added up
    over the layers that read an index."""
    found, read = collected(graph, groups, blocks, calibration)
    out: dict[Axis, Scores] = {}
    for leaf, readers in found.items():
        for r in readers:
            values = weigh(read[key_of(r.layer)]).numpy()
            share = r.gathered(values / max(values.sum(), 1e-300))
            out[leaf] = out[leaf] + share if leaf in out else share
    return whole(out, graph, groups, blocks)
