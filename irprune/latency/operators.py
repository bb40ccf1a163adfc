"""What of a graph costs time: convolutions and matrix products, each with two sizes that may
shrink, and bytes for all the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from irprune.analysis.cost import Counts, Factored, Polynomial, number, size_under
from irprune.ir.axis import Axis, leaves
from irprune.ir.dtype import item_bytes
from irprune.ir.graph import Graph, Node, Weight
from irprune.ops.registry import Op, convolution_of, lookup, operand_as
from irprune.ops.traits import Convolution

__all__ = ["Operator", "Work", "moved", "works_of"]


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator but for the two sizes that pruning changes.

    ``kind`` is ``conv``, ``conv_transpose``, ``depthwise`` or ``matrix``. ``fixed`` of a
    convolution is (batch, groups, input's spatial sizes, kernel, stride, padding, dilation), of a
    matrix product (batch, rows, whether the second factor is a weight)."""

    kind: str
    fixed: tuple[Any, ...]

    def key(self, a: int, b: int) -> str:
        """The operator at the sizes ``a`` (summed away; channels where depthwise) and ``b`` (made),
        as the table names it."""
        told = " ".join(
            "x".join(map(str, f)) if isinstance(f, tuple) else str(f) for f in self.fixed
        )
        return f"{self.kind} {told} {a}>{b}"


@dataclass(frozen=True, slots=True)
class Work:
    """One use of an operator: ``a`` and ``b`` are products of axes over one of axes, ``times``
    counts equal pieces of it."""

    operator: Operator
    a: tuple[tuple[Axis, ...], tuple[Axis, ...]]
    b: tuple[tuple[Axis, ...], tuple[Axis, ...]]
    times: tuple[tuple[Axis, ...], tuple[Axis, ...]]
    where: str

    def sizes(
        self, counts: Counts, symbols: Mapping[str, int], memo: dict[Axis, int]
    ) -> tuple[int, int, float]:
        """``a``, ``b`` and ``times`` (relative to the whole operator) under ``counts``."""

        def value(
            fraction: tuple[tuple[Axis, ...], tuple[Axis, ...]],
            memo: dict[Axis, int],
            counts: Counts,
        ) -> float:
            above, below = fraction
            return prod(size_under(x, counts, symbols, memo) for x in above) / max(
                prod(size_under(x, counts, symbols, memo) for x in below), 1
            )

        repeated = 1.0
        if self.times != ((), ()):
            repeated = value(self.times, memo, counts) / max(value(self.times, {}, {}), 1e-9)
        return (
            max(round(value(self.a, memo, counts)), 1),
            max(round(value(self.b, memo, counts)), 1),
            repeated,
        )

    def leaves(self) -> dict[Axis, None]:
        """The leaves that its sizes depend on."""
        every = [x for fraction in (self.a, self.b, self.times) for side in fraction for x in side]
        return dict.fromkeys(x for a in every for x in leaves(a))


def works_of(graph: Graph, symbols: Mapping[str, int]) -> list[Work]:
    """The convolutions and matrix products of an analysed graph, in its order."""
    return [
        work
        for node in graph.nodes
        if (entry := lookup(node)) is not None
        for work in _of(node, entry, symbols)
    ]


def moved(graph: Graph, symbols: Mapping[str, int]) -> Polynomial:
    """The bytes that all other operators write, less those that the runtime makes part of a
    convolution."""
    out = Polynomial(Factored(symbols))
    for node in graph.nodes:
        entry = lookup(node)
        free = entry is not None and (entry.is_view or entry.free or _products(node, entry))
        if free or _fused(node, entry):
            continue
        for v in node.outputs:
            if v.type.shape is not None:
                out.add(v.axes or (), item_bytes(v.dtype))
    return out


def _fused(node: Node, entry: Op | None) -> bool:
    """Whether a runtime makes ``node`` part of the convolution before it, over norms between."""
    if entry is None or not entry.joins:
        return False
    source = _before(node)
    while source is not None and operand_as(source, "mean") is not None:
        source = _before(source)
    geometry = convolution_of(source) if source is not None else None
    return geometry is not None and geometry.linear and not geometry.transposed


def _before(node: Node) -> Node | None:
    first = node.inputs[0] if node.inputs else None
    return first.producer if first is not None else None


def _name(node: Node) -> str:
    return next((v.name for v in node.inputs[1:2] if isinstance(v, Weight)), node.where)


def _products(node: Node, entry: Op) -> tuple[tuple[Axis, ...], ...]:
    found: tuple[Any, ...] = tuple(entry.macs(node)) if entry.macs is not None else ()
    return (found,) if found and isinstance(found[0], Axis) else found


def _of(node: Node, entry: Op, symbols: Mapping[str, int]) -> Iterator[Work]:
    geometry = convolution_of(node)
    if geometry is not None:
        yield _convolution(node, geometry, symbols)
    elif found := _products(node, entry):
        letters = entry.letters(node) if entry.letters is not None else ()
        factors = _factors(letters)
        if len(factors) > 1 and len(found) == 1:  # two factors; what else there is, is added
            yield _contraction(node, letters, factors, symbols)
        else:
            for axes in found:
                yield _plain(node, axes, symbols)


def _factors(letters: Sequence[Sequence[str]]) -> list[int]:
    """The operands of a product that something is summed over in, else the first that there are."""
    *terms, out = letters or [[]]
    summed = [i for i, t in enumerate(terms) if any(x not in out for x in t)]
    return summed if len(summed) > 1 else [i for i, t in enumerate(terms) if t]


def _convolution(node: Node, geometry: Convolution, symbols: Mapping[str, int]) -> Work:
    x, w = node.operand(geometry.image), node.operand(geometry.kernel)
    channels = 1 if geometry.batched else 0
    image, kernel = x.shape[channels + 1 :], w.shape[2:]
    ci = (x.axes or ())[channels]
    first, second, *_ = w.axes or ()
    whole = {a: size_under(a, {}, symbols, {}) for a in (ci, first, second)}
    backward = geometry.transposed
    groups = geometry.groups if backward else whole[ci] // whole[second]

    batch = number(x.shape[0], symbols) if geometry.batched else 1
    fixed = (
        batch,
        groups,
        tuple(number(s, symbols) for s in image),
        tuple(number(k, symbols) for k in kernel),
        geometry.stride,
        tuple(before for before, _ in geometry.padding),
        geometry.dilation,
    )
    none: tuple[Axis, ...] = ()
    if groups > 1 and not backward and whole[second] == 1:
        return Work(
            Operator("depthwise", (batch, 1, *fixed[2:])),
            ((ci,), none),
            ((first,), (ci,)),
            (none, none),
            _name(node),
        )
    if backward:
        return Work(
            Operator("conv_transpose", fixed),
            ((ci,), none),
            ((second,), none),
            (none, none),
            _name(node),
        )
    if groups > 1:  # channels within each group; fewer groups cost in proportion
        return Work(
            Operator("conv", fixed),
            ((second,), none),
            ((first, second), (ci,)),
            ((ci,), (second,)),
            _name(node),
        )
    return Work(Operator("conv", fixed), ((ci,), none), ((first,), none), (none, none), _name(node))


def _contraction(
    node: Node, letters: tuple[list[str], ...], factors: Sequence[int], symbols: Mapping[str, int]
) -> Work:
    i, j, *_ = factors
    left, right, out = letters[i], letters[j], letters[-1]
    table: dict[str, Axis] = {}
    for value, term in ((node.inputs[i], left), (node.inputs[j], right)):
        for x, a in zip(term, (value.axes or ()) if value is not None else (), strict=False):
            if a.size != 1 or x not in table:
                table[x] = a
    summed = [table[x] for x in table if x not in out]
    made = [table[x] for x in right if x not in left and x in out]
    shared = [table[x] for x in left if x in right and x in out]
    rows = [table[x] for x in left if x not in right and x in out]
    return _matrix(
        shared, rows, summed, made, isinstance(node.inputs[j], Weight), _name(node), symbols
    )


def _plain(node: Node, axes: Iterable[Axis], symbols: Mapping[str, int]) -> Work:
    """A product of which only the sizes are known: the last axis is summed, as in attention."""
    *rest, summed = axes
    made, rows, batch = rest[-1:], rest[-2:-1], rest[:-2]
    return _matrix(batch, rows, [summed], made, False, _name(node), symbols)


def _matrix(
    batch: list[Axis],
    rows: list[Axis],
    summed: list[Axis],
    made: list[Axis],
    weight: bool,
    where: str,
    symbols: Mapping[str, int],
) -> Work:
    def whole(axes: list[Axis]) -> int:
        return prod(size_under(x, {}, symbols, {}) for x in axes)

    operator = Operator("matrix", (whole(batch), whole(rows), int(weight)))
    return Work(operator, (tuple(summed), ()), (tuple(made), ()), ((*batch, *rows), ()), where)
