"""A user's file for the command line, and what a refusal looks like."""

from __future__ import annotations

NET = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, wide):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, wide), nn.Linear(wide, width), nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(Block(8, 12) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build():
    return Net()


def example_inputs():
    return (torch.randn(5, 6),)


def with_nan():
    net = Net()
    with torch.no_grad():
        net.head.weight[1, 1] = float("nan")
    return net


class Branch(nn.Module):
    def forward(self, x):
        if float(x.sum()) > 0:
            return x
        return -x


def branch():
    return Branch()


class Cond(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: -x, (x,))


def cond():
    return Cond()


def fails():
    raise RuntimeError("no such\\nweights")


def needs(path):
    return Net()
"""

Result = tuple[int, str, str]


def refused(result: Result, code: int, *texts: str) -> None:
    """Exit code, nothing on stdout, one line on stderr beside the talk, with the texts in it."""
    assert result[0] == code, result
    assert result[1] == ""
    lines = [x for x in result[2].splitlines() if not x.startswith("pruning ")]
    assert len(lines) == 1 and lines[0].startswith("irprune"), result[2]
    for text in texts:
        assert text in lines[0], lines[0]


def line_of(text: str) -> int:
    """Where ``text`` stands in the user's file."""
    return next(i for i, line in enumerate(NET.splitlines(), 1) if text in line)
