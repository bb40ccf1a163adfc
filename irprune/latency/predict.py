"""Predicted latency: the times of a graph's operators added up, for any choice of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from irprune.analysis.cost import Counts
from irprune.analysis.sizes import example_symbols
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph, Weight
from irprune.ir.size import probe_of
from irprune.latency.operators import Operator, moved, works_of
from irprune.latency.table import Table
from irprune.ops.registry import convolution_of

__all__ = ["Parts", "Predictor", "aligned_step", "step_of"]

_PER_BYTE = (
    2e-10  # seconds for a byte written by all the rest, where no whole model was measured: 5 GB/s
)


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the time of a whole model went, in seconds: ``products`` (convolutions and matrix
    products), ``rest`` (other operators) and ``overhead``, which no choice changes."""

    products: float
    rest: float
    overhead: float


class Predictor:
    """Latency of an analysed graph under a choice, in seconds, from a table of times; missing times
    are measured here.

    The sum of one-node times is scaled so that the whole graph takes what ``parts`` measured.
    ``at``, ``change`` and ``largest`` are those of a cost polynomial. ``tell(done, total)`` hears
    how far the measuring is."""

    def __init__(
        self,
        graph: Graph,
        table: Table,
        parts: Parts | None = None,
        symbols: Mapping[str, int] | None = None,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.graph, self.table = graph, table
        self.symbols = dict(example_symbols(graph) if symbols is None else symbols)
        self.works = works_of(graph, self.symbols)
        self.most = [w.sizes({}, self.symbols, {})[:2] for w in self.works]
        self.bytes = moved(graph, self.symbols)
        needed: dict[tuple[Operator, tuple[int, int]], None] = {
            (w.operator, m): None for w, m in zip(self.works, self.most, strict=True)
        }
        for done, (operator, most) in enumerate(needed):
            table.fill(operator, most)
            tell(done + 1, len(needed))
        table.save()
        self.using: dict[Axis, list[int]] = {}
        for k, work in enumerate(self.works):
            for leaf in work.leaves():
                self.using.setdefault(leaf, []).append(k)
        self.factor, self.per_byte, self.overhead = 1.0, _PER_BYTE, 0.0
        if parts is not None:
            products = sum(self._work(k, {}, {}) for k in range(len(self.works)))
            self.factor = parts.products / products if products and parts.products else 1.0
            whole = self.bytes.at({})
            self.per_byte = parts.rest / whole if whole else 0.0
            self.overhead = parts.overhead

    def _work(self, k: int, counts: Counts, memo: dict[Axis, int]) -> float:
        work = self.works[k]
        a, b, times = work.sizes(counts, self.symbols, memo)
        return self.factor * times * self.table.time(work.operator, a, b, self.most[k])

    def at(self, counts: Counts) -> float:
        """Seconds under ``counts``."""
        memo: dict[Axis, int] = {}
        products = sum(self._work(k, counts, memo) for k in range(len(self.works)))
        return products + self.per_byte * self.bytes.at(counts, memo) + self.overhead

    def change(self, leaf: Axis, before: Counts, after: Counts) -> float:
        """By how much ``at`` grows when ``leaf`` alone changes."""
        old: dict[Axis, int] = {}
        new: dict[Axis, int] = {}
        using = self.using.get(leaf, ())
        return sum(
            self._work(k, after, new) - self._work(k, before, old) for k in using
        ) + self.per_byte * self.bytes.change(leaf, before, after)

    def together(self, leaf: Axis) -> Iterator[Axis]:
        """The leaves of operators that ``leaf`` is in."""
        for k in self.using.get(leaf, ()):
            yield from self.works[k].leaves()
        yield from self.bytes.together(leaf)

    def largest(self, counts: Counts) -> list[tuple[str, float, str]]:
        """What takes longest under ``counts``: where it stands, seconds and its sizes."""
        memo: dict[Axis, int] = {}
        found = []
        for k, work in enumerate(self.works):
            a, b, _ = work.sizes(counts, self.symbols, memo)
            found.append(
                (work.where, self._work(k, counts, memo), f"{work.operator.kind} {a} to {b}")
            )
        return sorted(found, key=lambda item: -item[1])


def aligned_step(weight: Weight) -> int:
    """The multiple that the channels of a convolution should be on most machines, whose kernels
    work on blocks of 8 or 16: 8, 4 where there are fewer than 32 of them, 1 below 16. 1 for other
    weights."""
    if weight.rank < 3 or not any(convolution_of(node) is not None for node in weight.users):
        return 1
    channels = [n for n in map(probe_of, weight.shape[:2]) if n >= 8]
    least = min(channels, default=1)
    return 8 if least >= 32 else 4 if least >= 16 else 1


def step_of(weight: Weight, table: Table) -> int:
    """The multiple that the provider likes the widths of ``weight`` to be: its readers' step."""
    if weight.rank < 2:
        return 1
    conv = any(convolution_of(node) is not None for node in weight.users)
    return table.step("conv" if conv else "matrix")
