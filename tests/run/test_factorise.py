"""The nearest product of two thin matrices: no other of that rank is nearer in its norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irprune.run.low_rank import RIDGE, factorise, spectrum


def off(gram: torch.Tensor | None, matrix: torch.Tensor, other: torch.Tensor) -> float:
    """The squared whitened distance of two matrices, with the ridge."""
    gap = matrix - other
    if gram is None:
        return float(gap.square().sum())
    held = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return float((gap * (held @ gap)).sum())


def drawn(k: int, o: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4 * k, k, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -2, k, dtype=torch.float64)
    rows = rows * scale[torch.randperm(k, generator=generator)]
    return torch.randn(k, o, generator=generator, dtype=torch.float64), rows.T @ rows / len(rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99), st.booleans())
def test_the_product_is_the_best_of_its_rank(k: int, o: int, seed: int, data: bool) -> None:
    matrix, products = drawn(k, o, seed)
    gram = products if data else None
    energy = spectrum(matrix, gram)
    generator = torch.Generator().manual_seed(seed + 1)
    for rank in {1, min(k, o) // 2 or 1, min(k, o)}:
        made = factorise(matrix, rank, gram)
        assert made.first.shape == (k, rank) and made.second.shape == (rank, o)
        best = off(gram, matrix, made.product)
        # Eckart and Young: what is left out is the sum of the squares of the singular values
        assert best == pytest.approx(float(energy[rank:].sum()), rel=1e-6, abs=1e-9)
        assert made.lost == pytest.approx(float(energy[rank:].sum() / energy.sum()), abs=1e-9)
        for _ in range(5):  # no neighbour of that rank is nearer
            first = made.first + 1e-3 * torch.randn(k, rank, generator=generator).double()
            second = made.second + 1e-3 * torch.randn(rank, o, generator=generator).double()
            assert off(gram, matrix, first @ second) >= best - 1e-12


def test_a_full_rank_is_the_matrix() -> None:
    matrix, gram = drawn(6, 9, 3)
    assert torch.allclose(factorise(matrix, 6, gram).product, matrix, atol=1e-8)
    assert factorise(matrix, 6, gram).lost == pytest.approx(0, abs=1e-12)


def test_plain_svd_is_not_the_best_where_inputs_differ() -> None:
    """The planted fault: leaving the data out is seen."""
    matrix, gram = drawn(12, 12, 0)
    right, plain = factorise(matrix, 3, gram), factorise(matrix, 3, None)
    assert off(gram, matrix, plain.product) > 1.2 * off(gram, matrix, right.product)


def test_inputs_that_are_never_there_are_no_obstacle() -> None:
    matrix, gram = drawn(8, 8, 1)
    gram[3], gram[:, 3] = 0, 0
    made = factorise(matrix, 2, gram)
    assert torch.isfinite(made.product).all()
    assert torch.isfinite(factorise(matrix, 2, torch.zeros_like(gram)).product).all()
