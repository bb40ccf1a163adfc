"""Two models beside each other by a metric: what ``irprune validate --metric`` and ``--eval``
say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.api.judges import SAMPLES, Scored, batches_of
from irprune.api.load import Loaded
from irprune.api.model_form import FORMS
from irprune.api.runner import Runner
from irprune.errors import IrpruneError, option
from irprune.run.calibration import Calibration
from irprune.run.session import session
from irprune.validate.metrics import choose_metric, metric_of

__all__ = ["Compared", "compare_by_metric", "compare_by_score"]


@dataclass(frozen=True)
class Compared:
    """A metric of two models: ``a`` of the first, ``b`` of the second; ``higher`` says whether
    more is better, ``samples`` how many it was measured on (0 where the user's function knows)."""

    metric: str
    higher: bool
    a: float
    b: float
    samples: int = 0

    @property
    def drop(self) -> float | None:
        """How much worse the second is, as a share of the first; None where that is infinite."""
        if not math.isfinite(self.a):
            return None
        worse = self.a - self.b if self.higher else self.b - self.a
        return worse / abs(self.a) if self.a and worse else float(worse)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "drop": self.drop}

    def __str__(self) -> str:
        on = f" on {self.samples} samples" if self.samples else ""
        worse = "" if self.drop is None else f"  worse by {self.drop:.2%}"
        return f"{self.metric}  {self.a:.5g}  {self.b:.5g}{worse}{on}"


def compare_by_metric(
    loaded: Loaded, a: Runner, b: Runner, metric: str | None, calibration: Any, calls: int
) -> Compared:
    """The agreement of ``b`` with ``a`` by ``metric`` (None chooses one that fits the outputs), on
    ``calibration`` or on ``calls`` random inputs. ``loaded`` is what ``a`` runs."""
    named = [v.name for v in a.inputs]

    def run(inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return list(a.run(list(inputs.values())).values())

    chosen = None if metric is None else metric_of(metric)
    own = meter = None
    count = 0
    for inputs in _inputs(loaded, a, named, calibration, calls):
        chosen = chosen or choose_metric(inputs, run)
        own, meter = own or chosen.meter(), meter or chosen.meter()
        arrays = list(inputs.values())
        b.check(arrays)
        theirs, ours = list(a.run(arrays).values()), list(b.run(arrays).values())
        if len(ours) != len(theirs):
            raise IrpruneError(
                f"{len(theirs)} outputs against {len(ours)}",
                f"{a.name} and {b.name}",
                "compare models with the same outputs",
            )
        own.add(inputs, theirs, theirs)
        meter.add(inputs, ours, theirs)
        count += len(arrays[0]) if arrays and arrays[0].ndim else 1
    assert chosen is not None and own is not None and meter is not None
    return Compared(chosen.name, chosen.higher, own.value(), meter.value(), count)


def _inputs(
    loaded: Loaded, a: Runner, named: list[str], calibration: Any, calls: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of inputs in the order in which ``a`` takes them."""
    if calibration is None:
        for seed in range(calls):
            yield dict(zip(named, a.draw(seed), strict=True))
        return
    graph = loaded.capture()
    for batch in batches_of(Calibration(calibration, graph, samples=SAMPLES), graph):
        by_name = loaded.kind == "onnx" and all(name in batch for name in named)
        yield {name: batch[name] for name in named} if by_name else batch


class _LoadedModel:
    """A loaded model in the form that the user's function wants."""

    def __init__(self, loaded: Loaded, running: Runner, device: str) -> None:
        self.loaded, self.running, self.device = loaded, running, device

    def as_form(self, form: str) -> Any:
        """See ``irprune.api.candidate.Candidate``."""
        file = self.loaded.kind == "onnx"
        form = form or ("session" if file else "module")
        assert form in FORMS
        if file != (form != "module"):
            raise IrpruneError(
                f"{self.running.name} is {'a file' if file else 'a module'}",
                "",
                f"{option('evaluate')} takes a model as {form}",
            )
        if form == "session":
            return session(self.loaded.model, self.device)
        if form == "module":
            return self.running.held
        if form == "path":
            return self.loaded.model
        import onnx

        return onnx.load(self.loaded.model)


def compare_by_score(
    function: Any,
    pairs: tuple[tuple[Loaded, Runner], tuple[Loaded, Runner]],
    device: str,
    lower: bool,
) -> Compared:
    """What the user's ``function`` gives for each of two models; ``lower`` says that less is
    better."""
    judge = Scored(function, not lower)
    a, b = (judge.value(_LoadedModel(loaded, running, device)) for loaded, running in pairs)
    if np.isnan(a) or np.isnan(b):
        raise IrpruneError(f"{judge.name}() gave NaN", "", "it must give a number")
    return Compared(judge.name, judge.higher, a, b)
