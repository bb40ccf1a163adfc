"""Principal components of a width: the mean products of what is in it, and their eigenvectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from irprune.run.gram import sampled_rows

__all__ = ["Spread", "principal_basis"]


class Spread:
    """Sums of products of rows [n, d], each of which counts as much as any other whatever its
    length."""

    def __init__(self, size: int) -> None:
        self.products = torch.zeros(size, size, dtype=torch.float64)

    def add(
        self,
        x: torch.Tensor,
        scale: torch.Tensor | None,
        shift: torch.Tensor | None,
        rows: int,
        seed: int,
    ) -> None:
        """Rows of ``x`` [n, d], about ``rows`` of them, before they were multiplied by ``scale``
        and moved by ``shift`` [d]."""
        at = sampled_rows(len(x), rows, seed)
        x = (x if at is None else x[at]).double().cpu()
        if shift is not None:
            x = x - shift
        if scale is not None:
            x = torch.where(scale == 0, 0.0, x / torch.where(scale == 0, 1.0, scale))
        length = x.square().mean(1, keepdim=True).sqrt()
        x = torch.where(length > 0, x / length.clamp(min=1e-300), 0.0).float()
        self.products += (x.T @ x).double()

    def merged(self, other: Spread) -> Spread:
        """Of the rows of both."""
        self.products += other.products
        return self


def principal_basis(spread: Spread) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """The eigenvectors of the products as columns [d, d], those of most energy first, and the share
    of each in the energy; an orthogonal matrix in float64."""
    values, vectors = torch.linalg.eigh(spread.products)
    order: Any = torch.argsort(values, descending=True, stable=True)
    energy = values[order].clamp(min=0)
    total = float(energy.sum())
    share = energy / total if total > 0 else torch.full_like(energy, 1 / len(energy))
    return vectors[:, order], np.asarray(share.numpy(), dtype=np.float64)
