"""The trials of a search for the smallest model that keeps a metric: what each was, the table of
them, those that no other beats, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from irprune.base.atomic_write import write_text
from irprune.base.format import finite
from irprune.choice.plan import Plan
from irprune.errors import IrpruneError

__all__ = ["HEAD", "Trial", "Trials", "TrialsFile", "trial_key"]

HEAD = f"{'trial':>5}  {'left':>6}  {'MACs':>6}  {'params':>6}  {'latency':>7}  {'metric':>10}  {'seconds':>7}"


@dataclass(frozen=True)
class Trial:
    """One model that was judged.

    Args:
        left: The share of the measure that was cut which is left.
        macs: The share of the multiply-accumulates that is left.
        params: The share of the parameters that is left.
        latency: The predicted share of the latency; None where it was not predicted.
        metric: What the judge said.
        seconds: How long choosing, cutting, repairing and judging took.
        passed: Whether the metric is good enough.
        key: Tells a cut and its judge from all others.
        again: Whether the metric was known from an earlier run.
    """

    left: float
    macs: float
    params: float
    latency: float | None
    metric: float
    seconds: float
    passed: bool
    key: str = field(default="", repr=False)
    again: bool = False

    def row(self, number: int) -> str:
        """The trial as a line below ``HEAD``."""
        time = "-" if self.latency is None else f"{self.latency:.1%}"
        verdict = "passes" if self.passed else "fails"
        return (
            f"{number:>5}  {self.left:>6.1%}  {self.macs:>6.1%}  {self.params:>6.1%}  {time:>7}  "
            f"{self.metric:>10.5g}  {self.seconds:>7.1f}  {verdict}{' (known)' * self.again}"
        )


@dataclass
class Trials(Sequence[Trial]):
    """All trials in their order, the original first.

    Args:
        measure: What was cut: macs, params, bytes, activation or latency.
        metric: What the metric is called.
        higher: Whether more of it is better.
        worst: The worst value that passes.
        tried: The trials.
    """

    measure: str
    metric: str
    higher: bool
    worst: float
    tried: list[Trial] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tried)

    def __getitem__(self, index: Any) -> Any:
        return self.tried[index]

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.tried)

    def passes(self, value: float) -> bool:
        """Whether a metric is good enough; a NaN never is."""
        return value >= self.worst if self.higher else value <= self.worst

    @property
    def original(self) -> Trial:
        """The model uncut."""
        return self.tried[0]

    @property
    def best(self) -> Trial:
        """The smallest that passes; the original where none other does."""
        return min((t for t in self.tried if t.passed), key=lambda t: t.left, default=self.original)

    @property
    def pareto(self) -> list[Trial]:
        """The trials that no other beats in size and metric, the smallest first."""
        sign = 1 if self.higher else -1
        out: list[Trial] = []
        for trial in sorted(self.tried, key=lambda t: (t.left, -sign * t.metric)):
            if not math.isnan(trial.metric) and all(
                sign * trial.metric > sign * t.metric for t in out
            ):
                out.append(trial)
        return out

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; without seconds, so that the same search gives the same data."""
        front = {t.key for t in self.pareto}
        return {
            "measure": self.measure,
            "metric": self.metric,
            "higher": self.higher,
            "original": self.original.metric,
            "worst": self.worst,
            "best": self.best.metric,
            "trials": [
                {
                    **{k: v for k, v in asdict(t).items() if k not in ("seconds", "key", "again")},
                    "pareto": t.key in front,
                }
                for t in self.tried
            ],
        }

    def __str__(self) -> str:
        bound = "at least" if self.higher else "at most"
        return (
            f"{self.metric} {self.original.metric:.5g} -> {self.best.metric:.5g} ({bound} "
            f"{self.worst:.5g} is accepted), {len(self.tried) - 1} trials"
        )

    def table(self) -> str:
        """All trials, a line each."""
        return "\n".join([HEAD, *(t.row(k) for k, t in enumerate(self.tried))])


def trial_key(plan: Plan, judge: str, repairs: Sequence[str]) -> str:
    """Tells a cut (with the values of the weights, as far as plans know them), how it is repaired
    and who judges it from all others."""
    data = json.dumps([plan.as_json(), judge, list(repairs)], sort_keys=True, default=str)
    return hashlib.sha256(data.encode()).hexdigest()[:32]


class TrialsFile:
    """Metrics by key in a JSON file, written after each trial, so that a search that was
    interrupted goes on from there. Without a path nothing is kept."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._held: dict[str, Trial] = {}
        if self.path is None or not self.path.exists():
            return
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            if held["irprune"] != "trials":
                raise KeyError("irprune")
            for entry in held["trials"]:
                trial = Trial(**{**entry, "metric": float(entry["metric"])})
                self._held[trial.key] = trial
        except (OSError, ValueError, KeyError, TypeError) as broken:
            raise IrpruneError(
                f"the trials cannot be read: {broken}", str(self.path), "name another file"
            ) from broken

    def known(self, key: str) -> Trial | None:
        """The trial of that key, from an earlier run."""
        return self._held.get(key)

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        self._held[trial.key] = replace(trial, again=False)
        if self.path is not None:
            data = {"irprune": "trials", "trials": [asdict(t) for t in self._held.values()]}
            write_text(self.path, json.dumps(finite(data), indent=1) + "\n")
