"""What it costs when layers become two thinner ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING

from irprune.analysis.cost import PART, Costs, Counts, products_of, size_under
from irprune.ir.axis import Axis, find, leaves
from irprune.ir.dtype import item_bytes
from irprune.ir.size import probe_of

if TYPE_CHECKING:
    from irprune.analysis.factorable import Factorable

__all__ = ["RankedCosts"]


class RankedCosts(Costs):
    """Costs of counts in which some layers may be two: the count of a layer's own leaf is its
    rank, and one layer it is where that is the leaf's size.

    What lies between the two layers takes memory that ``activation`` does not count."""

    def __init__(self, costs: Costs, layers: Mapping[Axis, Factorable]) -> None:
        self.__dict__.update(costs.__dict__)
        self._layers = {
            leaf: _Priced(leaf, one, products_of(one.layer.node), self.symbols)
            for leaf, one in layers.items()
        }
        self._touching: dict[Axis, list[_Priced]] = {}
        for leaf, priced in self._layers.items():
            for x in (leaf, *priced.leaves):
                self._touching.setdefault(x, []).append(priced)

    def measure(self, name: str, counts: Counts) -> float:
        """As of ``Costs``."""
        more = sum(p.more(name, counts) for p in self._layers.values())
        return super().measure(name, counts) + more

    def change(self, name: str, leaf: Axis, before: Counts, after: Counts) -> float:
        """As of ``Costs``; ``leaf`` may be that of a layer's rank."""
        out = 0.0 if leaf in self._layers else super().change(name, leaf, before, after)
        for priced in self._touching.get(leaf, ()):
            out += priced.more(name, after) - priced.more(name, before)
        return out

    def together(self, leaf: Axis, names: Iterable[str]) -> dict[Axis, None]:
        """As of ``Costs``."""
        out = super().together(leaf, names)
        for priced in self._touching.get(leaf, ()):
            out |= dict.fromkeys((priced.leaf, *priced.leaves))
        return out

    def largest(self, name: str, counts: Counts) -> Sequence[tuple[str, float, str]]:
        """As of ``Costs``, of the layers as one."""
        return super().largest(name, {x: n for x, n in counts.items() if x not in self._layers})

    def saves(self, leaf: Axis, counts: Counts) -> bool:
        """Whether two layers of the rank in ``counts`` have fewer weights than the one."""
        return self._layers[leaf].more("params", counts) < 0


class _Priced:
    """What two layers cost more than the one, by the counts of its leaves."""

    def __init__(
        self,
        leaf: Axis,
        one: Factorable,
        products: tuple[tuple[Axis, ...], ...],
        symbols: Mapping[str, int],
    ) -> None:
        weight = one.layer.weight
        axes = weight.axes or ()
        self.leaf, self.name, self.aliases = leaf, weight.name, weight.aliases
        self.itemsize = item_bytes(weight.dtype)
        self.inputs = tuple(find(axes[d]) for d in one.inputs)
        self.outputs = tuple(find(axes[d]) for d in one.outputs)
        self.products, self.symbols = products, symbols
        self.leaves = list(dict.fromkeys(self._leaves()))
        self.size = probe_of(leaf.size)

    def _leaves(self) -> Iterator[Axis]:
        for many in ((*self.inputs, *self.outputs), *self.products):
            for a in many:
                yield from leaves(a)

    def more(self, name: str, counts: Counts) -> float:
        """By how much the measure ``name`` is more; 0 where the layer stays one."""
        rank = counts.get(self.leaf, self.size)
        if rank >= self.size:
            return 0.0
        memo: dict[Axis, int] = {}

        def number(axes: Iterable[Axis]) -> int:
            return prod(size_under(a, counts, self.symbols, memo) for a in axes)

        ins, outs = number(self.inputs), number(self.outputs)
        fewer = rank * (ins + outs) - ins * outs
        if name == "macs":
            return fewer * sum(number(p) for p in self.products) / (ins * outs)
        measure, part, pattern = name.partition(PART)
        if part and not any(fnmatchcase(n, pattern) for n in (self.name, *self.aliases)):
            return 0.0
        return float(fewer * {"params": 1, "bytes": self.itemsize}.get(measure, 0))
