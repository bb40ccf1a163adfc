"""Gram matrices: sums that come in pieces are those of all rows, also about a large constant, and
the rows that are drawn are spread evenly."""

from __future__ import annotations

import pytest
import torch

from irprune.run.gram import Gram, sampled_rows


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [b, n, k] of deviation 1 about 1000, one of them constant, and what they explain."""
    x = torch.randn(2, 300, 5).double()
    x[..., 2] = 0
    r = x @ torch.randn(2, 5, 3).double() + 7
    return x + 1000, r


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("merged", [False, True])
def test_pieces_add_up_to_the_whole(kind: torch.dtype, merged: bool) -> None:
    x, r = rows()
    grams = (Gram(), Gram())
    for i, at in enumerate((slice(0, 40), slice(40, 41), slice(41, 41), slice(41, 300))):
        grams[i % 2 if merged else 0].add(x[:, at].to(kind), r[:, at].to(kind))
    made = grams[0].merged(grams[1])
    mean, target = x.mean(1), r.mean(1)
    y = x - mean[:, None]
    near = 2e-3 if kind == torch.float32 else 1e-9
    assert made.count == 300
    assert torch.allclose(made.mean, mean, rtol=1e-6) and torch.allclose(made.target, target)
    assert torch.allclose(made.covariance().double(), y.transpose(1, 2) @ y / 300, atol=near)
    assert torch.allclose(made.variance, y.square().mean(1), atol=near)
    assert torch.allclose(made.second_moment().double(), x.transpose(1, 2) @ x / 300, rtol=1e-6)
    assert torch.allclose(made.explained(True), y.transpose(1, 2) @ r / 300, atol=near)
    assert torch.allclose(made.explained(False), x.transpose(1, 2) @ r / 300, rtol=1e-5, atol=1)
    alone = Gram(products=False)
    alone.add(x[:, :100].to(kind))
    alone.add(x[:, 100:].to(kind))
    assert torch.allclose(alone.variance, made.variance, atol=near) and alone.mean.shape == (2, 5)


def test_rows_are_drawn_one_from_each_stretch_and_never_in_step() -> None:
    at = sampled_rows(1000, 100, 0)
    assert at is not None and at.tolist() == sorted(set(at.tolist())) and len(at) == 100
    assert ((at // 10) == torch.arange(100)).all()
    assert len({int(i) % 10 for i in at}) == 10  # a stride would see one column alone
    assert sampled_rows(100, 100, 0) is None
    again, other = sampled_rows(1000, 100, 0), sampled_rows(1000, 100, 1)
    assert torch.equal(at, again) and not torch.equal(at, other)  # type: ignore[arg-type]
