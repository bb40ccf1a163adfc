"""A latency budget is met by aiming again at what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from latency_stairs import STAIRS, Net, left, scored, table

from irprune import api
from irprune.api import latency_search as search
from irprune.api.latency_whole import WholeModel
from irprune.ir.graph import Graph
from irprune.latency.operators import Operator
from irprune.latency.predict import Predictor
from irprune.latency.table import Table
from irprune.passes.choose import Choose
from irprune.run.timing import Timing


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Machine(WholeModel):
    """Stands in for whole models on onnxruntime: what is fixed is a fifth of the time, which the
    table knows nothing of."""

    before = Timing(0.01, 0.009, 0.011, 9)
    provider = "CPUExecutionProvider"

    def __init__(self, graph: Graph, device: str, threads: int, seconds: float) -> None:
        self.times = Predictor(graph, table(steps=STAIRS))
        self.graph, self.device, self.threads, self.cuts = graph, device, threads, 0

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def parts(self, runs: int = 5) -> None:
        return None

    def beside(self, chosen: Graph, cut: Any) -> tuple[Timing, Timing]:
        self.cuts += 1
        took = 0.01 * (0.2 + 0.8 * left(self.graph, self.times))
        return self.before, Timing(took, took, took, 9)


@pytest.mark.parametrize(("amount", "asked"), [(0.5, 0.005), ("6ms", 0.006)])
def test_the_loop_aims_again_by_what_was_missed(
    monkeypatch: pytest.MonkeyPatch, amount: Any, asked: float
) -> None:
    monkeypatch.setattr(search, "WholeModel", Machine)
    graph = scored(Net(128))
    said: list[str] = []
    found = search.choose_in_time(
        graph,
        Choose(budget={"latency": 1.0}, times=table(steps=STAIRS)),
        amount,
        api.cut_graph,
        say=said.append,
    )
    assert found.asked == pytest.approx(asked) and abs(found.missed) <= 0.05
    assert (
        2 <= found.cuts <= 10
        and found.why == ""
        and sum("cut" in line for line in said) == found.cuts
    )
    assert found.after.median == pytest.approx(
        0.01 * (0.2 + 0.8 * left(graph, table(steps=STAIRS)))
    )


@pytest.mark.parametrize(
    "curve",
    [lambda x: x**2, lambda x: x**0.5, lambda x: 0.15 * (x > 0.4) + 0.85 * x],
    ids=["quick", "slow", "step"],
)
def test_the_loop_comes_from_both_sides(monkeypatch: pytest.MonkeyPatch, curve: Any) -> None:
    """Cuts that come out quicker than asked are no more accepted than slow ones."""

    class Bent(Machine):
        def beside(self, chosen: Graph, cut: Any) -> tuple[Timing, Timing]:
            took = 0.01 * curve(left(self.graph, self.times))
            return self.before, Timing(took, took, took, 9)

    monkeypatch.setattr(search, "WholeModel", Bent)
    found = search.choose_in_time(
        scored(Net(256)),
        Choose(budget={"latency": 1.0}, times=table(steps=STAIRS)),
        0.6,
        api.cut_graph,
    )
    assert abs(found.missed) <= 0.05 and found.why == "" and found.cuts <= 10


def test_the_loop_says_why_nothing_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cliff(Machine):
        def beside(self, chosen: Graph, cut: Any) -> tuple[Timing, Timing]:
            took = 0.008 if left(self.graph, self.times) > 0.5 else 0.003
            return self.before, Timing(took, took, took, 9)

    monkeypatch.setattr(search, "WholeModel", Cliff)
    found = search.choose_in_time(
        scored(Net(256)),
        Choose(budget={"latency": 1.0}, times=table(steps=STAIRS)),
        0.5,
        api.cut_graph,
    )
    assert found.after.median == 0.003 and found.cuts <= 10
    assert found.why.startswith("no cut nearer to 5 ms was found") and found.why in str(found)


def test_the_loop_says_that_the_machine_is_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies far apart is measured longer; where that does not help, nobody is told that a
    latency was met."""
    turns: list[float] = []

    class Noisy(Machine):
        spread = 2.0

        def beside(self, chosen: Graph, cut: Any, longer: float = 1.0) -> tuple[Timing, Timing]:
            turns.append(longer)
            took = 0.01 * left(self.graph, self.times)
            high = took * (self.spread if longer == 1 else self.later)
            return self.before, Timing(took, took, high, 9)

        later = 1.0

    def found() -> tuple[search.Latency, list[str]]:
        said: list[str] = []
        options = Choose(budget={"latency": 1.0}, times=table(steps=STAIRS))
        made = search.choose_in_time(scored(Net(256)), options, 0.5, api.cut_graph, say=said.append)
        return made, said

    monkeypatch.setattr(search, "WholeModel", Noisy)
    calm, said = found()
    assert turns[:2] == [1.0, 3.0] and calm.why == "" and not calm.as_dict()["noisy"]
    assert not any("noisy" in line for line in said)
    monkeypatch.setattr(Noisy, "later", 1.5)
    wild, said = found()
    assert "the machine is noisy" in wild.why and wild.why in str(wild)
    assert wild.as_dict()["noisy"] and any("noisy" in line for line in said)


def test_what_is_left_is_compared_turn_by_turn() -> None:
    """A machine that slows down for a while slows both: their ratio stands."""
    before = Timing(2.0, 1.0, 2.0, 3, (1.0, 2.0, 2.0))
    after = Timing(0.5, 0.5, 1.0, 3, (0.5, 1.0, 1.0))
    found = search.Latency(before, after, 1.0, 1.0, "", "", 1, 1)
    assert found.left == 0.5 and found.missed == 0.0 and not found.ratio.noisy


def test_times_of_earlier_runs_are_told(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    operator = Operator("matrix", (1, 8, 1))
    first = Table(lambda *sizes: 1e-3, file)
    first.exact(operator, 4, 4)
    assert first.origin == ""
    first.save()
    second = Table(lambda *sizes: 1e-3, file)
    assert second.origin == "", "nothing was asked for yet"
    second.exact(operator, 4, 4)
    second.exact(operator, 4, 8)
    assert second.origin.startswith("of the times of operators 1 are of earlier runs")
    assert str(file) in second.origin and "1 were measured now" in second.origin
