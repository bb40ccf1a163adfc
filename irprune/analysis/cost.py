"""Cost as a polynomial: parameters, bytes, multiply-accumulates and activation memory are sums of
products of axis sizes.

So the cost of any choice is known exactly without running or cutting anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Protocol

from irprune.analysis.branches import take_out
from irprune.analysis.sizes import example_symbols
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis, factors, find, leaves, parts
from irprune.ir.dtype import item_bytes
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.selection import Selection
from irprune.ir.size import Size, Sym, evaluate
from irprune.ops.registry import lookup

__all__ = [
    "MEASURES",
    "PART",
    "Cost",
    "Costs",
    "Counts",
    "Factored",
    "Polynomial",
    "cost",
    "products_of",
    "repeated",
    "size_under",
]

MEASURES = ("macs", "params", "bytes", "activation")
PART = " of "  # in the name of a measure: "params of layers*", of the weights that match alone

Counts = Mapping[Axis, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a graph costs: ``macs`` of one call, ``params`` counted once where tied, ``bytes`` of
    all stored arrays, and ``activation``, the bytes of the values that are alive at the same time
    at the worst moment."""

    macs: int
    params: int
    bytes: int
    activation: int

    def __getitem__(self, measure: str) -> int:
        return int(getattr(self, measure))

    def as_dict(self) -> dict[str, int]:
        """The measures by name."""
        return asdict(self)


def size_under(
    axis: Axis, counts: Counts, symbols: Mapping[str, int], memo: dict[Axis, int]
) -> int:
    """The size of ``axis`` when its leaves have ``counts`` indices (whole where there is none) and
    symbols their values (1 where none)."""
    a = find(axis)
    if a in memo:
        return memo[a]
    if len(ps := parts(a)) > 1:
        out = sum(size_under(p, counts, symbols, memo) for p in ps)
    elif len(fs := factors(a)) > 1:
        out = 1
        for f in fs:
            out *= size_under(f, counts, symbols, memo)
    else:
        out = counts[a] if a in counts else number(a.size, symbols)
    memo[a] = out
    return out


def number(size: Size, symbols: Mapping[str, int]) -> int:
    """``size`` with the symbols' values put in; a symbol without one counts as 1, and so does what
    these values make smaller: what runs is not empty."""
    return max(1, evaluate(size, symbols, default=1)) if isinstance(size, Sym) else size


class Factored:
    """Products of axes of one graph as the sizes in them that may change, and the number that the
    others make. Each is worked out once, however many sums it stands in."""

    def __init__(self, symbols: Mapping[str, int]) -> None:
        self.symbols = symbols
        self._axes: dict[Axis, tuple[list[Axis], int]] = {}
        self._products: dict[tuple[Axis, ...], tuple[tuple[Axis, ...], int]] = {}
        self._sizes: dict[Axis, int] = {}

    def of(self, axes: tuple[Axis, ...]) -> tuple[tuple[Axis, ...], int]:
        """The sizes that may change, and the product of the others."""
        known = self._products.get(axes)
        if known is not None:
            return known
        open_: list[Axis] = []
        scale = 1
        for a in map(find, axes):
            if a not in self._axes:
                self._axes[a] = self._opened(a)
            changing, fixed = self._axes[a]
            open_ += changing
            scale *= fixed
        product = tuple(sorted(open_, key=lambda a: a.id) if len(open_) > 1 else open_)
        self._products[axes] = product, scale
        return product, scale

    def _opened(self, axis: Axis) -> tuple[list[Axis], int]:
        """The factors of ``axis`` that may change, and the product of the others."""
        changing, fixed = [], 1
        for f in factors(axis):
            if any(x.reason is None and x.size != 1 for x in leaves(f)):
                changing.append(f)
            else:
                fixed *= size_under(f, {}, self.symbols, self._sizes)
        return changing, fixed


class Polynomial:
    """A sum of products of sizes, each term with the name of what it counts. Equal products are
    added up."""

    def __init__(self, factored: Factored) -> None:
        self.factored, self.symbols = factored, factored.symbols
        self.fixed = 0  # what no choice changes
        self.terms: dict[tuple[Axis, ...], int] = {}
        self.sources: list[tuple[str, int, tuple[Axis, ...], tuple[Axis, ...]]] = []
        self._using: dict[Axis, list[tuple[Axis, ...]]] | None = None

    def add(
        self, axes: Iterable[Axis], scale: int = 1, source: str = ""
    ) -> tuple[int, tuple[Axis, ...]]:
        """Add ``scale`` times the product of the sizes of ``axes``; returns it as (number, sizes
        that may change)."""
        every = tuple(axes)
        product, fixed = self.factored.of(every)
        scale *= fixed
        if source:
            self.sources.append((source, scale, product, every))
        if not product:
            self.fixed += scale
        elif product in self.terms:
            self.terms[product] += scale
        else:
            self.terms[product] = scale
            self._using = None
        return scale, product

    @property
    def using(self) -> dict[Axis, list[tuple[Axis, ...]]]:
        """The products that each leaf stands in."""
        if self._using is None:
            self._using = {}
            for product in self.terms:
                for leaf in dict.fromkeys(x for a in product for x in leaves(a)):
                    self._using.setdefault(leaf, []).append(product)
        return self._using

    def value(self, product: Sequence[Axis], counts: Counts, memo: dict[Axis, int]) -> int:
        """The product of the sizes."""
        out = 1
        for a in product:
            out *= size_under(a, counts, self.symbols, memo)
        return out

    def at(self, counts: Counts, memo: dict[Axis, int] | None = None) -> int:
        """The whole sum."""
        memo = {} if memo is None else memo
        return self.fixed + sum(
            scale * self.value(product, counts, memo) for product, scale in self.terms.items()
        )

    def change(self, leaf: Axis, before: Counts, after: Counts) -> int:
        """By how much the sum grows from ``before`` to ``after``, which differ in ``leaf``
        alone."""
        old: dict[Axis, int] = {}
        new: dict[Axis, int] = {}
        return sum(
            self.terms[p] * (self.value(p, after, new) - self.value(p, before, old))
            for p in self.using.get(leaf, ())
        )

    def together(self, leaf: Axis) -> Iterable[Axis]:
        """The leaves that stand in a product with ``leaf``."""
        return (y for product in self.using.get(leaf, ()) for a in product for y in leaves(a))


class Timed(Protocol):
    """Latency in seconds, to be asked as a polynomial is (``irprune.latency.predict``)."""

    def at(self, counts: Counts) -> float: ...

    def change(self, leaf: Axis, before: Counts, after: Counts) -> float: ...

    def together(self, leaf: Axis) -> Iterable[Axis]: ...

    def largest(self, counts: Counts) -> list[tuple[str, float, str]]: ...


class Costs:
    """The cost polynomials of an analysed graph, and its ``latency`` where there are times for it.

    ``symbols`` gives sizes known only at run time; by default they are those of
    ``irprune.analysis.sizes.example_symbols``."""

    def __init__(
        self, graph: Graph, symbols: Mapping[str, int] | None = None, latency: Timed | None = None
    ) -> None:
        self.graph, self.latency = graph, latency
        self.symbols = dict(example_symbols(graph) if symbols is None else symbols)
        self.factored = Factored(self.symbols)
        self.macs, self.params, self.bytes = (Polynomial(self.factored) for _ in range(3))
        for node in graph.nodes:
            for axes in products_of(node):
                self.macs.add(axes, 1, node.where)
        for weight in graph.weights.values():
            axes = weight.axes or ()
            self.bytes.add(axes, item_bytes(weight.dtype), weight.name)
            if weight.kind == "parameter":
                self.params.add(axes, 1, weight.name)
        self._live = _Liveness(graph, self.factored)
        self._parts: dict[str, Polynomial] = {}

    def at(self, choice: Selection | Counts) -> Cost:
        """The cost under ``choice``. Raises ValueError where it changes a frozen axis: that is no
        cut of this graph."""
        if isinstance(choice, Selection) and choice.dropped:
            rest = take_out(self.graph.copy(), choice.dropped)
            return Costs(rest, self.symbols).at(Selection(choice.choice, choice.within))
        counts = choice.counts if isinstance(choice, Selection) else choice
        for a, n in counts.items():
            if a.reason is not None and n != a.size:
                raise ValueError(f"{a!r} is frozen: {a.reason}")
        memo: dict[Axis, int] = {}
        return Cost(
            self.macs.at(counts, memo),
            self.params.at(counts, memo),
            self.bytes.at(counts, memo),
            self._live.peak(counts, memo)[0],
        )

    def measure(self, name: str, counts: Counts) -> float:
        """One of the measures: a whole number, but for latency, which is in seconds; ``params of
        PATTERN`` and ``bytes of PATTERN`` are those of the weights that match."""
        return (
            self._live.peak(counts, {})[0]
            if name == "activation"
            else self._polynomial(name).at(counts)
        )

    def change(self, name: str, leaf: Axis, before: Counts, after: Counts) -> float:
        """By how much a measure grows when ``leaf`` alone changes."""
        if name == "activation":
            return self._live.peak(after, {})[0] - self._live.peak(before, {})[0]
        return self._polynomial(name).change(leaf, before, after)

    def _polynomial(self, name: str) -> Polynomial | Timed:
        if PART in name:
            if name not in self._parts:
                self._parts[name] = self._part(*name.split(PART, 1))
            return self._parts[name]
        found: Polynomial | Timed = getattr(self, name)
        return found

    def _part(self, measure: str, pattern: str) -> Polynomial:
        """The parameters or bytes of the weights whose name matches ``pattern``. Raises
        IrpruneError where none does."""
        out, some = Polynomial(self.factored), False
        for weight in self.graph.weights.values():
            if any(fnmatchcase(n, pattern) for n in (weight.name, *weight.aliases)):
                some = True
                if measure == "bytes" or weight.kind == "parameter":
                    scale = item_bytes(weight.dtype) if measure == "bytes" else 1
                    out.add(weight.axes or (), scale, weight.name)
        if not some:
            raise IrpruneError(
                f"the budget's pattern {pattern!r} matches no weight",
                "choose",
                "name weights as model.layers*",
            )
        return out

    def together(self, leaf: Axis, names: Iterable[str]) -> dict[Axis, None]:
        """The leaves, ``leaf`` among them, on whose counts it depends what a change of ``leaf``
        costs; not for activation."""
        return {leaf: None} | dict.fromkeys(
            y for name in names for y in self._polynomial(name).together(leaf)
        )

    def largest(self, name: str, counts: Counts) -> Sequence[tuple[str, float, str]]:
        """What a measure consists of under ``counts``, largest first: name, amount and what fixes
        its widest fixed size, if any."""
        if name == "activation":
            value = self._live.peak(counts, {})[1]
            return (
                [(f"the values alive at {value.where}", self._live.peak(counts, {})[0], "")]
                if value is not None
                else []
            )
        polynomial = self._polynomial(name)
        if not isinstance(polynomial, Polynomial):
            return polynomial.largest(counts)
        memo: dict[Axis, int] = {}
        amounts: dict[str, int] = {}
        why: dict[str, str] = {}
        for source, scale, product, axes in polynomial.sources:
            amounts[source] = amounts.get(source, 0) + scale * polynomial.value(
                product, counts, memo
            )
            frozen = [x for a in axes for x in leaves(a) if x.reason is not None]
            if frozen:
                widest = max(frozen, key=lambda x: number(x.size, self.symbols))
                why.setdefault(
                    source, f"{number(widest.size, self.symbols)} fixed: {widest.reason}"
                )
        return [
            (s, n, why.get(s, "")) for s, n in sorted(amounts.items(), key=lambda item: -item[1])
        ]


def cost(
    graph: Graph, kept: Selection | None = None, symbols: Mapping[str, int] | None = None
) -> Cost:
    """What ``graph`` costs under ``kept`` (its own choice by default, whole where it has none).
    Needs the axes."""
    chosen = kept if kept is not None else graph.kept
    return Costs(graph, symbols).at(chosen if chosen is not None else {})


def repeated(graph: Graph, kept: Selection) -> tuple[int, int]:
    """Parameters and bytes of weights under ``kept`` that are stored once and stand in the graph
    several times (uses of an array of a file that have a weight of their own each), beyond the
    first of those that are cut alike."""
    if kept.dropped:
        graph = take_out(graph.copy(), kept.dropped)
    params = size = 0
    stored: dict[int, list[Weight]] = {}
    for weight in graph.weights.values():
        stored.setdefault(id(weight.load), []).append(weight)
    for same in stored.values():
        seen: dict[tuple[bytes, ...], None] = {}
        for weight in same if len(same) > 1 else ():
            axes = weight.axes or ()
            cut = tuple(
                kept.present(axes, d).tobytes() if kept.changes(a) else b""
                for d, a in enumerate(axes)
            )
            if cut in seen:
                numel = prod(number(kept.size(a), {}) for a in axes)
                params += numel if weight.kind == "parameter" else 0
                size += numel * item_bytes(weight.dtype)
            seen[cut] = None
    return params, size


def products_of(node: Node) -> tuple[tuple[Axis, ...], ...]:
    """The sizes whose products count the multiply-accumulates of ``node``; nothing where a rank is
    unknown."""
    entry = lookup(node)
    if any(v is not None and v.type.shape is None for v in (*node.inputs, *node.outputs)):
        return ()
    found: tuple[Any, ...] = (
        tuple(entry.macs(node)) if entry is not None and entry.macs is not None else ()
    )
    return (found,) if found and isinstance(found[0], Axis) else found  # one product may come bare


class _Liveness:
    """Which values are alive when each node runs: from where they are made to where they are last
    read.

    Nodes run in graph order and nothing is fused; views take no memory of their own but keep what
    they show alive; inputs are alive until they are last read, outputs from where they are made to
    the end."""

    def __init__(self, graph: Graph, factored: Factored) -> None:
        self.nodes = graph.nodes
        polynomial = Polynomial(factored)
        self.polynomial = polynomial
        root: dict[Value, Value] = {}
        born: dict[Value, int] = {}
        last: dict[Value, int] = {}
        for value in graph.inputs:
            born[value] = last[value] = 0
        for i, node in enumerate(graph.nodes):
            for v in node.inputs:
                if v is not None and (owner := root.get(v, v)) in born:
                    last[owner] = i
            entry = lookup(node)
            source = node.inputs[0] if node.inputs else None
            view = entry is not None and entry.is_view and source is not None
            for v in node.outputs:
                owner = root.get(source, source) if view and source is not None else v
                root[v] = owner
                if owner is v:
                    born[v] = last[v] = i
        for v in graph.outputs:
            if (owner := root.get(v, v)) in born:
                last[owner] = len(graph.nodes)
        self.spans = []
        for v, start in born.items():
            if v.type.shape is None or isinstance(v, Weight):
                continue
            scale, product = polynomial.add(v.axes or (), item_bytes(v.dtype))
            self.spans.append((start, last[v], scale, product))

    def peak(self, counts: Counts, memo: dict[Axis, int]) -> tuple[int, Node | None]:
        """The largest sum of bytes alive, and the node at which it is reached."""
        change = [0] * (len(self.nodes) + 2)
        products: dict[tuple[Axis, ...], int] = {}
        for start, end, scale, product in self.spans:
            if product not in products:
                products[product] = self.polynomial.value(product, counts, memo)
            amount = scale * products[product]
            change[start] += amount
            change[end + 1] -= amount
        best = alive = 0
        where: Node | None = None
        for i, delta in enumerate(change[: len(self.nodes)]):
            alive += delta
            if alive > best:
                best, where = alive, self.nodes[i]
        return best, where
