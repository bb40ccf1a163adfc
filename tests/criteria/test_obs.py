"""The surgeon: what it says a layer loses is what the best refit leaves, however inputs lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune import api
from irprune.analysis.layers import layers
from irprune.criteria.consumers import Reader, readers
from irprune.criteria.obs import Surgeon
from irprune.criteria.readings import Reading, Readings, key_of
from irprune.run.calibration import Calibration
from irprune.run.interpret import evaluate


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


CHANNELS = ((0, 1, 2, -1, 0, 1), (-1, 3, 2, 2, 2, 0))  # which index each channel belongs to


def reader_of(x: Tensor) -> tuple[Any, Reader, Reading]:
    """A grouped convolution whose blocks hold unlike numbers of channels of an index."""
    model = nn.Sequential(nn.Conv2d(2, 12, 1), nn.ReLU(), nn.Conv2d(12, 6, 2, groups=2, bias=False))
    graph = api.analyse(api.capture(model.double().eval(), (x[:2],)))
    layer = next(each for each in layers(graph) if each.weight.name == "2.weight")
    owner = np.repeat(np.array(CHANNELS), 4, axis=1)
    read = Readings(graph, Calibration(x, graph)).of([layer], products=True)
    return graph, Reader(layer, owner, (4,)), read[key_of(layer)]


def rows_of(graph: Any, reader: Reader, x: Tensor) -> tuple[Tensor, Tensor]:
    """All that the layer reads [b, n, k], and its weight."""
    (value,) = evaluate(graph, [x], wanted=[reader.layer.node.operand(reader.layer.at)])
    rows = reader.layer.rows(value.double()).transpose(0, 1)
    weight = reader.layer.weight.load().detach()
    return rows, reader.layer.matrix(weight).double()


@pytest.mark.parametrize("gone", [[2], [0, 3], [3, 1, 0]])
def test_losses_and_refits_are_those_of_least_squares(gone: list[int]) -> None:
    x = torch.randn(24, 2, 5, 5).double()
    graph, reader, reading = reader_of(x)
    surgeon = Surgeon(reader, reading, 1e-10)
    rows, weight = rows_of(graph, reader, x)
    whole = rows @ weight
    energy = float(whole.square().sum())

    def best(without: list[int]) -> tuple[Tensor, float]:
        refitted, left = torch.zeros_like(weight), 0.0
        for b in range(len(rows)):
            keep = torch.from_numpy(~np.isin(reader.owner[b], without))
            made = torch.linalg.pinv(rows[b][:, keep], rtol=1e-9) @ whole[b]
            refitted[b][keep] = made
            left += float((whole[b] - rows[b][:, keep] @ made).square().sum())
        return refitted, left / energy

    surgeon.drop(gone)
    refitted, error = best(gone)
    for b in range(len(rows)):  # copies of one activation share its weight as they like
        assert torch.allclose(rows[b] @ surgeon.weight()[b], rows[b] @ refitted[b], atol=1e-5)
    losses = surgeon.losses()
    for i in range(4):
        more = 0.0 if i in gone else best([*gone, i])[1] - error
        assert losses[i] == pytest.approx(more, abs=1e-6)
    assert losses[[i for i in range(4) if i not in gone]].min() > 1e-4


def test_layers_that_project_one_value_share_its_products() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(4))
            self.c = nn.Linear(6, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.q(y) * self.k(y) + self.v(y) + self.c(y).sum(-1, keepdim=True)

    x = torch.randn(64, 6)
    graph = api.analyse(api.capture(Three().eval(), (x[:2],)))
    (found,) = [g for g in api.groups(graph) if "a.weight:0" in map(str, g.members)]
    reading = [r.layer for r in readers(graph, [found], {})[found.axis]]
    readings = Readings(graph, Calibration(x, graph))
    read = list(readings.of(reading, products=True).values())
    assert len(read) == 4 and len(readings._held) == 1
    assert read[0].inverse(1e-2) is read[1].inverse(1e-2) is not read[3].inverse(1e-2)


def test_what_is_constant_on_the_data_but_far_from_zero_is_scored() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.a(x) * 1e-9 + 3.0))))

    x = torch.randn(64, 8)
    made = irprune.prune(Dead().eval(), (x[:2],), budget={"params": 0.5}, calibration=x)
    assert made.report.params.after <= 0.5 * made.report.params.before
    assert made.report.repair is not None and made.report.repair.after < 0.05
