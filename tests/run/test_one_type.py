"""A module runs in one element type, whatever types its forward names."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from irprune.run.one_type import in_one_type


def test_casts_and_new_tensors_are_of_the_type() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    with in_one_type(torch.float64):
        made = [
            x.half(),
            x.to(torch.bfloat16),
            x.type(torch.FloatTensor),
            x.softmax(-1, dtype=torch.float32),
            x.sum(dtype=torch.float16),
            torch.zeros(3),
            torch.tensor([1.5]),
            torch.ones(2, dtype=torch.bfloat16),
            torch.full_like(x, 0.1, dtype=torch.float32),
        ]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made.append(F.linear(x, x))
        assert torch.fft.rfft(x.float()).dtype == torch.complex128
        assert x.to(torch.int32).dtype == torch.int32
    assert [t.dtype for t in made] == [torch.float64] * len(made)
    assert torch.equal(made[0], x)
    assert torch.zeros(1).dtype == torch.float32 and x.half().dtype == torch.float16


def test_gradients_are_not_rounded_either() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    with in_one_type(torch.float64):
        (x.half() * x.float().softmax(-1)).bfloat16().cumsum(
            0, dtype=torch.float32
        ).sum().backward()
    (y * y.softmax(-1)).cumsum(0).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.grad)  # type: ignore[arg-type]


def test_what_would_round_is_refused() -> None:
    narrow = torch.zeros(3)
    with in_one_type(torch.float64):
        with pytest.raises(RuntimeError, match="bits"):
            torch.ones(3).view(torch.int64)
        with pytest.raises(RuntimeError, match=r"writes to a tensor of torch\.float32"):
            narrow.add_(torch.rand(3))
        wide = torch.zeros(3).add_(narrow)
    assert wide.dtype == torch.float64
