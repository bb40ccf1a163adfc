"""Models that repairs are tried on, analysed and cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irprune import api
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.run.statistics import load_as


def captured(model: nn.Module, *args: Tensor) -> Graph:
    return api.analyse(api.capture(model, args))


def dropped(graph: Graph, groups: dict[str, Sequence[int]]) -> Graph:
    """The graph cut to the given kept indices of groups, named by a member."""
    chosen = {}
    for name, kept in groups.items():
        axis = next(g.axis for g in api.groups(graph) if name in map(str, g.members))
        chosen[axis] = np.asarray(kept)
    graph.kept = Selection(chosen)
    return api.cut_graph(graph)


def halved(graph: Graph) -> Graph:
    graph.kept = Selection({g.axis: range(0, g.size, 2) for g in api.groups(graph) if not g.frozen})
    return api.cut_graph(graph)


DRAW = torch.Generator().manual_seed(3)


def inputs(count: int) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=DRAW)


# -- least squares ---------------------------------------------------------------------------------


def redundant(conv: bool = False) -> nn.Module:
    """Eight hidden channels of which the odd ones are mixtures of the even ones: half of them say
    everything."""
    mix = torch.randn(4, 4)
    model = (
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3))
        if conv
        else nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    )
    with torch.no_grad():
        for p in (model[0].weight, model[0].bias):
            p[1::2] = torch.einsum("ij,j...->i...", mix, p[::2])
    return model.eval()


class Net(nn.Module):
    """A residual block with batch norm, a grouped and a depthwise convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 16, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.back = nn.ConvTranspose2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.norm2(self.wide(F.relu(self.deep(x)))))
        return self.head((x + self.back(y)).mean((2, 3)))


def trained_statistics() -> Net:
    net = Net()
    for norm in (net.norm, net.norm2):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = None
    net.train()(torch.randn(256, 2, 6, 6))
    return net.eval()


def weights_of(graph: Graph) -> dict[str, Tensor]:
    return {n: load_as(w) for n, w in graph.weights.items()}
