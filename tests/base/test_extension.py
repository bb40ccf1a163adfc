"""A class that joins by a decorator and is not what it has to be is refused in words, and what the
user's own code does wrong is told as that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import irprune
from irprune import criteria
from irprune.criteria import criterion
from irprune.errors import IrpruneError
from irprune.passes import PassResult, repairs
from irprune.passes.repairs import repair
from irprune.validate import metrics
from irprune.validate.metrics import metric

DATA = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    criteria.criteria(), repairs.repairs()
    monkeypatch.setattr(criteria, "CRITERIA", dict(criteria.CRITERIA))
    monkeypatch.setattr(repairs, "_REPAIRS", dict(repairs._REPAIRS))
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))
    yield


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def prune(**options: Any) -> irprune.Pruned:
    return irprune.prune(model(), (DATA[:1],), **options)


# -- on the way in ---------------------------------------------------------------------------------


class Scores:
    def scores(self, graph: Any, groups: Any, blocks: Any) -> Any:
        return {g.axis: np.ones(g.size) for g in groups}


@dataclass(frozen=True)
class Needs(Scores):
    p: float


@dataclass
class Thawed(Scores):
    pass


@dataclass(frozen=True)
class Alone:
    def scores(self, graph: Any) -> Any:
        return {}


@dataclass(frozen=True)
class Turned:
    calibration: Any
    original: Any

    def run(self, graph: Any) -> PassResult:
        return PassResult(False)


class NoMeter:
    def add(self, inputs: Any, ours: Any, theirs: Any) -> None:
        pass


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: criterion("x")(Scores), "criterion 'x': Scores is no frozen dataclass"),
    (lambda: criterion("x")(Thawed), "criterion 'x': Thawed is no frozen dataclass"),
    (lambda: criterion("x")(Needs), "the option p of Needs has no default"),
    (
        lambda: criterion("x")(Alone),
        r"\(self, .*graph.*\).* is to be scores\(self, graph, groups, blocks\)",
    ),
    (lambda: criterion("x")(Turned), r"Turned has no method scores\("),  # type: ignore[type-var]
    (lambda: criterion("x")(len), "is <built-in function len>, not a class"),  # type: ignore[type-var]
    (lambda: criterion(Alone), r'write @criterion\("my-criterion"\)'),  # type: ignore[arg-type]
    (lambda: repair("x")(Turned), "first fields of Turned are to be original and calibration"),
    (lambda: repair(Turned), "@repair takes a name"),  # type: ignore[arg-type]
    (lambda: metric("x")(NoMeter), r"NoMeter has no method value\(self\)"),  # type: ignore[type-var]
]


@pytest.mark.parametrize(("join", "told"), REFUSED)
def test_what_cannot_join_is_told_why(join: Callable[[], object], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        join()


def declare() -> type:
    @criterion("again")
    @dataclass(frozen=True)
    class Again(Scores):
        """Ones."""

    return Again


def test_the_same_class_joins_again_and_another_does_not() -> None:
    """As when the cell of a notebook is run again."""
    first, second = declare(), declare()
    assert first is not second and criteria.CRITERIA["again"] is second

    @dataclass(frozen=True)
    class Other(Scores):
        """Ones."""

    with pytest.raises(ValueError, match="criterion 'again' is declared twice"):
        criterion("again")(Other)


# -- what their code does --------------------------------------------------------------------------


def scoring(scores: Callable[[Any, Any], Any]) -> Any:
    @dataclass(frozen=True)
    class Own:
        def scores(self, graph: Any, groups: Any, blocks: Any) -> Any:
            return scores(graph, groups)

    return Own()


WRONG_SCORES: list[tuple[Callable[[Any, Any], Any], str]] = [
    (lambda graph, groups: None, "Own fails: AttributeError: 'NoneType'"),
    (lambda graph, groups: {g.axis: g.nothing for g in groups}, r"test_extension\.py:\d+"),
    (
        lambda graph, groups: {g.axis: torch.rand(g.size, requires_grad=True) for g in groups},
        r"Own fails: RuntimeError: Can't call numpy\(\)",
    ),
    (lambda graph, groups: graph.weights.clear() or {}, "Own changed the graph"),
]


@pytest.mark.parametrize(("scores", "told"), WRONG_SCORES)
def test_what_a_criterion_does_wrong_is_one_line(
    scores: Callable[[Any, Any], Any], told: str
) -> None:
    with pytest.raises(IrpruneError, match=told):
        prune(importance=scoring(scores))


def test_scores_may_be_lists_and_tensors() -> None:
    """Of whatever type: the larger half stays."""
    lists = prune(importance=scoring(lambda _, gs: {g.axis: list(range(g.size)) for g in gs}))
    tensors = prune(importance=scoring(lambda _, gs: {g.axis: torch.arange(g.size) for g in gs}))
    assert lists.kept == tensors.kept and lists.kept["0.weight"][0] == list(range(8, 16))


def repairing(run: Callable[[Any], Any]) -> str:
    @repair("own")
    @dataclass(frozen=True)
    class Own:
        """Does what the test says."""

        original: Any
        calibration: Any

        def run(self, graph: Any) -> PassResult:
            made: PassResult = run(graph)
            return made

    return "own"


def put(graph: Any, change: Callable[[Any], Any]) -> None:
    weight = graph.weights["0.weight"]
    old = weight.load()
    weight.load = lambda: change(old)


WRONG_REPAIRS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda graph: None, "repair 'own' returned None; return PassResult"),
    (lambda graph: graph.nothing, r"repair 'own' fails: AttributeError.*test_extension\.py:\d+"),
    (
        lambda graph: put(graph, lambda w: 9 * w) or PassResult(False),
        r"said that nothing changed, but a weight did \(0\.weight\)",
    ),
    (lambda graph: put(graph, lambda w: w[:1]) or PassResult(True), r"changed the shape \[8, 8\]"),
    (
        lambda graph: graph.outputs.append(graph.outputs[0]) or PassResult(True),
        "repair 'own' changed the graph",
    ),
]


@pytest.mark.parametrize(("run", "told"), WRONG_REPAIRS)
def test_what_a_repair_does_wrong_is_one_line(run: Callable[[Any], Any], told: str) -> None:
    with pytest.raises(IrpruneError, match=told):
        prune(repair=repairing(run), calibration=DATA)


def metering(add: Callable[[], Any], value: Callable[[], Any]) -> str:
    @metric("own")
    class Own:
        """Does what the test says."""

        def add(self, inputs: Any, ours: Any, theirs: Any) -> None:
            add()

        def value(self) -> float:
            made: float = value()
            return made

    return "own"


WRONG_METERS: list[tuple[Callable[[], Any], Callable[[], Any], str]] = [
    (lambda: 1 / 0, lambda: 1.0, r"metric 'own' fails: ZeroDivisionError.*test_extension\.py:\d+"),
    (lambda: None, lambda: None, "metric 'own' gave None; its value is one number"),
]


@pytest.mark.parametrize(("add", "value", "told"), WRONG_METERS)
def test_what_a_metric_does_wrong_is_one_line(
    add: Callable[[], Any], value: Callable[[], Any], told: str
) -> None:
    with pytest.raises(IrpruneError, match=told):
        prune(metric=metering(add, value), max_drop=0.1, calibration=DATA, repair=False)
