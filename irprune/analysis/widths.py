"""Widths: how the sizes of dimensions follow from leaves, and which factor of a product carries its
ratio.

Halving both the heads and the head size leaves a quarter of their product, so of the free factors
of a product one carries the ratio and the others are held. A width is then linear in the counts of
the leaves that carry."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from math import lcm

from irprune.base.near import meant
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis, factors, find, leaves, parts
from irprune.ir.dtype import element_type
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import leaf_positions
from irprune.ir.size import Sym, probe_of
from irprune.ops.registry import lookup

__all__ = ["PREFER", "Carriers", "Width", "carriers_of", "row_step", "widths_of"]

PREFER = ("heads", "head_dim", "both", "groups")


@dataclass(frozen=True, slots=True)
class Width:
    """The size of some dimension: ``fixed + sum(coefficient * count of leaf)``.

    ``matrix`` says that a contraction (convolution, linear map, matrix product) has it, so that its
    size matters for speed. ``step`` is the multiple that it should have."""

    terms: tuple[tuple[Axis, int], ...]
    fixed: int
    matrix: bool
    step: int = 1

    def at(self, counts: Mapping[Axis, float]) -> float:
        """The width for ``counts``; leaves without a count are whole."""
        return self.fixed + sum(c * counts.get(x, probe_of(x.size)) for x, c in self.terms)


@dataclass(slots=True)
class Carriers:
    """``held`` leaves stay whole, each because the leaf it maps to carries the ratio; ``sharing``
    counts how many factors of a product share it (1 but for ``prefer="both"``)."""

    held: dict[Axis, Axis] = field(default_factory=dict)
    sharing: dict[Axis, int] = field(default_factory=dict)


def carriers_of(
    graph: Graph, eligible: Container[Axis], prefer: str = "heads", asked: Container[Axis] = ()
) -> Carriers:
    """Decide for every product of ``eligible`` leaves which factor carries its ratio.

    ``prefer``: ``heads`` takes the factor that most places share, the outermost of equals
    (key/value heads under grouped queries), ``head_dim`` the innermost, ``both`` lets all share,
    ``groups`` takes the groups of convolutions and norms, which are otherwise held. ``asked``
    leaves go first. Raises IrpruneError for another ``prefer``."""
    if prefer not in PREFER:
        hint = meant(prefer, PREFER, "one of " + ", ".join(PREFER))
        raise IrpruneError(f"prefer is {prefer!r}", "", hint)
    out = Carriers()
    products = _products(graph, eligible)
    covered: dict[Axis, int] = {}
    standing: dict[Axis, list[int]] = {}  # the products that a leaf stands in
    for at, (units, places) in enumerate(products):
        for x in dict.fromkeys(x for unit in units for x in unit):
            covered[x] = covered.get(x, 0) + places
            standing.setdefault(x, []).append(at)

    def together(units: list[list[Axis]]) -> list[int]:
        """For each unit, the places where it stands beside another of these: head_dim under rotary
        tables stands in every layer, but beside the heads of one layer only where they do too."""
        at = [{k for x in unit for k in standing[x]} for unit in units]
        return [
            sum(products[k][1] for k in own if any(k in other for other in at if other is not own))
            for own in at
        ]

    counts_groups = {x: x.role == "group" for x in covered}
    for x in _alone(graph):
        counts_groups[x] = (
            False  # a width of its own, such as the channels of a depthwise convolution
        )
    chosen: dict[Axis, None] = {}

    def rank(at: tuple[int, list[Axis], int]) -> tuple[float, ...]:
        position, unit, shared = at
        groups = all(counts_groups[x] for x in unit)
        return (
            not any(x in asked for x in unit),
            all(x in out.held for x in unit),
            groups != (prefer == "groups"),
            not any(x in chosen for x in unit),
            *((-position,) if prefer == "head_dim" else (-shared, position)),
        )

    for units, _places in sorted(
        products, key=lambda p: -max(covered[x] for unit in p[0] for x in unit)
    ):
        ranked = [
            unit
            for _, unit, _ in sorted(
                zip(range(len(units)), units, together(units), strict=True), key=rank
            )
        ]
        if prefer == "both":
            sharing = [u for u in ranked if not all(counts_groups[x] for x in u)] or ranked[:1]
            for x in (x for unit in sharing for x in unit):
                out.sharing[x] = max(out.sharing.get(x, 1), len(sharing))
        else:
            sharing = ranked[:1]
        chosen.update(dict.fromkeys(x for unit in sharing for x in unit))
        for unit in ranked[len(sharing) :]:
            for x in unit:
                if x not in chosen:
                    out.held.setdefault(x, sharing[0][0])
    return out


def _products(graph: Graph, eligible: Container[Axis]) -> list[tuple[list[list[Axis]], int]]:
    """The products in sides of weights with at least two factors that hold eligible leaves, and in
    how many places each stands."""
    found: dict[tuple[Axis, ...], list[list[Axis]]] = {}
    places: dict[tuple[Axis, ...], int] = {}

    def visit(many: list[Axis]) -> None:
        key = tuple(many)
        if len(many) > 1:
            if key not in found:
                found[key] = [
                    u for f in many if (u := [x for x in dict.fromkeys(leaves(f)) if x in eligible])
                ]
            places[key] = places.get(key, 0) + 1
        for f in many:
            if len(ps := parts(f)) > 1:
                for p in ps:
                    visit(factors(p))

    for weight in graph.weights.values():
        for side in _sides(weight, batched=True) if not _laid_out(weight) else ():
            visit(side)
    return [(units, places[key]) for key, units in found.items() if len(units) > 1]


def _laid_out(weight: Weight) -> bool:
    """Whether a vector holds one after the other what a matrix beside it has in several dimensions:
    scales of blocks of its rows. Rows and blocks are widths of their own then, and not factors of
    one."""
    free = (
        [x for x in leaves(weight.axes[0]) if x.reason is None]
        if weight.rank == 1 and weight.axes
        else []
    )
    if len(free) < 2:
        return False
    beside = (
        v for node in weight.users for v in node.inputs if isinstance(v, Weight) and v.rank > 1
    )
    for other in beside:
        at = [[d for d, a in enumerate(other.axes or ()) if x in leaves(a)] for x in free]
        if all(len(dims) == 1 for dims in at) and len({dims[0] for dims in at}) > 1:
            return True
    return False


def _sides(weight: Weight, batched: bool = False) -> list[list[Axis]]:
    """The dimensions of a weight as lists of factors.

    Where a product of tensors sums over several of them, or passes several on, they are one width
    in several dimensions: heads and head_dim of ``einsum("btd,dhk->bthk")``. ``batched`` counts
    those shared with the other operand (one matrix for each index) into both."""
    axes = weight.axes or ()
    sides = [factors(a) for a in axes]
    for node in weight.users:
        entry = lookup(node)
        if len(axes) < 3 or entry is None or entry.letters is None:
            continue
        *terms, out = entry.letters(node)
        at = next(i for i, v in enumerate(node.inputs) if v is weight)
        others = {x for i, term in enumerate(terms) if i != at for x in term}
        summed = [d for d, x in enumerate(terms[at]) if x not in out]
        passed = [d for d, x in enumerate(terms[at]) if x in out and x not in others]
        shared = [d for d, x in enumerate(terms[at]) if x in out and x in others]
        joint = [sorted({*shared, *own} if batched else own) for own in (summed, passed) if own]
        return [[f for d in dims for f in sides[d]] for dims in joint]
    return sides


def _alone(graph: Graph) -> Iterable[Axis]:
    """Leaves that somewhere in what was learned are no factor of a product."""
    for weight in graph.weights.values():
        for a in (weight.axes or ()) if weight.kind != "constant" else ():
            for slot in leaf_positions(a):
                if not slot.around:
                    yield slot.leaf


def widths_of(
    graph: Graph, carrying: Container[Axis], step: Callable[[Weight], int] = lambda weight: 1
) -> list[Width]:
    """The widths of all dimensions of weights that depend on ``carrying`` leaves, each once, in
    graph order.

    A dimension where two factors of a product carry is left out: it is not linear. ``step`` says
    what the widths of a weight should be multiples of."""
    found: dict[tuple[tuple[tuple[Axis, int], ...], int], tuple[bool, int]] = {}
    for weight in graph.weights.values():
        matrix, wanted = _contracted(weight), step(weight)
        for side in _sides(weight):
            if (
                any(isinstance(f.size, Sym) for f in side)
                or (form := _product_form(side, carrying)) is None
            ):
                continue
            terms, fixed = form
            if any(x in carrying for x in terms):
                key = (tuple(terms.items()), fixed)
                before, least = found.get(key, (False, 1))
                found[key] = before or matrix, lcm(least, wanted)
    return [Width(terms, fixed, matrix, steps) for (terms, fixed), (matrix, steps) in found.items()]


def row_step(weight: Weight) -> int:
    """The multiple that the widths of ``weight`` must have, so that what reads it runs: rows of so
    many bytes (``Op.row_bytes``)."""
    if weight.rank < 2:
        return 1
    element = max(1, element_type(weight.dtype).bits // 8)
    readers, step = list(weight.users), 1
    for node in readers:
        entry = lookup(node)
        if entry is None:
            continue
        if entry.is_view:
            readers += [user for v in node.outputs for user in v.users]
        step = lcm(step, max(1, entry.row_bytes // element))
    return step


def _contracted(weight: Weight) -> bool:
    if weight.rank < 2:
        return False
    return any(
        (entry := lookup(node)) is not None and entry.macs is not None for node in weight.users
    )


def _form(a: Axis, carrying: Container[Axis]) -> tuple[dict[Axis, int], int] | None:
    """``a`` as a linear form: leaf -> coefficient, and what does not change. None where it is not
    linear.

    A free index of its own in a sum (a leaf of size 1) is kept as a term: it never shrinks, but its
    neighbours make up for it."""
    a = find(a)
    many = parts(a)
    if len(many) > 1:
        terms: dict[Axis, int] = {}
        fixed = 0
        for p in many:
            form = _form(p, carrying)
            if form is None:
                return None
            fixed += form[1]
            for x, c in form[0].items():
                terms[x] = terms.get(x, 0) + c
        return terms, fixed
    if a.kind == "product":
        return _product_form(factors(a), carrying)
    if a in carrying or (a.size == 1 and a.reason is None):
        return {a: 1}, 0
    return {}, probe_of(a.size)


def _product_form(
    many: list[Axis], carrying: Container[Axis]
) -> tuple[dict[Axis, int], int] | None:
    if len(many) == 1:
        return _form(many[0], carrying)
    open_ = [f for f in many if any(x in carrying for x in leaves(f))]
    if len(open_) > 1:
        return None
    scale = 1
    for f in many:
        if f not in open_:
            scale *= probe_of(f.size)
    if not open_:
        return {}, scale
    form = _form(open_[0], carrying)
    return None if form is None else ({x: c * scale for x, c in form[0].items()}, form[1] * scale)
