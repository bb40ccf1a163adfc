"""Scores in units of what the outputs lose: they add up to errors that a repaired cut has, whatever
the group and the criterion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune import api
from irprune.analysis.layers import layers
from irprune.criteria.measured import LEVELS, OFTEN, RUNS, Probe, affordable, scaled
from irprune.criteria.readings import Readings, key_of, readings_of
from irprune.errors import IrpruneError
from irprune.ir.graph import Weight
from irprune.ir.selection import Selection
from irprune.passes.choose import Choose
from irprune.passes.score import Score
from irprune.run.calibration import Calibration


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Branches(nn.Module):
    """Two branches of the same shape, of which the second counts ``loud`` times as much."""

    def __init__(self, loud: float) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 12)) for _ in range(2)
        )
        self.loud = loud

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) * self.loud


class Heads(nn.Module):
    """Attention of four heads and a gated unit behind it, each added to what comes in."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 64), nn.Linear(64, d)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        return x + self.down(F.gelu(self.up(x)))


class Attention(nn.Module):
    """Queries and keys, which no layer reads: they meet each other."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (
            layer(x).view(n, t, 4, d // 4).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


def scores(
    model: nn.Module, x: Tensor, **options: Any
) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    graph = api.analyse(api.capture(model.eval(), (x[:2],)))
    Score(calibration=x, normalise="measured", **options).run(graph)
    return graph, {
        g.name: graph.scores[g.axis] for g in api.groups(graph) if g.axis in graph.scores
    }


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.lists(st.floats(0, 9, allow_subnormal=False), min_size=4, max_size=12),
    st.lists(st.floats(0, 5, allow_subnormal=False), min_size=2, max_size=2),
)
def test_scaling_keeps_the_order_and_reaches_the_errors(
    blocks: int, row: list[float], errors: list[float]
) -> None:
    s = np.stack([np.roll(row, k) for k in range(blocks)]) if blocks > 1 else np.asarray(row)
    first, second = sorted(errors)
    known = [(1, first), (len(row) // 2 + 1, first + second)]
    out = scaled(s, known)
    order = np.argsort(s, axis=-1, kind="stable")
    ranked = np.take_along_axis(out, order, -1)
    assert (np.diff(ranked, axis=-1) >= 0).all() and out.shape == s.shape
    mean = ranked.reshape(-1, len(row)).mean(0)
    for count, error in known:
        assert mean[:count].sum() >= error * (1 - 1e-9)
    assert np.isclose(mean[0], first)


def test_errors_that_fall_are_taken_as_their_mean() -> None:
    even = np.ones(9)
    out = scaled(even, [(3, 0.5), (6, 8.0), (9, 4.0)])
    assert np.cumsum(out)[[2, 5]] == pytest.approx([0.5, 6.0])
    assert scaled(even, [(3, 4.0), (6, 1.0), (9, 1.0)])[:3].sum() == pytest.approx(2.0)


def test_what_is_measured_costs_no_more_than_the_runs_it_may() -> None:
    assert affordable(4, 256) == (LEVELS[0], 32)
    for groups, samples in ((12, 256), (30, 128), (60, 256)):
        levels, count = affordable(groups, samples)
        cost = len(levels) * (8 + OFTEN * (count - 8))  # of a group whose reader comes first
        assert 8 <= count <= 32 and groups / 2 * cost <= RUNS * samples
    assert affordable(30, 128) == (LEVELS[-1], 12)  # samples rather than levels
    assert affordable(200, 24) == (LEVELS[-1], 8)


class Mean(nn.Module):
    """Its output is off by as much as its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight)


@pytest.mark.parametrize(("off", "runs"), [(0.0, 8), (0.1, 32), (2.0, 8)])
def test_where_a_choice_turns_on_the_error_all_samples_count(off: float, runs: int) -> None:
    x = torch.rand(160, 4) + 0.5
    graph = irprune.capture(Mean(), (x[:1],))
    irprune.groups(graph)
    data = Calibration(x, graph)
    probe = Probe(graph, Readings(graph, data), 1)
    (node,) = graph.nodes
    at = next(i for i, v in enumerate(node.inputs) if isinstance(v, Weight))
    seen: list[int] = []
    judged = probe._error

    def counted(ours: list[list[torch.Tensor]]) -> float:
        seen.append(sum(len(a[0]) for a in ours))
        return judged(ours)

    probe._error = counted  # type: ignore[method-assign]
    error = probe.error(Selection({}), {node: {at: torch.eye(4) * (1 + off)}})
    assert error == pytest.approx(off**2, rel=1e-4) and seen[-1] == runs


@pytest.mark.parametrize("loud", [True, False])
def test_the_samples_that_hold_what_the_outputs_say_are_compared(loud: bool) -> None:
    """Pictures without objects tell little of what is lost on those with some."""
    x = torch.rand(64, 4) + 0.5
    if loud:
        x[2:18:2] *= 20
    graph = irprune.capture(Mean(), (x[:1],))
    irprune.groups(graph)
    many = 40  # groups: no more than the fewest samples are compared
    probe = Probe(graph, Readings(graph, Calibration(x, graph)), many)
    compared = torch.cat([b[0] for b in probe.said])
    assert len(compared) == 8
    wanted = x[2:18:2] if loud else x[::8]
    assert {tuple(r.tolist()) for r in compared} == {tuple(r.tolist()) for r in wanted}


@pytest.mark.parametrize("name", ["up.weight:0", "qkv.weight:0/1"])
@pytest.mark.parametrize("level", [0.25, 0.5])
def test_the_sum_of_the_lowest_is_the_error_of_the_repaired_cut(name: str, level: float) -> None:
    model, x = Heads(), torch.randn(512, 6, 32)
    got = scores(model, x, importance="osscar")[1][name]
    cut = irprune.prune(
        model, (x[:2],), ratio=0.0, ratios={name: level}, calibration=x, importance="osscar"
    )
    assert cut.report.repair is not None
    told = np.sort(got)[: round(level * len(got))].sum()
    # The repair refits the other layers as well
    assert 0.9 < told / cut.report.repair.after**2 < 1.4


def test_what_no_layer_reads_is_silenced() -> None:
    model, x = Attention(), torch.randn(32, 6, 32) * 2
    got = scores(model, x, importance="magnitude")[1]
    name = next(n for n in got if n.startswith("q.weight:0/") and got[n].ndim == 2)
    cut = irprune.prune(model, (x[:8],), ratio=0.0, ratios={name: 0.5}, importance="magnitude")
    apart = x[::4]  # what is measured on
    with torch.no_grad():
        whole, left = model(apart), cut.module(apart)
    error = float((whole - left).square().sum() / whole.square().sum())
    assert error > 1e-5 and np.isclose(
        np.sort(got[name], axis=-1)[:, :4].mean(0).sum(), error, rtol=0.05
    )


def test_a_branch_that_counts_more_loses_less() -> None:
    x = torch.randn(256, 12)
    graph, got = scores(Branches(10.0), x, importance="magnitude")
    assert got["b.0.weight:0"].mean() > 30 * got["a.0.weight:0"].mean()
    Choose(scope="knapsack", budget={"macs": 0.6}).run(graph)
    left = {
        g.name: graph.kept.choice[g.axis].shape[-1] if g.axis in graph.kept.choice else g.size
        for g in api.groups(graph)
        if not g.frozen
    }
    assert left["a.0.weight:0"] < 0.5 * left["b.0.weight:0"]


def test_own_indices_in_each_head_are_measured_together() -> None:
    x = torch.randn(256, 6, 32)
    graph, got = scores(Heads(), x, importance="osscar")
    s = got["qkv.weight:0/2"]
    assert s.shape == (4, 8)
    Choose(prefer="head_dim", keep=("up*",), ratio=0.5).run(graph)
    (kept,) = (k for k in graph.kept.choice.values() if k.ndim == 2)
    assert [sorted(row.tolist()) for row in kept] == [
        sorted(np.argsort(-r, kind="stable")[:4].tolist()) for r in s
    ]
    assert len({tuple(row) for row in kept.tolist()}) > 1


def test_what_the_choice_will_leave_whole_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from irprune.criteria import measured

    asked: list[str] = []
    names: dict[Any, str] = {}
    errors = measured._errors

    def told(leaf: Any, *rest: Any) -> Any:
        asked.append(names.get(leaf, str(leaf)))
        return errors(leaf, *rest)

    monkeypatch.setattr(measured, "_errors", told)
    x = torch.randn(64, 6, 32)
    model = Heads().eval()
    graph = api.analyse(api.capture(model, (x[:2],)))
    names |= {g.axis: g.name for g in api.groups(graph)}
    Score("osscar", normalise="measured", calibration=x).run(graph)
    assert {"up.weight:0", "qkv.weight:0/1", "qkv.weight:0/2"} <= set(asked)
    every = len(asked)
    for options, left in (
        ({"prefer": "heads"}, {"up.weight:0", "qkv.weight:0/1"}),
        ({"prefer": "heads", "keep": ("up*",)}, {"qkv.weight:0/1"}),
        ({"prefer": "head_dim", "keep": ("up*",)}, {"qkv.weight:0/2"}),
    ):
        asked.clear()
        Score("osscar", normalise="measured", calibration=x, **options).run(graph)
        assert left <= set(asked) and len(asked) < every
        assert "up.weight:0" not in asked or "keep" not in options
        assert all(np.isfinite(s).all() for s in graph.scores.values())
    asked.clear()
    irprune.prune(model, (x[:2],), budget={"macs": 0.7}, calibration=x, keep=["up*"], proof=False)
    assert len(asked) == 1  # the heads alone


def test_what_is_measured_on_is_not_refitted_to() -> None:
    """Few data for many weights: a refit to the samples that are compared seems to lose nothing."""
    x = torch.randn(64, 6, 32)
    graph = api.analyse(api.capture(Heads().eval(), (x[:2],)))
    readings = readings_of(x, graph, "test")
    layer = next(layer for layer in layers(graph) if layer.blocks[1] == 32)
    whole = readings.of([layer], products=True)[key_of(layer)]
    assert readings.hold_out(32) == 16 and readings.among == 4
    rest = readings.of([layer], products=True)[key_of(layer)]
    left = torch.cat([x[k] for k in range(64) if k % 4])
    assert not torch.allclose(whole.mean, rest.mean)
    assert torch.allclose(rest.mean[0], left.mean(0).double(), atol=1e-6)
    assert readings.hold_out(2) == 2 and readings.among == 32
    few = readings_of(x[:3], graph, "test")
    assert few.hold_out(32) == 0 and few.among == 0


def test_without_data_there_is_nothing_to_measure() -> None:
    with pytest.raises(IrpruneError, match="needs calibration data"):
        Score(normalise="measured")
    with pytest.raises(IrpruneError, match="needs calibration data"):
        irprune.prune(Heads(), (torch.randn(2, 6, 32),), normalise="measured")


def test_of_answers_that_are_no_numbers_the_share_that_differs_counts() -> None:
    class Label(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Branches(10.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).argmax(-1)

    x = torch.randn(256, 12)
    graph, got = scores(Label(), x, importance="wanda")
    quiet, loud = got["body.a.0.weight:0"], got["body.b.0.weight:0"]
    assert loud.sum() > 2 * quiet.sum() and 0.3 < loud.sum() <= 2
    Choose(scope="knapsack", budget={"macs": 0.6}).run(graph)
