"""What says how good a cut model is: the user's own function, or agreement with the original on
calibration data."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from irprune.api.candidate import Candidate
from irprune.api.model_form import form_of
from irprune.base.extension import users_code
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ops.arrays import as_numpy
from irprune.run.calibration import Calibration
from irprune.validate.metrics import Metric, choose_metric, metric_of

__all__ = ["Agreement", "Judge", "Scored", "batches_of"]

MEMORY = 1 << 28  # bytes of the original's outputs that are kept
SAMPLES = 512  # of the calibration data are compared at most


class JudgedModel(Protocol):
    """A model that can be had in several forms."""

    def as_form(self, form: str) -> Any:
        """See ``irprune.api.candidate.Candidate``."""


class Judge(Protocol):
    """Gives a number for a cut model."""

    @property
    def name(self) -> str:
        """What the metric is called."""

    @property
    def higher(self) -> bool:
        """Whether more of the metric is better."""

    @property
    def identity(self) -> str:
        """Tells what is measured from what another judge measures; "" where that is not known
        before the original was judged."""

    def value(self, candidate: Candidate) -> float:
        """The metric. The first candidate that is judged is the original, uncut."""


class Scored:
    """The user's ``function`` of the model, in the form that its annotation says."""

    def __init__(self, function: Callable[..., Any], higher: bool = True) -> None:
        self.function, self._higher = function, higher
        self._name = str(getattr(function, "__name__", type(function).__name__))
        self.form = form_of(function, self._name)

    @property
    def name(self) -> str:
        """The function's name."""
        return self._name

    @property
    def higher(self) -> bool:
        """Whether more of the metric is better."""
        return self._higher

    @property
    def identity(self) -> str:
        """Its name and its text, as far as there is one."""
        try:
            return f"{self.name}\n{inspect.getsource(self.function)}"
        except (OSError, TypeError):  # no file holds it
            return self.name

    def value(self, candidate: JudgedModel) -> float:
        """What the function gives."""
        model = candidate.as_form(self.form)
        with users_code("", f"{self.name}()"):
            made = self.function(model)
        try:
            return float(made)
        except (TypeError, ValueError):
            raise IrpruneError(
                f"{self.name}() gave a {type(made).__name__}", "", "it returns one number"
            ) from None


class Agreement:
    """Agreement with the original on ``calibration``, by the metric called ``metric``; None
    chooses one by the outputs of the original."""

    def __init__(self, calibration: Any, graph: Graph, metric: str | None = None) -> None:
        self.data = Calibration(calibration, graph, samples=SAMPLES)
        self.graph = graph
        self.metric: Metric | None = None if metric is None else metric_of(metric)
        self.original: Candidate | None = None
        self._said: dict[int, list[NDArray[Any]]] = {}
        self._digest = ""  # of the data

    @property
    def name(self) -> str:
        """The metric's name."""
        return "" if self.metric is None else self.metric.name

    @property
    def identity(self) -> str:
        """The metric and a digest of the data."""
        return self._digest and f"{self.name} {self._digest}"

    @property
    def higher(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric is None or self.metric.higher

    def value(self, candidate: Candidate) -> float:
        if self.original is None:
            self.original = candidate
        meter, digest = None, hashlib.sha256()
        for k, inputs in enumerate(batches_of(self.data, self.graph)):
            if self.metric is None:
                self.metric = choose_metric(inputs, self.original.run)
            meter = meter or self.metric.meter()
            for x in () if self._digest else inputs.values():
                digest.update(x.tobytes())
            theirs = self._original(k, inputs)
            ours = theirs if candidate is self.original else candidate.run(inputs)
            meter.add(inputs, ours, theirs)
        assert meter is not None  # data that yield nothing are refused
        self._digest = self._digest or digest.hexdigest()
        return meter.value()

    def _original(self, number: int, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        assert self.original is not None
        if number in self._said:
            return self._said[number]
        made = self.original.run(inputs)
        held = sum(x.nbytes for each in self._said.values() for x in each)
        if held + sum(x.nbytes for x in made) <= MEMORY:
            self._said[number] = made
        return made


def batches_of(data: Calibration, graph: Graph) -> Any:
    """The batches of ``data`` as arrays by the names of the graph's inputs."""
    for batch in data:
        yield {
            v.name: np.ascontiguousarray(as_numpy(x))
            for v, x in zip(graph.inputs, batch.inputs, strict=True)
        }
