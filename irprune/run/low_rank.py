"""A matrix as a product of two thinner ones, the nearest in what a layer gives on its data.

Of all matrices P of rank r the whitened singular value decomposition gives the one with the least
``||X (W - P)||``, where the rows of X are what the layer reads: with ``G = X' X = L L'`` that is
``||L' (W - P)||``, and Eckart and Young (1936) say what is nearest to ``L' W``. Without data G is
the identity. As in SVD-LLM (Wang et al., ICLR 2025)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["RIDGE", "Factors", "factorise", "spectrum"]

RIDGE = 1e-6  # times the mean of the diagonal of the Gram matrix, added to it: no input is free


@dataclass(frozen=True)
class Factors:
    """Two matrices, ``first`` [k, r] and ``second`` [r, o], in float64, whose product stands in
    for one of [k, o]; ``lost`` is the share of the square of what the layer gives that goes."""

    first: torch.Tensor
    second: torch.Tensor
    lost: float

    @property
    def product(self) -> torch.Tensor:
        """The matrix [k, o] that they stand for."""
        return self.first @ self.second


def spectrum(matrix: torch.Tensor, gram: torch.Tensor | None = None) -> torch.Tensor:
    """The squares of the whitened singular values of ``matrix`` [k, o], largest first: what goes
    when a rank goes, in the square of what the layer gives.

    Args:
        matrix: The weight, inputs first.
        gram: The mean products of the inputs [k, k]; None counts all of them alike.

    Returns:
        A tensor of min(k, o) numbers in float64.
    """
    lower = _root(gram, matrix)
    white = matrix.double() if lower is None else lower.T @ matrix.double()
    found: torch.Tensor = torch.linalg.svdvals(white).square()
    return found


def factorise(matrix: torch.Tensor, rank: int, gram: torch.Tensor | None = None) -> Factors:
    """The nearest product of rank ``rank`` to ``matrix`` [k, o], in the norm that ``gram`` gives.

    Args:
        matrix: The weight, inputs first.
        rank: From 1 to the lesser of k and o.
        gram: As for ``spectrum``; ``RIDGE`` of its mean diagonal is added to it.

    Returns:
        The two factors, of which each has the root of the singular values.
    """
    lower = _root(gram, matrix)
    white = matrix.double() if lower is None else lower.T @ matrix.double()
    left, values, right = torch.linalg.svd(white, full_matrices=False)
    energy = values.square()
    root = values[:rank].sqrt()
    first = left[:, :rank] * root
    if lower is not None:
        first = torch.linalg.solve_triangular(lower.T, first, upper=True)
    total = float(energy.sum())
    lost = float(energy[rank:].sum()) / total if total > 0 else 0.0
    return Factors(first, root[:, None] * right[:rank], lost)


def _root(gram: torch.Tensor | None, matrix: torch.Tensor) -> torch.Tensor | None:
    """The lower triangle L with L L' the Gram matrix and its ridge; None where there is none."""
    if gram is None:
        return None
    products = gram.to(device=matrix.device, dtype=torch.float64).clone()
    level = float(products.diagonal().mean())
    if not level > 0:
        return None  # the layer reads zeros alone
    ridge = RIDGE
    while True:
        held = products.clone()
        held.diagonal().add_(ridge * level)
        lower: torch.Tensor
        lower, failed = torch.linalg.cholesky_ex(held)
        if not bool(failed):
            return lower
        ridge *= 10  # rounding in float32 sums has left it indefinite
