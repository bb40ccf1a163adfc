"""The model that a schedule began with, which each of its steps is measured beside."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from irprune.api.judges import batches_of
from irprune.api.step_quality import StepQuality
from irprune.ir.graph import Graph
from irprune.ops.arrays import as_numpy, as_tensor
from irprune.run.calibration import Calibration
from irprune.run.interpret import evaluate
from irprune.run.precision import computing_type
from irprune.validate.metrics import Metric, choose_metric, metric_of

__all__ = ["Began"]

SAMPLES = 64  # of the calibration data that steps are compared on, at most


class Began:
    """The model that a schedule began with, captured as ``graph``, and what it says to samples of
    ``calibration``; ``metric`` None chooses one by its outputs."""

    def __init__(self, graph: Graph, calibration: Any, metric: str | None = None) -> None:
        self.graph = graph
        self._metric: Metric | None = None if metric is None else metric_of(metric)
        data = Calibration(calibration, graph, samples=SAMPLES)
        self._inputs = list(batches_of(data, graph))
        self._said = [_run(graph, inputs) for inputs in self._inputs]
        self.samples = sum(len(next(iter(x.values()))) if x else 1 for x in self._inputs)
        if self._metric is None:
            self._metric = choose_metric(self._inputs[0], lambda inputs: _run(graph, inputs))

    def step(self, number: int, steps: int, before: Graph, after: Graph) -> StepQuality:
        """What a step did, of its graphs before and after the cut."""
        assert self._metric is not None
        began = self._value(None)
        values = began, self._value(before), self._value(after)
        return StepQuality(number, steps, self._metric.name, *values, self.samples)

    def _value(self, graph: Graph | None) -> float:
        assert self._metric is not None
        meter = self._metric.meter()
        for inputs, said in zip(self._inputs, self._said, strict=True):
            meter.add(inputs, said if graph is None else _run(graph, inputs), said)
        return float(meter.value())


def _run(graph: Graph, inputs: Any) -> list[NDArray[Any]]:
    given = [as_tensor(x) for x in inputs.values()]
    half = computing_type(graph)
    return [as_numpy(t) for t in evaluate(graph, given, dtype=half)]
