"""Rows that hold numbers taken for pairs: what lies beside them keeps an even count."""

import pytest
import torch
from torch import nn

import irprune
from irprune.errors import CheckFailed
from irprune.passes import choose


class Rotated(nn.Module):
    """Queries of three heads, of which the last four numbers are turned as two complex ones."""

    def __init__(self, copied=False):
        super().__init__()
        self.copied = copied
        self.queries = nn.Linear(8, 3 * 10)
        self.out = nn.Linear(3 * 10, 5)

    def forward(self, x):
        plain, turned = torch.split(self.queries(x).view(-1, 3, 10), [6, 4], -1)
        turned = turned.contiguous() if self.copied else turned
        pairs = torch.view_as_complex(turned.reshape(-1, 3, 2, 2))
        turned = torch.view_as_real(pairs * torch.polar(torch.ones(2), torch.arange(2.0)))
        return self.out(torch.cat((plain, turned.flatten(2)), -1).flatten(1))


def plain_width(pruned):
    return pruned.module.state_dict()["queries.weight"].shape[0] // 3 - 4


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.35, 0.5, 0.8])
def test_pieces_beside_pairs_keep_even_counts(ratio):
    pruned = irprune.prune(Rotated(), torch.randn(2, 8), ratio=ratio, prefer="head_dim")
    assert pruned.report.proof.passed
    assert plain_width(pruned) % 2 == 0


RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)


def test_copies_may_have_any_count():
    widths = set()
    for ratio in RATIOS:
        pruned = irprune.prune(
            Rotated(copied=True), torch.randn(2, 8), ratio=ratio, prefer="head_dim"
        )
        assert pruned.report.proof.passed
        widths.add(plain_width(pruned))
    assert any(width % 2 for width in widths)


def test_odd_counts_stop_torch(monkeypatch):
    monkeypatch.setattr(choose, "even_leaves", lambda graph: [])

    def every():
        for ratio in RATIOS:
            irprune.prune(Rotated(), torch.randn(2, 8), ratio=ratio, prefer="head_dim")

    with pytest.raises(CheckFailed, match="stops where the original runs"):
        every()
