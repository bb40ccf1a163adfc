"""Writes in place through views: what else shows the storage is read as torch reads it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune.frontend.torch import trace as tracing
from irprune.frontend.torch.declined import Declined
from irprune.run.interpret import evaluate


def _columns(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:4] += 1
    y[:, :2] *= y[:, 3:5]
    return y


def _rows_of_a_transpose(x: Tensor) -> Tensor:
    y = x.relu()
    z = y.t()
    z[2] = 5.0
    y[0].fill_(-1.0)
    return y + z.t()


def _nested(x: Tensor) -> Tensor:
    y = x + 0
    block = y.view(3, 2, 4).transpose(1, 2)
    block[1:, 2].mul_(3.0)
    first, second = y.split([5, 3], dim=1)
    second.sub_(first[:, :3])
    for row in y.unbind(0):
        row[-1] = row[0] + row[6]
    return block.sum() + y


def _both_ways(x: Tensor) -> Tensor:
    y = x.clone()
    a, b = y[:, ::2], y.flatten()[6:20]
    a.add_(1)
    b.mul_(2)
    a.add_(b.sum())
    return torch.cat([y.flatten(), a.flatten(), b])


def _masked(x: Tensor) -> Tensor:
    y = x * 1
    y.unsqueeze(1).squeeze(1).narrow(1, 2, 3)[torch.ones(3, 3).tril() == 0] = -7.0
    chunks = y.chunk(3, dim=-1)
    chunks[1].copy_(chunks[0])
    return y.permute(1, 0).reshape(4, 6) + y.reshape(4, 6)


def _copied(x: Tensor) -> Tensor:
    y = x.relu()
    z = y.t().reshape(-1)  # a copy, as the transpose is not contiguous: it does not see the write
    y[0] = 3.0
    return z.sum() + y


def _reshaped_in_place(x: Tensor) -> Tensor:
    y = x.relu()
    before, row = y[:, 2:6], y[1]
    y.unsqueeze_(1)
    before.mul_(3.0)  # what y shows has another shape, and is the same storage
    after = y[:, 0]
    after[:, 5:].add_(1.0)
    y.squeeze_(1).t_()
    y[0] = row[0]
    return y.transpose_(0, 1) + before.sum() + after


def _view_reshaped_in_place(x: Tensor) -> Tensor:
    y = x * 2
    block = y.view(-1, 2, 4)
    half = block.unsqueeze_(0)[..., :2]
    half.mul_(-1.0)
    return y + block.squeeze_(0).swapaxes_(1, 2).sum((1, 2))[:, None]


CASES = (
    _columns,
    _rows_of_a_transpose,
    _nested,
    _both_ways,
    _masked,
    _copied,
    _reshaped_in_place,
    _view_reshaped_in_place,
)


class Reshaping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze_(0) * 2


class Written(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.change = nn.Linear(5, 8), nn.Linear(8, 4), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.first(x))


@pytest.mark.parametrize("change", CASES)
def test_a_trace_computes_what_forward_does(change: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Written(change)
    graph = tracing.trace(model, (torch.randn(3, 5),))
    x = torch.randn(3, 5)
    with torch.no_grad():
        assert torch.allclose(evaluate(graph, [x])[0], model(x), atol=1e-6)


@pytest.mark.parametrize("change", [_reshaped_in_place, _view_reshaped_in_place])
def test_what_is_reshaped_in_place_leaves_the_batch_open(
    change: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model = Written(change).eval()
    module = irprune.prune(model, (torch.randn(3, 5),), ratio=0.0).module
    for batch in (3, 2, 7):
        x = torch.randn(batch, 5)
        with torch.no_grad():
            assert torch.allclose(module(x), model(x), atol=1e-6)


def test_an_input_that_is_reshaped_in_place_is_not_traced() -> None:
    """The caller's own tensor would have another shape afterwards."""
    with pytest.raises(Declined, match="changes the shape of its tensor"):
        tracing.trace(Reshaping(), (torch.randn(3, 5),))


def test_without_a_view_read_afterwards_nothing_is_added() -> None:
    def halved(x: Tensor) -> Tensor:
        y = x * 2
        y[:, :4].relu_()
        y.div_(2)
        return y + 1

    graph = tracing.trace(Written(lambda x: (x * 2).div_(2).relu_()), (torch.randn(3, 5),))
    assert [n.op for n in graph.nodes] == ["linear", "mul", "div", "relu"]
    graph = tracing.trace(Written(halved), (torch.randn(3, 5),))
    assert [n.op for n in graph.nodes][-4:] == ["relu", "slice_scatter", "div", "add"]


def test_what_shows_several_places_twice_is_declined() -> None:
    def change(x: Tensor) -> Tensor:
        y = x * 2
        y.diagonal().add_(1)
        return y

    with pytest.raises(Declined, match="changed in place, and the tensor is read afterwards"):
        tracing.trace(Written(change), (torch.randn(3, 5),))
    assert irprune.prune(Written(change), (torch.randn(3, 5),)).report.proof.passed  # type: ignore[union-attr]


class Branching(nn.Module):
    """A mask of ones that is written through a view, and a branch on what then stands in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.global_, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_ones(3, 6)
        mask[:, 4:] = 0
        h = self.first(x)
        if (mask > 1).any().item():
            h = self.global_(h)
        return self.last(h * mask.sum(1, keepdim=True))


def test_a_branch_that_follows_from_constants_written_through_a_view_is_decided() -> None:
    torch.manual_seed(0)
    model, x = Branching(), torch.randn(3, 5)
    pruned = irprune.prune(model, (x,), ratio=0.5)
    assert pruned.report.proof is not None
    assert pruned.report.proof.passed
    assert "global_.weight" not in pruned.kept
    assert pruned.module(x).shape == (3, 4)
