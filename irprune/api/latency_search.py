"""Choose under a latency budget: predict, cut, measure, and aim again by what was missed, too slow
or too quick alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from irprune.api.latency_whole import WholeModel
from irprune.choice.budget import read_latency_budget
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.run.timing import Timing, ratio_of

if TYPE_CHECKING:
    from irprune.passes.choose import Choose

__all__ = ["Latency", "choose_in_time"]

_TURNS = 10  # cuts that are measured at most
_NEAR = 0.03  # of what was asked: good enough to stop
_TOLERANCE = 0.05  # of what was asked: what lies further off is explained
_STEP = 0.002  # of the whole: aims nearer to each other than this are the same
_LONGER = 3  # times as long is measured again where the machine is noisy


@dataclass(frozen=True)
class Latency:
    """Latency of the original and of the cut on onnxruntime: ``before`` and ``after`` measured in
    turns, ``asked`` and ``predicted`` for the cut, in seconds; ``cuts`` were measured to get there.
    ``why`` says what keeps it off, where it is more than 5 % off, or that the machine is too noisy
    to tell; ``origin`` where the times of operators come from that predictions are made of."""

    before: Timing
    after: Timing
    asked: float
    predicted: float
    provider: str
    version: str
    threads: int
    cuts: int
    why: str = ""
    origin: str = ""

    @property
    def ratio(self) -> Timing:
        """The time that is left as a share, turn by turn."""
        return ratio_of(self.after, self.before)

    @property
    def left(self) -> float:
        """The share of the time that is left."""
        return self.ratio.median

    @property
    def missed(self) -> float:
        """How far the measured time is from what was asked, as a share of it; below 0 where it is
        quicker."""
        return self.left * self.before.median / self.asked - 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "asked_s": self.asked,
            "predicted_s": self.predicted,
            "left": self.left,
            "left_low": self.ratio.low,
            "left_high": self.ratio.high,
            "noisy": self.ratio.noisy,
            "operator_times": self.origin,
            "provider": self.provider,
            "onnxruntime": self.version,
            "threads": self.threads,
            "cuts": self.cuts,
            "why": self.why,
        }

    def __str__(self) -> str:
        return (
            f"{self.before} -> {self.after} ({self.left:.1%}); asked {self.asked * 1e3:.3g} ms, predicted "
            f"{self.predicted * 1e3:.3g} ms "
            f"({self.provider}, onnxruntime {self.version}, {self.threads or 'all'} threads)"
            + "".join(f"; {text}" for text in (self.why, self.origin) if text)
        )


def choose_in_time(
    graph: Graph,
    choose: Choose,
    amount: Any,
    cut: Callable[[Graph], Graph],
    device: str = "auto",
    threads: int = 0,
    say: Callable[[str], None] = lambda text: None,
    seconds: float = 1.0,
) -> Latency:
    """Set ``graph.kept`` so that the cut's measured latency is ``amount`` (see
    ``read_latency_budget``); the other budgets of ``choose`` hold as well.

    ``choose.times`` may bring the table of times; ``cut`` slices a copy of the graph; ``say`` hears
    how it goes. The prediction decides what is cut; each cut is then measured, in turns with the
    original, and the next one is aimed between what was too quick and what was too slow, until one
    is within 3 % or ten were measured; the nearest counts. Raises IrpruneError where the budget
    cannot be met."""
    import onnxruntime

    number, absolute = read_latency_budget(amount)
    with WholeModel(graph, device, threads, seconds) as whole:
        predictor = whole.predictor(choose.times, say)
        say(f"the original takes {whole.before}")
        share = number / whole.before.median if absolute else number
        aim, best, kept, skipped, why = _Aim(min(share, 1.0)), None, graph.kept, graph.skipped, ""
        tried: dict[float, Latency] = {}
        while len(tried) < _TURNS:
            try:
                replace(
                    choose, budget={**(choose.budget or {}), "latency": aim.now}, times=predictor
                ).run(graph)
            except IrpruneError as refused:
                if best is None:
                    raise
                why = refused.what  # what was measured nearest stands
                break
            counts = graph.kept.counts if graph.kept is not None else {}
            predicted = round(predictor.at(counts), 12)
            found = tried.get(predicted)
            if found is None:
                before, after = whole.beside(graph, cut)
                if ratio_of(after, before).noisy:
                    before, after = whole.beside(graph, cut, _LONGER)
                asked = number if absolute else share * before.median
                found = Latency(
                    before,
                    after,
                    asked,
                    predicted / predictor.at({}) * before.median,
                    whole.provider,
                    onnxruntime.__version__,
                    threads,
                    len(tried) + 1,
                )
                tried[predicted] = found
                say(
                    f"cut {len(tried)}: predicted {found.predicted * 1e3:.3g} ms, measured {after}, asked {asked * 1e3:.3g} ms"
                )
                if best is None or abs(found.missed) < abs(best.missed):
                    best, kept, skipped = found, graph.kept, graph.skipped
            if abs(found.missed) <= _NEAR or not aim.moved(found.missed):
                break
        graph.kept, graph.skipped = kept, skipped
    assert best is not None
    if abs(best.missed) <= _TOLERANCE:
        why = ""
    elif not why:
        near = sorted(tried.values(), key=lambda f: abs(f.missed))[:2]
        why = (
            f"no cut nearer to {best.asked * 1e3:.3g} ms was found: the nearest take "
            + " and ".join(f"{f.after.median * 1e3:.3g} ms" for f in near)
            + "; round_to=1 allows more, keep and max_ratio fewer"
        )
    ratio = best.ratio
    if ratio.noisy:
        noise = (
            f"the machine is noisy: {ratio.low:.2f} to {ratio.high:.2f} of the original's time in "
            f"{ratio.runs} turns, so what is left is not known for sure; run it where nothing "
            "else runs"
        )
        why = f"{why}; {noise}" if why else noise
        say(f"warning: {noise}")
    return replace(best, cuts=len(tried), why=why, origin=predictor.table.origin)


class _Aim:
    """The share to predict (``now``), between the largest that came out too quick and the smallest
    that came out too slow."""

    def __init__(self, first: float) -> None:
        self.now = first
        self.quick: tuple[float, float] | None = None  # (aim, how far it missed)
        self.slow: tuple[float, float] | None = None

    def moved(self, missed: float) -> bool:
        """Whether there is another share to try, once the present one ``missed`` by so much."""
        here = (self.now, missed)
        if missed < 0:
            if self.now >= 1.0:
                return False
            self.quick, self.slow = (
                here,
                self.slow if self.slow is not None and self.slow[0] > self.now else None,
            )
        else:
            self.slow, self.quick = (
                here,
                self.quick if self.quick is not None and self.quick[0] < self.now else None,
            )
        if self.quick is None or self.slow is None:
            self.now = min(self.now / (1 + missed), 1.0)
            return True
        (low, under), (high, over) = self.quick, self.slow
        if high - low < _STEP:
            return False
        share = -under / max(over - under, 1e-9)
        self.now = low + (high - low) * min(max(share, 0.2), 0.8)
        return True
