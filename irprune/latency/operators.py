"""What of a graph costs time: convolutions and matrix products, each with two sizes that may
shrink, and bytes for all the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from irprune.analysis.cost import Counts, Polynomial, number, size_under
from irprune.ir.axis import Axis, leaves
from irprune.ir.dtype import item_bytes
from irprune.ir.graph import Graph, Node, Weight
from irprune.ops.registry import Op, lookup

__all__ = ["Operator", "Work", "moved", "works_of"]

_FREE_OF_COST = ("shape", "cut", "create", "cast")  # views and constants


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
    out = Polynomial(symbols)
    for node in graph.nodes:
        entry = lookup(node)
        if (
            entry is not None and (entry.family in _FREE_OF_COST or _products(node, entry))
        ) or _fused(node):
            continue
        for v in node.outputs:
            if v.type.shape is not None:
                out.add(v.axes or (), item_bytes(v.dtype))
    return out


def _fused(node: Node) -> bool:
    source = node.inputs[0].producer if node.inputs and node.inputs[0] is not None else None
    while source is not None and source.op == "batch_norm":
        source = source.inputs[0].producer if source.inputs[0] is not None else None
    return (
        source is not None
        and source.op in ("conv", "convolution")
        and node.op in ("batch_norm", "relu")
    )


def _name(node: Node) -> str:
    return next((v.name for v in node.inputs[1:2] if isinstance(v, Weight)), node.where)


def _products(node: Node, entry: Op) -> tuple[tuple[Axis, ...], ...]:
    found: tuple[Any, ...] = tuple(entry.macs(node)) if entry.macs is not None else ()
    return (found,) if found and isinstance(found[0], Axis) else found


def _of(node: Node, entry: Op, symbols: Mapping[str, int]) -> Iterator[Work]:
    if (
        entry.family == "conv"
        and len(node.inputs) > 1
        and entry.macs is not None
        and "stride" in node.attrs
    ):
        yield _convolution(node, symbols)
    elif found := _products(node, entry):
        letters = entry.letters(node) if entry.letters is not None else ()
        if len(letters) > 2 and len(found) == 1:  # two factors; what else there is, is added
            yield _contraction(node, letters, symbols)
        else:
            for axes in found:
                yield _plain(node, axes, symbols)


def _convolution(node: Node, symbols: Mapping[str, int]) -> Work:
    x, w = node.operand(0), node.operand(1)
    channels = 1 if x.rank == w.rank else 0
    image, kernel = x.shape[channels + 1 :], w.shape[2:]
    (ci,) = (x.axes or ())[channels : channels + 1]
    first, second, *_ = w.axes or ()
    whole = {a: size_under(a, {}, symbols, {}) for a in (ci, first, second)}
    backward = node.op == "conv_transpose" or bool(node.attrs.get("transposed"))
    groups = int(node.attrs.get("groups", 1)) if backward else whole[ci] // whole[second]
    count = len(kernel)

    def each(name: str, default: int) -> tuple[int, ...]:
        given = node.attrs.get(name, default)
        if given == "same":
            return tuple((number(k, symbols) - 1) // 2 for k in kernel)
        if given == "valid":
            return (0,) * count
        many = list(given) if isinstance(given, (list, tuple)) else [given]
        return tuple(int(many[i % len(many)]) for i in range(count))

    batch = prod(number(s, symbols) for s in x.shape[:channels])
    fixed = (
        batch,
        groups,
        tuple(number(s, symbols) for s in image),
        tuple(number(k, symbols) for k in kernel),
        each("stride", 1),
        each("padding", 0),
        each("dilation", 1),
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


def _contraction(node: Node, letters: tuple[list[str], ...], symbols: Mapping[str, int]) -> Work:
    left, right, *_, out = letters
    table: dict[str, Axis] = {}
    for value, term in zip(node.inputs, (left, right), strict=False):
        for x, a in zip(term, (value.axes or ()) if value is not None else (), strict=False):
            if a.size != 1 or x not in table:
                table[x] = a
    summed = [table[x] for x in table if x not in out]
    made = [table[x] for x in right if x not in left and x in out]
    shared = [table[x] for x in left if x in right and x in out]
    rows = [table[x] for x in left if x not in right and x in out]
    return _matrix(
        shared, rows, summed, made, isinstance(node.inputs[1], Weight), _name(node), symbols
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
