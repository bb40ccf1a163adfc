"""Optimal brain surgeon: what a linear layer loses where inputs go and the others are refitted.

The saliency of Hassibi and Stork (1993) for a block of inputs of a linear layer, on the inverse of
the matrix of its inputs' products, as in Frantar and Alistarh, "Optimal Brain Compression", NeurIPS
2022. The inverse is sorted by index, so that what belongs to one index is one diagonal block and
all of them are factored at once, and it shrinks with every index that goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from irprune.criteria import Scores
from irprune.criteria.consumers import Reader
from irprune.criteria.readings import Reading

if TYPE_CHECKING:
    import torch

__all__ = ["Diagonal", "Surgeon"]

Indices = NDArray[np.int64]


class Diagonal:
    """A layer too wide for a Gram matrix: its inputs are taken to be independent, so that only a
    bias makes up for what is gone."""

    def __init__(self, reader: Reader, reading: Reading, price: float | None = None) -> None:
        weight = reading.weight
        spread = reading.square if reader.layer.bias is None else reading.variance
        lost = weight.square().sum(-1) * spread
        scale = (
            1 / max(float(lost.sum()), 1e-300)
            if price is None
            else price / (weight.shape[0] * weight.shape[2])
        )
        self._lost = reader.gathered(lost.numpy()).reshape(-1) * scale

    def losses(self) -> Scores:
        """As of ``Surgeon``."""
        return self._lost

    def drop(self, indices: Sequence[int] | Indices) -> None:
        """Nothing changes for the others."""


class Surgeon:
    """The inverse and the weights of one layer while indices of a leaf are taken out of it and the
    rest is refitted.

    A layer with a bias is refitted with it: what is constant is not lost. ``ridge`` is relative to
    the mean diagonal. ``price`` is the cost of a mean squared error of 1 per element of the result;
    without it errors are relative to the result."""

    def __init__(
        self, reader: Reader, reading: Reading, ridge: float, price: float | None = None
    ) -> None:
        inverse, weight = reading.inverse(ridge), reading.weight
        self._shape = tuple(weight.shape)
        self._parts = [_Part(*each) for each in zip(reader.owner, inverse, weight, strict=True)]
        self._count = int(np.prod(reader.shape))
        self._scale = (
            1 / max(reading.energy(), 1e-300)
            if price is None
            else price / (weight.shape[0] * weight.shape[2])
        )

    def losses(self) -> Scores:
        """For each index the error (or its cost) that dropping it alone would add to what is
        dropped already; 0 for those that are gone."""
        out = np.zeros(self._count)
        for part in self._parts:
            out[part.indices] += part.losses()
        return out * self._scale

    def drop(self, indices: Sequence[int] | Indices) -> None:
        """Take ``indices`` out and refit the others."""
        gone = np.zeros(self._count, dtype=bool)
        gone[np.asarray(indices, dtype=np.int64)] = True
        for part in self._parts:
            part.drop(gone[part.indices])

    def weight(self) -> torch.Tensor:
        """The refitted weight [b, k, o] in float64, zero where inputs are gone."""
        import torch

        out = torch.zeros(self._shape, dtype=torch.float64)
        for whole, part in zip(out, self._parts, strict=True):
            whole[part.inputs] = part.weight.double()
        return out


class _Part:
    """One block of a layer: its ``inputs`` that are left, those of each of ``indices`` side by side
    and in their order, those of other leaves at the end."""

    def __init__(self, owner: Indices, inverse: torch.Tensor, weight: torch.Tensor) -> None:
        import torch

        present, sizes = np.unique(owner[owner >= 0], return_counts=True)
        order = np.argsort(sizes, kind="stable")  # equal sizes side by side: mostly there is one
        self.indices, self._sizes = present[order], sizes[order]
        place = np.full(int(owner.max(initial=0)) + 2, len(present))  # the last is that of -1
        place[self.indices] = np.arange(len(present))
        self.inputs = torch.from_numpy(np.argsort(place[owner], kind="stable"))
        self._inverse = inverse[self.inputs][:, self.inputs]
        self.weight = weight[self.inputs].to(inverse.dtype)

    def losses(self) -> Scores:
        """What each of ``indices`` alone would cost: w' (H^-1)^-1 w of its inputs, unscaled."""
        import torch

        found = [np.zeros(0)]
        start = 0
        for size in np.unique(self._sizes).tolist():
            count = int((self._sizes == size).sum())
            rows = slice(start, start + count * size)
            start = rows.stop
            w = self.weight[rows].reshape(count, size, -1)
            if size == 1:
                lost = w.square().sum((1, 2)) / self._inverse.diagonal()[rows].clamp(min=1e-30)
            else:
                square = self._inverse[rows, rows].reshape(count, size, count, size)
                lower, w = _factored(square.diagonal(dim1=0, dim2=2).permute(2, 0, 1), w)
                lost = torch.linalg.solve_triangular(lower, w, upper=False).square().sum((1, 2))
            found.append(lost.double().numpy())
        return np.concatenate(found)

    def drop(self, gone: NDArray[np.bool_]) -> None:
        """Take those of ``indices`` out that ``gone`` marks."""
        import torch

        if not gone.any():
            return
        rest = len(self.inputs) - int(self._sizes.sum())
        mask = torch.from_numpy(
            np.concatenate([np.repeat(gone, self._sizes), np.zeros(rest, bool)])
        )
        out, left = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        rows = self._inverse[out]
        across, n = rows[:, left], self.weight.shape[1]
        lower, both = _factored(rows[:, out], torch.cat((self.weight[out], across), 1))
        solved = torch.cholesky_solve(both, lower).to(across.dtype)
        self.weight = self.weight[left] - across.T @ solved[:, :n]
        kept = self._inverse.index_select(0, left).index_select(1, left)
        self._inverse = kept.addmm_(across.T, solved[:, n:], alpha=-1)
        self.inputs, self.indices, self._sizes = (
            self.inputs[left],
            self.indices[~gone],
            self._sizes[~gone],
        )


def _factored(square: torch.Tensor, beside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The Cholesky factors of positive definite matrices [..., s, s], and ``beside`` in their
    precision; where rounding has made one indefinite, of float64 copies with as much added to the
    diagonal as it takes."""
    import torch

    lower, failed = torch.linalg.cholesky_ex(square)
    if not bool(failed.any()):
        return lower, beside
    square = square.double()
    level = square.diagonal(dim1=-2, dim2=-1).abs().mean(-1).clamp(min=1e-30)[..., None, None]
    eye: Any = torch.eye(square.shape[-1], dtype=square.dtype)
    for power in range(-7, 3):
        lower, failed = torch.linalg.cholesky_ex(square + 10.0**power * level * eye)
        if not bool(failed.any()):
            break
    return lower, beside.double()
