"""The proof holds the captured graph to the user's own forward, and leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune.errors import CheckFailed
from irprune.ir.graph import Graph


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.last = nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.seen = 1
        x.mul_(1.5)
        return self.last(self.first(x).relu())


def test_capture_is_proven_and_the_model_is_as_before() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(3, 8)
    before = x.clone()
    pruned = irprune.prune(model, (x,))
    proof = pruned.report.proof
    assert proof is not None
    assert proof.capture_error is not None
    assert proof.capture_error <= 1e-6
    assert proof.passes == 13
    assert model.calls == 0
    assert not hasattr(model, "seen")
    assert torch.equal(x, before)


def test_a_wrong_capture_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    from irprune import api

    right = api.capture

    def wrong(*args: Any, **kwargs: Any) -> Graph:
        graph = right(*args, **kwargs)
        node = next(n for n in graph.nodes if n.op == "relu")
        # What oracle and module then agree on
        node.op, node.origin.target = (
            "tanh",
            "aten.tanh.default",
        )
        return graph

    monkeypatch.setattr("irprune.api.calls.capture", wrong)
    torch.manual_seed(0)
    with pytest.raises(CheckFailed, match="captured graph differs from forward"):
        api.prune(Net(), (torch.randn(3, 8),))


def test_random_numbers_in_forward_are_the_same_for_both() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(h + torch.rand(h.shape[:-1] + (1,)))

    torch.manual_seed(0)
    pruned = irprune.prune(Noisy(), (torch.randn(3, 8),), proof=False)
    from irprune.validate.proof import _captured

    _, error = _captured(pruned.graph, (pruned.graph.source.args, {}), 0)
    assert error <= 1e-6


class Noise(Net):
    """Noise of the width of a hidden layer, with and without an operand to take the shape from."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + torch.randn(h.shape) * torch.rand_like(h)
        return self.last(h + torch.empty_like(h).uniform_(0, 2))


def test_random_numbers_of_a_cut_width_are_those_of_the_channels_that_are_left() -> None:
    torch.manual_seed(0)
    model, x = Noise(), torch.randn(3, 8)
    pruned = irprune.prune(model, (x,))
    assert pruned.report.proof is not None
    assert pruned.report.proof.max_error <= 1e-6
    assert pruned.module.first.weight.shape == (8, 8)
    (kept,) = [k for k in pruned.kept["last.weight"] if k is not None]
    with torch.no_grad():
        model.last.weight[:, [i for i in range(16) if i not in kept]] = 0
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        assert torch.allclose(pruned.module(x), expected, atol=1e-6)
