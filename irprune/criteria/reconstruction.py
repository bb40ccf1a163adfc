"""reconstruction: what a layer's output loses for good when an index is gone and the others are
refitted.

The saliency of optimal brain surgeon (Hassibi and Stork 1993) for a block of inputs of a linear
layer, on the Gram matrix of its inputs, as in Frantar and Alistarh, "Optimal Brain Compression",
NeurIPS 2022. ``osscar`` is its greedy form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irprune.criteria import Scores, criterion
from irprune.criteria.consumers import (
    Reader,
    Reading,
    calibrated,
    key_of,
    portions,
    readers,
    readings,
    whole,
)
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group

__all__ = ["Diagonal", "Reconstruction", "Surgeon", "surgeons"]


@criterion("reconstruction")
@dataclass(frozen=True)
class Reconstruction:
    """The squared error of the least-squares repair when this index alone is dropped, added up over
    layers.

    ``ridge`` is relative to the mean diagonal of the Gram matrix. A layer's error is relative to
    its output, or, ``weighted``, what it costs: times the mean squared gradient of ``loss`` (or of
    labels drawn from the output) by the layer's result; a model without a gradient is judged by the
    relative errors."""

    calibration: Any = None
    ridge: float = 1e-2
    weighted: bool = True
    loss: Any = None
    seed: int = 0

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        out = {
            leaf: np.sum([s.losses(np.arange(s.count)) for s in many], axis=0).reshape(shape)
            for leaf, shape, many in surgeons(self, "reconstruction", graph, groups, blocks)
        }
        return whole(out, graph, groups, blocks)


def surgeons(
    criterion: Any, name: str, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
) -> Iterator[tuple[Axis, tuple[int, ...], list[Surgeon | Diagonal]]]:
    """For each leaf that layers read: the leaf, the shape of its scores, and a surgeon for each of
    the layers.

    Gram matrices are collected for as many leaves at a time as memory allows.
    """
    data = calibrated(criterion.calibration, graph, name)
    found = {leaf: many for leaf, many in readers(graph, groups, blocks).items() if many}
    price: dict[str, float] | None = None
    for some in portions(found):
        read = readings(graph, some, data, gram=True)
        if price is None:  # behind the first readings, which name what is NaN
            price = prices(criterion, graph, found)
        inverses: dict[str, Any] = {}
        for leaf, many in some.items():
            made: list[Surgeon | Diagonal] = []
            for r in many:
                key = key_of(r.layer)
                if read[key].gram is None:
                    made.append(Diagonal(r, read[key], price.get(key)))
                else:
                    made.append(Surgeon(r, read[key], criterion.ridge, inverses, price.get(key)))
            yield leaf, many[0].shape, made


def prices(
    criterion: Any, graph: Graph, found: Mapping[Axis, Sequence[Reader]]
) -> dict[str, float]:
    """What a squared error of 1 in one element of each layer's result costs; nothing where the
    criterion is not weighted, or where the model has no gradient and no ``loss`` was given."""
    if not criterion.weighted:
        return {}
    from irprune.run.gradients import sensitivities

    layers = {r.layer.node: key_of(r.layer) for many in found.values() for r in many}
    data = calibrated(criterion.calibration, graph, "reconstruction", 16)
    try:
        squares = sensitivities(graph, list(layers), data, criterion.loss, criterion.seed)
    except (
        IrpruneError,
        RuntimeError,
    ):  # whole-number outputs, operators that torch has no derivative of
        if criterion.loss is not None:
            raise
        return {}
    return {layers[node]: s / 2 for node, s in squares.items()}


class Diagonal:
    """A layer too wide for a Gram matrix: its inputs are taken to be independent, so that only a
    bias makes up for what is gone."""

    def __init__(self, reader: Reader, reading: Reading, price: float | None = None) -> None:
        spread = (
            reading.square
            if reader.layer.bias is None
            else (reading.square - reading.mean.square()).clamp(min=0)
        )
        lost = reading.weight.square().sum(-1) * spread
        scale = (
            1 / max(float(lost.sum()), 1e-300)
            if price is None
            else price / (reading.weight.shape[0] * reading.weight.shape[2])
        )
        self.lost = reader.gathered(lost.numpy()).reshape(-1) * scale
        self.count = len(self.lost)

    def losses(self, indices: Any) -> Scores:
        """As of ``Surgeon``."""
        return np.asarray(self.lost[np.asarray(indices)], dtype=np.float64)

    def drop(self, indices: Sequence[int]) -> None:
        """Nothing changes for the others."""


class Surgeon:
    """The inverse Gram matrix and the weights of one layer while indices of a leaf are taken out of
    it and the rest is refitted.

    A layer with a bias is refitted with it: what is constant is not lost. ``inverses`` keeps the
    first inverse of each layer for other leaves that it reads. ``price`` is the cost of a mean
    squared error of 1 per element of the result; without it errors are relative to the result."""

    def __init__(
        self,
        reader: Reader,
        reading: Reading,
        ridge: float,
        inverses: dict[str, Any],
        price: float | None = None,
    ) -> None:
        import torch

        key = key_of(reader.layer)
        if key not in inverses:
            gram = reading.gram
            if reader.layer.bias is not None:  # which says what is constant
                gram = gram - reading.mean[:, :, None] * reading.mean[:, None]
            scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp(min=1e-300)
            eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
            inverses[key] = torch.cholesky_inverse(
                torch.linalg.cholesky(gram + ridge * scale * eye)
            )
        self.inverse = inverses[key]  # [b, k, k], never changed in place
        self.weight = reading.weight  # [b, k, o]
        self.scale = 1 / max(
            float((reading.weight * (reading.gram @ reading.weight)).sum()), 1e-300
        )
        if price is not None:
            self.scale = price / (reading.weight.shape[0] * reading.weight.shape[2])
        self.count = int(np.prod(reader.shape))
        order = np.argsort(reader.owner, axis=1, kind="stable")
        sizes = np.stack([np.bincount(o[o >= 0], minlength=self.count) for o in reader.owner])
        self.spots = [self._spots(reader.owner, order, sizes, i) for i in range(self.count)]

    @staticmethod
    def _spots(owner: Any, order: Any, sizes: Any, index: int) -> list[tuple[int, Any]]:
        """For each block that holds index ``index``, where among its inputs."""
        import torch

        out = []
        for b in range(len(owner)):
            if sizes[b, index]:
                at = int((owner[b] < 0).sum() + sizes[b, :index].sum())
                out.append((b, torch.from_numpy(order[b, at : at + sizes[b, index]].copy())))
        return out

    def losses(self, indices: Any) -> Scores:
        """The error (or its cost) that dropping each of ``indices`` alone would add."""
        import torch

        groups: dict[tuple[int, int], list[tuple[int, Any]]] = {}
        for n, i in enumerate(indices):
            for b, at in self.spots[i]:
                groups.setdefault((b, len(at)), []).append((n, at))
        out = np.zeros(len(indices))
        for (b, _), many in groups.items():  # all of one size at once
            at = torch.stack([a for _, a in many])
            small = self.inverse[b][at[:, :, None], at[:, None, :]]
            w = self.weight[b][at]
            lost = (w * torch.linalg.solve(small, w)).sum((1, 2))
            np.add.at(out, [n for n, _ in many], lost.numpy() * self.scale)
        return out

    def drop(self, indices: Sequence[int]) -> None:
        """Take ``indices`` out and refit the others."""
        import torch

        spots: dict[int, list[Any]] = {}
        for i in indices:
            for b, at in self.spots[i]:
                spots.setdefault(b, []).append(at)
        inverse, weight = self.inverse.clone(), self.weight.clone()
        for b, many in spots.items():
            at = torch.cat(many)
            solve = torch.linalg.solve(
                inverse[b][at][:, at], torch.cat((weight[b][at], inverse[b][at]), 1)
            )
            o = weight.shape[2]
            across = inverse[b][:, at]
            weight[b] -= across @ solve[:, :o]
            inverse[b] -= across @ solve[:, o:]
            weight[b][at] = 0
            inverse[b][at] = 0
            inverse[b][:, at] = 0
            inverse[b][at, at] = 1.0  # keeps what is gone out of the way
        self.inverse, self.weight = inverse, weight
