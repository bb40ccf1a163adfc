"""Choices given index by index: they are met exactly, and what cannot be met says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from irprune import api
from irprune.choice.exact import choose_exactly
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.run.take import kept_indices


class Attention(nn.Module):
    """Four heads of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(b, n, 32))


def attention() -> Graph:
    torch.manual_seed(0)
    return api.analyse(api.capture(Attention().eval(), (torch.randn(2, 5, 32),)))


def convolutions() -> Graph:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6, 4)
    )
    return api.analyse(api.capture(net.eval(), (torch.randn(2, 3, 5, 5),)))


def kept(graph: Graph, name: str, dim: int) -> list[int]:
    assert graph.kept is not None
    found = kept_indices(graph.weights[name], graph.kept)[dim]
    size = graph.weights[name].shape[dim]
    return list(range(int(str(size)))) if found is None else np.asarray(found).reshape(-1).tolist()


def test_what_is_named_is_kept_and_all_else_is_whole() -> None:
    graph = convolutions()
    choose_exactly(graph, {"2.weight:1": [7, 0, 3]})
    assert kept(graph, "0.weight", 0) == kept(graph, "2.weight", 1) == [0, 3, 7]
    assert kept(graph, "1.running_var", 0) == [0, 3, 7]
    assert kept(graph, "4.weight", 1) == list(range(6))


def test_truths_are_indices_too() -> None:
    graph = convolutions()
    choose_exactly(graph, {"0.weight:0": np.arange(8) % 2 == 0})
    assert kept(graph, "2.weight", 1) == [0, 2, 4, 6]


def test_two_entries_may_say_the_same() -> None:
    graph = convolutions()
    choose_exactly(graph, {"0.weight:0": [1, 2], "2.weight:1": [2, 1], "4.weight:1": [5]})
    assert kept(graph, "0.bias", 0) == [1, 2]
    assert kept(graph, "2.weight", 0) == [5]


def test_whole_heads() -> None:
    graph = attention()
    rows = [h * 8 + i for h in (0, 3) for i in range(8)]
    choose_exactly(graph, {"out.weight:1": rows})
    assert kept(graph, "qkv.weight", 0) == [part * 32 + r for part in range(3) for r in rows]


def test_other_indices_in_each_head() -> None:
    graph = attention()
    rows = [h * 8 + (h + i) % 8 for h in range(4) for i in range(5)]
    choose_exactly(graph, {"out.weight:1": rows})
    assert kept(graph, "qkv.weight", 0)[-20:] == [64 + r for r in sorted(rows)]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"0.weight:0": [1, 8]}, "give different whole numbers from 0 to 7"),
        ({"0.weight:0": [1, 1]}, "give different whole numbers"),
        ({"0.weight:0": [-1]}, "give different whole numbers"),
        ({"0.weight:0": [0.5]}, "give different whole numbers"),
        ({"0.weight:0": []}, "keeps nothing"),
        ({"0.weigth:0": [1]}, "near matches: 0.weight"),
        ({"0.weight": [1]}, "no dimension of a weight"),
        ({"0.weight:7": [1]}, "it has 4, of sizes"),
        ({"4.weight:0": [1]}, "graph output"),
        ({"0.weight:0": [1], "2.weight:1": [2]}, "'0.weight:0' and '2.weight:1' keep different"),
    ],
)
def test_what_cannot_be_kept_is_refused(wanted: Mapping[str, Any], message: str) -> None:
    with pytest.raises(IrpruneError, match=message):
        choose_exactly(convolutions(), wanted)


def test_a_part_of_what_goes_together_is_refused() -> None:
    rows = [i for i in range(96) if i != 40]  # a row of k whose q and v stay
    with pytest.raises(IrpruneError, match=r"in different blocks|only together"):
        choose_exactly(attention(), {"qkv.weight:0": rows})
