"""What judges the models of a sweep: it makes each from its plan, one after the other, and measures
it on a number of threads that does not depend on how many processes there are."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irprune.api.calls import apply_plan
from irprune.api.candidate import Candidate
from irprune.api.declarations import PruneOptions
from irprune.api.judges import Agreement, Judge, Scored
from irprune.api.options import Options
from irprune.api.user_code import callable_at
from irprune.choice.plan import Plan
from irprune.ir.graph import Graph
from irprune.run.ranks import by_itself

__all__ = ["Bench", "Call", "Job"]

Call = tuple[Any, Sequence[Any], Mapping[str, Any]]  # a model and its example call


@dataclass(frozen=True)
class Job:
    """What a process must know to judge plans."""

    model: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    load: Callable[[], Call] | None
    settings: PruneOptions
    evaluate: Callable[..., float] | str | None
    metric: str | None
    lower_is_better: bool

    @property
    def options(self) -> Options:
        """The options, checked."""
        return Options(**self.settings)

    def call(self) -> Call:
        """The model and its example call."""
        return (self.model, self.args, self.kwargs) if self.load is None else self.load()

    def judge(self, graph: Graph) -> Judge:
        """What gives the metric."""
        if self.evaluate is None:
            return Agreement(self.options.values["calibration"], graph, self.metric)
        function = callable_at(self.evaluate) if isinstance(self.evaluate, str) else self.evaluate
        return Scored(function, not self.lower_is_better)


class Bench:
    """Judges the models that plans make of the original, one after the other."""

    def __init__(self, job: Job, call: Call, original: Plan) -> None:
        self.job, self.original = job, original
        self.model, self.args, self.kwargs = call
        self.values = job.options.values
        self.threads = self.values["threads"] or 1
        self._held = contextlib.ExitStack()
        self._judge: Judge | None = None
        self._first = (float("nan"), 0.0)

    @property
    def judge(self) -> Judge:
        """What gives the metric; it has judged the original."""
        if self._judge is None:
            began = time.perf_counter()
            folder = self._held.enter_context(_folder())  # the original is run beside each other
            made = self._made(self.original, False, folder)
            self._judge = self.job.judge(made.pruned.graph)
            self._first = self._judge.value(made), time.perf_counter() - began
        return self._judge

    def value(self, plan: Plan) -> tuple[float, float]:
        """The metric of the model that ``plan`` makes, and the seconds that it took."""
        with _threads(self.threads), by_itself():
            judge, began = self.judge, time.perf_counter()
            if plan is self.original:
                return self._first
            with _folder() as folder:
                made = self._made(plan, self.values["repair"], folder)
                return judge.value(made), time.perf_counter() - began

    def close(self) -> None:
        """Remove what was written for the original."""
        self._held.close()

    def _made(self, plan: Plan, repair: Any, folder: str) -> Candidate:
        values = self.values
        pruned = apply_plan(
            self.model,
            plan,
            self.args,
            self.kwargs,
            proof=False,
            repair=repair,
            calibration=values["calibration"],
            device=values["device"],
            dynamic=values["dynamic"],
            trust=values["trust"],
        )
        return Candidate(pruned, Path(folder), values["device"], self.threads)


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="irprune-")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute on ``count`` threads, where it is used at all."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
