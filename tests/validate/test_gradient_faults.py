"""Faults in gradients alone: what a module computes is right, and it would train as another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune.validate.gradient_proof import Gradients, prove_gradients


class Net(nn.Module):
    """Two layers; with ``names`` forward names the type that it computes in."""

    def __init__(self, names: bool) -> None:
        super().__init__()
        self.a, self.b, self.names = nn.Linear(6, 12), nn.Linear(12, 4), names

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b(h.to(torch.float32) if self.names else h)


class Off(torch.autograd.Function):
    """The identity, whose gradient is off by a share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * (1 + ctx.share), None


class Faulty(nn.Linear):
    """A linear layer of which one row's gradient is off."""

    share = 0.0

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat([Off.apply(self.weight[:1], self.share), self.weight[1:]])
        return nn.functional.linear(x, rows, self.bias)


@pytest.mark.parametrize("names", [False, True], ids=["any type", "names float32"])
@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-2, 1e-1])
def test_a_gradient_that_is_off_by_a_share_is_seen(share: float, names: bool) -> None:
    torch.manual_seed(0)
    pruned = irprune.prune(Net(names).eval(), (torch.randn(5, 6),), ratio=0.5)
    module: Any = pruned.module
    faulty = Faulty(6, module.a.out_features)
    faulty.load_state_dict(module.a.state_dict())
    faulty.share = share
    module.a = faulty
    found = prove_gradients(pruned.graph, module)
    assert isinstance(found, Gradients)
    assert found.passed == (share == 0)
    if share:
        assert found.worst == "a.weight"
        assert share / 100 < found.error < share * 2
