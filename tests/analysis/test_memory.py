"""What a model takes in memory and what ranks send, beside counts made by hand and by torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irprune

WIDTH, HEADS, GROUPS, INNER, BATCH, LENGTH = 32, 4, 2, 64, 2, 7


class Block(nn.Module):
    """Attention whose heads share keys and values in pairs, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        narrow = WIDTH // HEADS * GROUPS
        self.q, self.k, self.v = (nn.Linear(WIDTH, n) for n in (WIDTH, narrow, narrow))
        self.o, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(b, n, HEADS, -1).transpose(1, 2)
        k, v = (f(y).view(b, n, GROUPS, -1).transpose(1, 2) for f in (self.k, self.v))
        k, v = (t.repeat_interleave(HEADS // GROUPS, 1) for t in (k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.o(a.reshape(b, n, -1))
        return x + self.down(F.gelu(self.up(x)))


@pytest.fixture(scope="module")
def pruned() -> irprune.Pruned:
    torch.manual_seed(0)
    net = nn.Sequential(Block(), Block())
    for p in net[0].norm.parameters():
        p.requires_grad_(False)
    return irprune.prune(net, (torch.randn(BATCH, LENGTH, WIDTH),), ratio=0.5)


def test_gradients_and_moments_are_those_that_torch_makes(pruned: irprune.Pruned) -> None:
    module = pruned.module.train()
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(BATCH, LENGTH, WIDTH)).sum().backward()
    optimizer.step()
    found = pruned.report.memory
    held = [p.grad.nbytes for p in module.parameters() if p.grad is not None]
    moments = [
        t.nbytes for s in optimizer.state.values() for k, t in s.items() if k.startswith("exp_avg")
    ]
    assert found["gradients"].after == sum(held)
    assert found["optimizer"].after == sum(moments)
    assert found["weights"].after == sum(p.nbytes for p in module.parameters())
    assert found["gradients"].after < found["gradients"].before < found["weights"].before


def test_the_cache_holds_shared_heads_once(pruned: irprune.Pruned) -> None:
    """Keys and values of 2 blocks in float32."""
    cache = pruned.report.memory["cache"]
    assert cache.before == 2 * 2 * (GROUPS * WIDTH // HEADS) * 4
    state = pruned.module.state_dict()
    widths = [state[f"{i}.{name}.weight"].shape[0] for i in range(2) for name in ("k", "v")]
    assert cache.after == sum(widths) * 4 < cache.before


def test_saved_results_bound_what_the_backward_pass_holds(pruned: irprune.Pruned) -> None:
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in pruned.module.parameters()}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        made = pruned.module.train()(torch.randn(BATCH, LENGTH, WIDTH))
    assert made.requires_grad
    saved = pruned.report.memory["saved"]
    assert 0.5 * sum(held.values()) < saved.after < 4 * sum(held.values())
    assert saved.after < saved.before


def test_what_ranks_send(pruned: irprune.Pruned) -> None:
    report = pruned.report
    gradients = report.memory["gradients"]
    for when in ("before", "after"):
        sent: dict[str, Any] = {k: getattr(c, when) for k, c in report.communication.items()}
        trained = getattr(gradients, when)
        assert sent["ddp"] == 2 * trained and sent["fsdp"] == 3 * trained
        # two layers in each of 2 blocks close on the whole width, forward and backward
        assert sent["tensor"] == 2 * 2 * 4 * BATCH * LENGTH * WIDTH * 4


def test_the_report_has_them_as_data(pruned: irprune.Pruned) -> None:
    data = pruned.report.as_dict()
    assert set(data["memory"]) == {
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "saved",
        "cache",
    }
    assert data["memory"]["cache"]["after"] == pruned.report.memory["cache"].after
    assert set(data["communication"]) == {"ddp", "fsdp", "tensor"}
