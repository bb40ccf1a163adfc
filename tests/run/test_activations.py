"""How many samples run at once follows from what their activations take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune import api
from irprune.analysis.layers import layers
from irprune.ir.graph import Graph
from irprune.run import calibration
from irprune.run.activations import activations
from irprune.run.calibration import Calibration
from irprune.run.interpret import evaluate


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 1024), nn.Linear(1024, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    dims = {"x": {0: torch.export.Dim("n")}}
    made: Graph = api.analyse(
        irprune.capture(Wide().eval(), (torch.randn(2, 16),), dynamic_shapes=dims)
    )
    return made


def test_what_is_held_at_once_and_all_of_it(graph: Graph) -> None:
    found = activations(graph, (torch.randn(3, 16),), 3)
    wide = 4 * 1024
    assert 2 * wide <= found.largest < 2 * wide + 200, "the hidden values and their activation"
    assert 2 * wide <= found.total < 2 * wide + 400
    assert found.fitting(9 * wide) == 4 and found.fitting(1) == 1
    assert found.fitting(9 * wide, derived=True) == 4


def test_as_many_samples_run_at_once_as_memory_holds(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(40, 16)
    assert [b.size for b in Calibration(x, graph)] == [40]
    monkeypatch.setattr(calibration, "ACTIVATIONS", 9 * 8400)
    data = Calibration(x, graph)
    assert {b.size for b in data} == {9, 4} and data.count() == 40
    assert torch.equal(torch.cat([b.inputs[0] for b in data]), x)
    assert [b.size for b in data.joined(20)] == [9, 9, 2]
    assert [b.size for b in Calibration(x, graph, batch=4)] == [4] * 10
    assert {b.size for b in Calibration(x, graph, graphs=2)} == {4}  # two run side by side


def test_results_that_the_hook_alone_reads_are_not_kept(graph: Graph) -> None:
    seen = []
    wanted = [layer.node.out for layer in layers(graph)]

    def hook(node, operands, run):  # type: ignore[no-untyped-def]
        made = run(*operands)
        seen.append(node.outputs[0])
        return made

    assert evaluate(graph, [torch.randn(2, 16)], wanted=wanted, hook=hook, keep=False) == []
    assert all(v in seen for v in wanted)
    kept = evaluate(graph, [torch.randn(2, 16)], wanted=wanted)
    assert [tuple(t.shape) for t in kept] == [(2, 1024), (2, 4)]
