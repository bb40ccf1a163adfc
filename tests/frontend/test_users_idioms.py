"""What users write in forward: right at other sizes, and with as much open and cut as can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irprune


class Net(nn.Module):
    """Two layers with ``between`` them, over the last dimension."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(6, 12), nn.Linear(12, 4), between
        self.token = nn.Parameter(torch.randn(12))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)).relu())


def net(between: Callable[[Any, Tensor], Tensor]) -> Net:
    torch.manual_seed(0)
    return Net(between).eval()


def patches(net: Net, h: Tensor) -> Tensor:
    n, s, c = h.shape
    p = h.reshape(n, s // 4, 4, c).permute(0, 2, 1, 3).reshape(n, 4 * (s // 4), -1)
    return p.reshape(n, 4, s // 4, c).permute(0, 2, 1, 3).reshape(n, s, c)


def multiples(net: Net, h: Tensor) -> Tensor:
    assert h.shape[1] % 4 == 0
    return h.view(h.shape[0], h.shape[1] // 4, 4, -1).cumsum(2).flatten(1, 2)


def counted(net: Net, h: Tensor) -> Tensor:
    net.calls += 1
    net.seen.mul_(0.5)
    return h - net.seen


def above(net: Net, h: Tensor) -> Tensor:
    h[h > 0.5] = 0.25
    return h


def tokens(net: Net, h: Tensor) -> Tensor:
    h[:, ::3] = net.token
    h[h.sum(-1) > 1] = net.token
    return h


def experts(net: Net, h: Tensor) -> Tensor:
    flat = h.reshape(-1, 12)
    best = flat.detach()[:, :3].argmax(-1)
    out = torch.zeros_like(flat)
    for e in range(3):
        (at,) = torch.where(best == e)
        out.index_add_(0, at, flat[at] * (e + 0.5))
    return out.view_as(h)


WAYS = [patches, multiples, counted, above, tokens, experts]
X = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(3))
LARGER = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
def test_other_sizes_are_the_model_s(way: Callable[[Any, Tensor], Tensor]) -> None:
    pruned = irprune.prune(net(way), (X,), ratio=0)
    torch.testing.assert_close(pruned.module(LARGER), net(way)(LARGER))


# What experts choose by, and a sum over channels that decides, hold theirs
@pytest.mark.parametrize("way", [patches, multiples, counted, above, tokens])
def test_half_is_cut_and_proven_at_other_sizes(way: Callable[[Any, Tensor], Tensor]) -> None:
    model = net(way)
    proof: Any = irprune.prune(model, (X,), ratio=0.5)
    assert proof.report.params.left < 0.75
    assert proof.report.proof.passed and proof.report.proof.other_sizes
    assert not model.calls and not model.seen.any()
    changes = [n for n in proof.report.notes if "the change is not part of the pruned model" in n]
    assert len(changes) == (2 if way is counted else 0)


def test_what_does_not_divide_is_refused() -> None:
    pruned = irprune.prune(net(multiples), (X,), ratio=0.5)
    with pytest.raises(ValueError, match=r"dimension 1 .*test_users_idioms\.py:\d+"):
        pruned.module(torch.randn(2, 10, 6))


def test_a_branch_of_torch_s_goes_as_the_example_does() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            return self.b(torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v - 1, (h,)))

    torch.manual_seed(0)
    pruned = irprune.prune(Branches().eval(), (X.abs(),), ratio=0.5)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    pruned.module(LARGER.abs())
    with pytest.raises(ValueError, match=r"goes by values at test_users_idioms\.py"):
        pruned.module(-X.abs())


def test_a_number_that_cancels_is_no_fault() -> None:
    """The logarithm of the determinant of a rotation is the rounding of larger numbers."""

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.linalg.qr(torch.randn(16, 16))[0])
            self.n = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = (x @ self.w).chunk(2, -1)
            return torch.cat([a, b + self.n(a)], -1), torch.linalg.slogdet(self.w)[1]

    torch.manual_seed(0)
    proof = irprune.prune(Flow().eval(), (torch.randn(4, 16),), ratio=0.5).report.proof
    assert proof is not None and proof.passed


def chosen_by_mask(net: Net, h: Tensor) -> Tensor:
    return torch.cat([h[..., net.even], h[..., torch.arange(12, device=h.device) % 2 == 1]], -1)


def test_a_mask_that_is_stored_picks_at_every_size() -> None:
    """How many it picks follows from what is stored, as it does for a list of indices."""
    model = net(chosen_by_mask)
    model.register_buffer("even", torch.arange(12) % 2 == 0)
    x = torch.randn(2, 3, 6)
    graph = irprune.capture(model, (x,), method="trace")
    assert all(not isinstance(s, int) for s in graph.inputs[0].shape[:2])
    pruned = irprune.prune(model, (x,), ratio=0.5)
    other = torch.randn(5, 1, 6)
    assert pruned.report.params.left < 0.9 and pruned.module(other).shape == (5, 1, 4)
    whole = irprune.prune(model, (x,), ratio=0.0).module
    assert torch.allclose(whole(other), model(other), atol=1e-6)


def test_a_mask_of_the_input_picks_as_many_as_it_says() -> None:
    model = net(lambda net, h: h[h.sum(-1) > 0])
    x = torch.randn(2, 3, 6)
    module = irprune.prune(model, (x,), ratio=0.0).module
    for seed in range(3):
        torch.manual_seed(seed)
        other = torch.randn(2, 3, 6)
        assert torch.allclose(module(other), model(other), atol=1e-6)


def test_a_layer_that_is_mapped_over_the_batch_is_cut() -> None:
    """torch.export leaves transforms of torch.func in its program."""
    model = net(lambda net, h: h)
    model.between = lambda net, h: torch.vmap(lambda row: row * net.token)(h)  # type: ignore[method-assign]
    x = torch.randn(2, 6)
    pruned = irprune.prune(model, (x,), ratio=0.5)
    assert pruned.report.proof is not None and pruned.report.params.left < 0.6
    whole = irprune.prune(model, (x,), ratio=0.0).module
    assert torch.allclose(whole(x), model(x), atol=1e-6)
