"""A graph network: messages are gathered along edges, summed by scatter and weighted by a softmax
over neighbours.

The edge list is data; only features and heads are channels. A layer after Kipf and Welling 2016
(arXiv:1609.02907), then two after Velickovic et al. 2017 (arXiv:1710.10903); the sizes are those of
Cora."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import normal, randomize


class GraphConv(nn.Module):
    """Sums the neighbours' features, normalized by both degrees."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, out)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        x = self.linear(x)
        ones = torch.ones_like(target, dtype=x.dtype)
        degree = torch.zeros_like(x[:, 0]).scatter_add(0, target, ones).clamp(min=1)
        weight = torch.rsqrt(degree[source] * degree[target])
        messages = x.index_select(0, source) * weight.unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, target, messages)


class GraphAttention(nn.Module):
    """[nodes, features] to [nodes, heads * out], or to the mean of the heads."""

    def __init__(self, features: int, out: int, heads: int, mean: bool) -> None:
        super().__init__()
        self.heads = heads
        self.out = out
        self.mean = mean
        self.linear = nn.Linear(features, heads * out, bias=False)
        self.att_source = normal(1, heads, out, std=out**-0.5)
        self.att_target = normal(1, heads, out, std=out**-0.5)
        self.bias = normal(out if mean else heads * out, std=0.1)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        h = self.linear(x).view(-1, self.heads, self.out)
        from_source = (h * self.att_source).sum(-1)
        from_target = (h * self.att_target).sum(-1)
        score = F.leaky_relu(from_source[source] + from_target[target], 0.2)
        index = target.unsqueeze(-1).expand_as(score)
        most = torch.zeros_like(from_target).scatter_reduce(
            0, index, score, "amax", include_self=False
        )
        weight = (score - most[target]).exp()
        total = torch.zeros_like(from_target).scatter_add(0, index, weight)
        weight = weight / total[target].clamp(min=1e-16)
        y = torch.zeros_like(h).index_add(0, target, h[source] * weight.unsqueeze(-1))
        y = y.mean(1) if self.mean else y.flatten(1)
        return y + self.bias


class GraphNet(nn.Module):
    """Node features [nodes, features] and edges [2, edges] to class scores [nodes, classes]."""

    def __init__(self, features: int, width: int, hidden: int, heads: int, classes: int) -> None:
        super().__init__()
        self.conv = GraphConv(features, width)
        self.attention1 = GraphAttention(width, hidden, heads, mean=False)
        self.skip = nn.Linear(width, heads * hidden)
        self.attention2 = GraphAttention(heads * hidden, classes, heads, mean=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index[0], edge_index[1]
        x = F.relu(self.conv(x, source, target))
        x = F.elu(self.attention1(x, source, target) + self.skip(x))
        return self.attention2(x, source, target)


def build(
    small: bool = False,
    features: int = 1433,
    width: int = 64,
    hidden: int = 8,
    heads: int = 8,
    classes: int = 7,
) -> nn.Module:
    if small:
        features, width, hidden, heads, classes = 12, 16, 6, 4, 3
    return randomize(GraphNet(features, width, hidden, heads, classes))


def example_inputs(small: bool = False) -> Inputs:
    nodes, edges, features = (10, 30, 12) if small else (2708, 10556, 1433)
    loops = torch.arange(nodes).expand(2, nodes)
    edge_index = torch.cat((torch.randint(0, nodes, (2, edges)), loops), 1)
    return (torch.randn(nodes, features), edge_index), {}


CASE = Case(
    "gnn",
    ("graph", "several_inputs", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("nodes")}, "edge_index": {1: Dim("edges")}},
    left=0.311,
)
