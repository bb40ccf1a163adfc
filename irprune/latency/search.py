"""Choose under a latency budget: predict, cut, measure, and aim again by what was missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from irprune.choice.budget import wanted
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.latency.predict import Predictor
from irprune.latency.table import Table
from irprune.latency.whole import Whole
from irprune.validate.latency import Timing

if TYPE_CHECKING:
    from irprune.passes.choose import Choose

__all__ = ["Latency", "choose_in_time"]

_TURNS = 5  # cuts that are measured at most
_NEAR = 0.03  # of what was asked: good enough to stop


@dataclass(frozen=True)
class Latency:
    """Latency of the original and of the cut on onnxruntime: ``before`` and ``after`` measured in turns, ``asked`` and ``predicted``
    for the cut, in seconds; ``cuts`` were measured to get there."""

    before: Timing
    after: Timing
    asked: float
    predicted: float
    provider: str
    version: str
    threads: int
    cuts: int

    @property
    def left(self) -> float:
        """The share of the time that is left."""
        return self.after.median / self.before.median

    @property
    def missed(self) -> float:
        """How far the measured time is from what was asked, as a share of it; below 0 where it is quicker."""
        return self.after.median / self.asked - 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"before": self.before.as_dict(), "after": self.after.as_dict(), "asked_s": self.asked, "predicted_s": self.predicted,
                "left": self.left, "provider": self.provider, "onnxruntime": self.version, "threads": self.threads, "cuts": self.cuts}

    def __str__(self) -> str:
        return (f"{self.before} -> {self.after} ({self.left:.1%}); asked {self.asked * 1e3:.3g} ms, predicted "
                f"{self.predicted * 1e3:.3g} ms "
                f"({self.provider}, onnxruntime {self.version}, {self.threads or 'all'} threads)")


def choose_in_time(
    graph: Graph, choose: Choose, amount: Any, cut: Callable[[Graph], Graph], device: str = "auto", threads: int = 0,
    say: Callable[[str], None] = lambda text: None, seconds: float = 1.0,
) -> Latency:
    """Set ``graph.kept`` so that the cut's measured latency is ``amount`` (``wanted``); the other budgets of ``choose`` hold as well.

    ``choose.times`` may bring the table of times; ``cut`` slices a copy of the graph; ``say`` hears how it goes. The prediction decides
    what is cut; each cut is then measured, in turns with the original, and the next one is aimed by what this one missed, until
    one is within 3 % or five were measured; the nearest counts. Raises IrpruneError where the budget cannot be met.
    """
    import onnxruntime

    number, absolute = wanted(amount)
    with Whole(graph, device, threads, seconds) as whole:
        table = choose.times if choose.times is not None else Table.here(device, threads)

        def tell(done: int, total: int) -> None:
            if done % 10 == 0 or done == total:
                say(f"operators measured: {done} of {total}")

        predictor = Predictor(graph, table, whole.parts(), tell=tell)
        say(f"the original takes {whole.before}")
        share = number / whole.before.median if absolute else number
        budget: Mapping[str, float] = choose.budget or {}
        aim, best, kept, skipped = min(share, 1.0), None, graph.kept, graph.skipped
        tried: list[float] = []
        for turn in range(_TURNS):
            try:
                replace(choose, budget={**budget, "latency": aim}, times=predictor).run(graph)
            except IrpruneError:
                if best is None:
                    raise
                break  # the prediction says less cannot be; what was measured nearest stands
            counts = {a: int(k.shape[-1]) for a, k in graph.kept.choice.items()} if graph.kept is not None else {}
            predicted = predictor.at(counts)
            if any(abs(predicted - p) < 1e-12 for p in tried):
                break
            tried.append(predicted)
            before, after = whole.beside(cut(graph))
            asked = number if absolute else share * before.median
            found = Latency(before, after, asked, predicted / predictor.at({}) * before.median, whole.provider, onnxruntime.__version__,
                            threads, turn + 1)
            say(f"cut {turn + 1}: predicted {found.predicted * 1e3:.3g} ms, measured {after}, asked {asked * 1e3:.3g} ms")
            if best is None or abs(found.missed) < abs(best.missed):
                best, kept, skipped = found, graph.kept, graph.skipped
            if abs(found.missed) <= _NEAR or (aim >= 1.0 and found.missed < 0):
                break
            aim = min(aim / (1 + found.missed), 1.0)
        graph.kept, graph.skipped = kept, skipped
    assert best is not None
    return replace(best, cuts=len(tried))
