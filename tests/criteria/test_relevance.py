"""Which rows a repair goes by where a model says itself where something is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune import api
from irprune.analysis.layers import layers
from irprune.criteria.relevance import EVEN, Relevance, relevance
from irprune.ir.graph import Graph
from irprune.run.calibration import Calibration
from irprune.run.difference import presence, square_off
from irprune.run.gram import Gram


class Detector(nn.Module):
    """At each place of a picture two places in pixels, and a likelihood that is high where the
    first channel is."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)
        with torch.no_grad():
            self.body.weight[0, 0], self.body.bias[0] = 1.0, 0.0  # type: ignore[index]
            self.head.weight[2].zero_()
            self.head.weight[2, 0] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(torch.relu(self.body(x))).flatten(2)
        return torch.cat((y[:, :2] * 100, torch.sigmoid(2 * y[:, 2:] - 7)), 1)


def pictures(count: int = 24) -> Tensor:
    """Noise with one bright place in each picture."""
    torch.manual_seed(0)
    x = torch.randn(count, 3, 6, 6) * 0.3
    x[:, 0, 2, 3] = 4.0
    return x


def graph_of(model: nn.Module, x: Tensor) -> Graph:
    dims = {"x": {0: torch.export.Dim("n")}}
    graph: Graph = api.analyse(irprune.capture(model.eval(), (x[:2],), dynamic_shapes=dims))
    return graph


def test_what_is_likely_counts() -> None:
    torch.manual_seed(0)
    graph = graph_of(Detector(), x := pictures())
    found = relevance(graph, Calibration(x, graph))
    assert found is not None
    for layer in layers(graph):
        weights = found.weights(layer.node.outputs[0].name, 0)
        assert weights is not None and weights.mean() == pytest.approx(1.0, rel=0.2)
        weights = weights.reshape(24, 36)
        assert weights.mean(0).argmax() == 2 * 6 + 3
        assert (weights.argmax(1) == 2 * 6 + 3).float().mean() > 0.6
        assert weights.min() >= EVEN - 1e-6


def test_of_classes_all_rows_are_alike() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).mean((2, 3)).softmax(-1)

    graph = graph_of(Net(), x := pictures())
    assert relevance(graph, Calibration(x, graph)) is None


def test_rows_are_drawn_as_often_as_they_weigh() -> None:
    rows = torch.tensor([0.0] * 900 + [10.0] * 100)
    found = Relevance({"y": {0: rows}}, {"y": 1.0})
    at, times = found.drawn("y", 0, 1000, 100)
    assert at is not None and times is not None and len(at) == len(at.unique())
    share = times[at >= 900].sum() / times.sum()
    assert share == pytest.approx(9.1 * 100 / (9.1 * 100 + 0.1 * 900), abs=0.03)
    assert times.sum() == pytest.approx(100, abs=1)
    at, times = found.drawn("y", 0, 1000, 2000)
    assert at is None and times is not None and times.sum() == pytest.approx(2000, rel=1e-3)
    at, times = found.drawn("z", 0, 1000, 100)
    assert at is not None and len(at) == 100 and times is None


def test_a_row_that_weighs_twice_counts_as_two() -> None:
    torch.manual_seed(0)
    x, r = torch.randn(2, 30, 5), torch.randn(2, 30, 3)
    times = torch.randint(1, 4, (30,))
    twice, once = Gram(), Gram()
    twice.add(x, r, times.float())
    once.add(x.repeat_interleave(times, 1), r.repeat_interleave(times, 1))
    assert twice.count == once.count
    for name in ("mean", "variance", "target"):
        assert torch.allclose(getattr(twice, name), getattr(once, name), atol=1e-5), name
    assert torch.allclose(twice.second_moment(), once.second_moment(), atol=1e-5)
    assert torch.allclose(twice.explained(True), once.explained(True), atol=1e-5)


def test_quantities_count_where_something_is() -> None:
    """Places in pixels that are off where nothing is are no error."""
    theirs = torch.tensor([[[100.0, 300.0], [0.9, 0.0]]])
    there, elsewhere = theirs.clone(), theirs.clone()
    there[0, 0, 0] += 50
    elsewhere[0, 0, 1] += 50
    unit = torch.tensor([[[100.0], [1.0]]])
    counts = presence(theirs, 1)
    assert counts is not None and counts.tolist() == [[[pytest.approx(1.8), 0.0], [1.0, 1.0]]]
    assert square_off(elsewhere, theirs, unit, 1)[0] == 0.0
    assert square_off(there, theirs, unit, 1)[0] == pytest.approx(1.8 * 0.25)
    assert square_off(elsewhere, theirs, unit)[0] == pytest.approx(0.25)
    assert presence(theirs[:, 1:], 1) is None and presence(theirs[:, :1], 1) is None
