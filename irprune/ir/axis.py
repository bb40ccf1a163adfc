"""The axis algebra: every dimension is a leaf, a product (outer to inner) or a sum (in order) of
axes.

Union-find joins axes that are one index set; a leaf that turns out to be composite is refined in
place, so that every dimension which shares it sees the refinement. A coupled group is a leaf: see
``irprune.ir.group``.

The work never depends on how large an axis is, only on how many pieces it has been refined into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from irprune.ir.size import Size, Sym, is_static, probe_of, product, same

__all__ = ["Axes", "Axis", "Link", "Reason", "factors", "find", "leaves", "parts"]

LEAF, PRODUCT, SUM = "leaf", "product", "sum"
_SLACK = 256  # refinements that one relation may cost beyond what its pieces account for


class Site(Protocol):
    """Where something is said of axes: a node of a graph."""

    @property
    def where(self) -> str:
        """The line of the user's code, or the module or node of the file."""


class Dimensioned(Protocol):
    """What has axes, one for each dimension of its type: a value of a graph."""

    axes: tuple[Axis, ...] | None
    type: Any


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an axis may not change size, and the node that said so (None for graph inputs and
    outputs)."""

    text: str
    node: Site | None = None

    def __str__(self) -> str:
        return (
            f"{self.text} at {self.node.where}"
            if self.node is not None and self.node.where
            else self.text
        )


class Axis:
    """One index set. Read it through ``find``, ``factors``, ``parts`` and ``leaves``: it may have
    been joined to another."""

    __slots__ = ("children", "id", "kind", "parent", "reason", "role", "size")

    def __init__(
        self, id: int, size: Size, kind: str = LEAF, children: tuple[Axis, ...] = ()
    ) -> None:
        self.id = id
        self.size = size
        self.kind = kind
        self.children = children
        self.parent: Axis | None = None
        self.reason: Reason | None = None
        # "group": a factor that counts groups of a convolution or norm, pruned only when asked
        self.role = ""

    def __repr__(self) -> str:
        a = find(self)
        if a.kind == LEAF:
            return f"a{a.id}:{a.size}" + ("!" if a.reason else "")
        return "(" + (" * " if a.kind == PRODUCT else " + ").join(map(repr, a.children)) + ")"


def find(a: Axis) -> Axis:
    """The representative of ``a``."""
    root = a
    while root.parent is not None:
        root = root.parent
    while a.parent is not None and a.parent is not root:
        a.parent, a = root, a.parent
    return root


def factors(a: Axis) -> list[Axis]:
    """The factors of ``a`` from outer to inner, nested products opened; ``[a]`` for a leaf or a
    sum."""
    return _opened(find(a), PRODUCT)


def parts(a: Axis) -> list[Axis]:
    """The summands of ``a`` in order, nested sums opened; ``[a]`` for a leaf or a product."""
    return _opened(find(a), SUM)


def _opened(a: Axis, kind: str) -> list[Axis]:
    """The children of ``a`` with nested ones of the same kind opened; the result is stored, so that
    chains of refinements stay short."""
    if a.kind != kind:
        return [a]
    if not any(c.parent is not None or c.kind == kind for c in a.children):
        return list(a.children)
    out: list[Axis] = []
    todo = list(a.children[::-1])
    while todo:
        child = find(todo.pop())
        if child.kind == kind:
            todo.extend(child.children[::-1])
        else:
            out.append(child)
    a.children = tuple(out)
    return out


def leaves(a: Axis) -> Iterator[Axis]:
    """The leaves below ``a``, left to right, with repetitions."""
    todo = [a]
    while todo:
        a = find(todo.pop())
        if a.kind == LEAF:
            yield a
        else:
            todo.extend(a.children[::-1])


class _TooFine(Exception):
    """A relation refines without end (an axis joined to its own rotation): what it relates is
    frozen instead."""


def _divides(n: Size, size: Size) -> bool:
    """Whether ``size`` is a multiple of ``n``, both known at the same time: a static size has no
    dynamic divisor."""
    return (
        probe_of(n) != 0
        and probe_of(size) % probe_of(n) == 0
        and not (isinstance(n, Sym) and not isinstance(size, Sym))
    )


@dataclass(frozen=True, slots=True)
class Link:
    """A step of the analysis: ``node`` made ``a`` and ``b`` one axis (ids as they were then; b is
    -1 for a freeze)."""

    a: int
    b: int
    node: Site | None
    kind: str  # "unify" | "refine" | "freeze"


class Axes:
    """The axes of one graph, and the record of who joined, refined and froze them.

    ``node`` is the node whose rule is running; it is named in reasons and links.
    """

    def __init__(self) -> None:
        self.node: Site | None = None
        self.links: list[Link] = []
        self.opened: dict[
            str, None
        ] = {}  # first results of nodes that are free because they can be folded to a constant
        self.clashes: dict[Site, str] = {}  # nodes that made axes of different sizes meet
        self.count = 0
        self._budget: int | None = (
            None  # refinements left to the relation being stated; None outside of one
        )
        self.one = self._new(1)  # every dimension of size 1; it broadcasts and is never dropped

    # -- making axes -------------------------------------------------------------------------------

    def _new(self, size: Size, kind: str = LEAF, children: tuple[Axis, ...] = ()) -> Axis:
        self.count += 1
        return Axis(self.count, size, kind, children)

    def leaf(self, size: Size) -> Axis:
        """A fresh axis; a symbolic size is frozen from the start."""
        if size == 1:
            return self.one
        a = self._new(size)
        if isinstance(size, Sym):
            a.reason = Reason(f"dynamic size {size}")
        elif size == 0:
            a.reason = Reason("empty")
        return a

    def frozen(self, size: Size, reason: str) -> Axis:
        """A fresh axis that may not change size."""
        a = self.leaf(size)
        if a is not self.one and a.reason is None:
            self.freeze(a, reason)
        return a

    def product(self, axes: Iterable[Axis]) -> Axis:
        """The axis that runs over ``axes`` jointly, the last fastest; factors of size 1 vanish."""
        many = [f for a in axes for f in factors(a) if f.size != 1]
        if len(many) < 2:
            return many[0] if many else self.one
        if any(f.size == 0 for f in many):
            return self.leaf(0)
        return self._new(product(f.size for f in many), PRODUCT, tuple(many))

    def sum(self, axes: Iterable[Axis]) -> Axis:
        """The axis that runs over ``axes`` one after the other; empty summands vanish."""
        many = [p for a in axes for p in self.solo(a) if p.size != 0]
        if len(many) < 2:
            return many[0] if many else self.leaf(0)
        total: Size = 0
        for p in many:
            total = total + p.size
        return self._new(total, SUM, tuple(many))

    def solo(self, a: Axis) -> list[Axis]:
        """``parts(a)``, with the shared axis of size 1 replaced by a leaf of its own: in a sum it
        is an index like any other."""
        return [self._new(1) if p is self.one else p for p in parts(a)]

    def of(self, value: Dimensioned) -> tuple[Axis, ...]:
        """The axes of ``value``; fresh ones for a weight met for the first time, none where the
        rank is unknown."""
        if value.axes is None:
            value.axes = tuple(self.leaf(s) for s in value.type.shape or ())
        return value.axes

    # -- freezing ----------------------------------------------------------------------------------

    def freeze(self, a: Axis, reason: str | Reason) -> None:
        """Forbid ``a`` to change size; the first reason given is kept."""
        why = reason if isinstance(reason, Reason) else Reason(reason, self.node)
        for x in leaves(a):
            if x.reason is None and x is not self.one:
                x.reason = why
                self.links.append(Link(x.id, -1, why.node, "freeze"))

    def is_frozen(self, a: Axis) -> bool:
        """Whether no leaf of ``a`` may change size."""
        return all(x.reason is not None or x.size == 1 for x in leaves(a))

    # -- joining -----------------------------------------------------------------------------------

    def unify(self, a: Axis, b: Axis) -> bool:
        """Make ``a`` and ``b`` the same index set; False where pieces of them could not be aligned.
        Those pieces are frozen, with the reason, so that the two agree either way."""
        a, b = find(a), find(b)
        if a is b:
            return True
        if self._budget is not None or a.kind == LEAF or b.kind == LEAF:
            return self._unify(a, b)
        self._budget = _SLACK + 4 * (len(a.children) + len(b.children))
        try:
            return self._unify(a, b)
        except _TooFine:
            return self._conflict([a, b], "regrouped so often that nothing is left to choose")
        finally:
            self._budget = None

    def _unify(self, a: Axis, b: Axis) -> bool:
        a, b = find(a), find(b)
        if a is b or a.size == 0 == b.size:
            return True
        if not same(a.size, b.size):
            if self.node is not None:
                self.clashes.setdefault(self.node, f"sizes {a.size} and {b.size} meet")
            return self._conflict([a, b], f"sizes {a.size} and {b.size} meet")
        if a.size == 1:
            return self._unify_single(a, b)
        if a.kind == LEAF and b.kind == LEAF:
            keep, gone = (a, b) if a.id < b.id else (b, a)
            return self._attach(gone, keep)
        if a.kind == LEAF:
            return self._attach(a, b)
        if b.kind == LEAF:
            return self._attach(b, a)
        if a.kind == PRODUCT and b.kind == PRODUCT:
            ok = self._align_products(factors(a), factors(b))
        elif a.kind == SUM and b.kind == SUM:
            ok = self._align_sums(parts(a), parts(b))
        else:
            if a.kind == SUM:  # the product stays: it says more, and its pieces say the sum
                a, b = b, a
            pieces = parts(b)
            ok = True
            for x, y in zip(pieces, self._cut(a, [p.size for p in pieces]), strict=True):
                ok = self._unify(x, y) and ok
        a, b = find(a), find(b)
        if a is not b:
            self.links.append(Link(b.id, a.id, self.node, "unify"))
            b.parent = a
        return ok

    def _unify_single(self, a: Axis, b: Axis) -> bool:
        """Axes of size 1: the shared one takes no part; two indices of sums are joined."""
        if a is not self.one and b is not self.one:
            keep, gone = (a, b) if a.id < b.id else (b, a)
            return self._attach(gone, keep)
        return True

    def _attach(self, gone: Axis, keep: Axis) -> bool:
        self.links.append(Link(gone.id, keep.id, self.node, "unify"))
        gone.parent = keep
        if gone.reason is not None:
            self.freeze(keep, gone.reason)
        if gone.role:
            for x in leaves(keep):
                x.role = x.role or gone.role
        return True

    def _conflict(self, axes: Iterable[Axis], text: str) -> bool:
        for a in axes:
            self.freeze(a, text)
        return False

    def _align_products(self, xs: list[Axis], ys: list[Axis]) -> bool:
        """Factor by factor from the outermost; where sizes do not divide, the shortest runs that
        agree again freeze and no more."""
        xs, ys = xs[::-1], ys[::-1]  # outermost factor last: popped first
        ok = True
        while xs and ys:
            x, y = xs.pop(), ys.pop()
            n, m = probe_of(x.size), probe_of(y.size)
            if n == m:
                ok = self._unify(x, y) and ok
                continue
            small, large, rest = (x, y, ys) if n < m else (y, x, xs)
            outer, inner = self._split(large, small.size)
            if outer is not None and inner is not None:
                ok = self._unify(small, outer) and ok
                rest.append(inner)
                continue
            run = [x, y]
            while n != m:
                if n < m:
                    run.append(xs.pop())
                    n *= probe_of(run[-1].size)
                else:
                    run.append(ys.pop())
                    m *= probe_of(run[-1].size)
            ok = self._conflict(run, "regrouped in two ways that do not fit")
        return ok

    def _align_sums(self, xs: list[Axis], ys: list[Axis]) -> bool:
        xs, ys = xs[::-1], ys[::-1]
        ok = True
        while xs and ys:
            x, y = xs.pop(), ys.pop()
            n, m = probe_of(x.size), probe_of(y.size)
            if n == m:
                ok = self._unify(x, y) and ok
                continue
            small, large, rest = (x, y, ys) if n < m else (y, x, xs)
            (ys if rest is xs else xs).append(small)
            for piece in reversed(self._cut(large, [small.size, large.size - small.size])):
                rest.extend(reversed(parts(piece)))
        return ok

    # -- refining ----------------------------------------------------------------------------------

    def split(self, a: Axis, outer: Size) -> tuple[Axis, Axis] | tuple[None, None]:
        """Refine ``a`` into outer × inner and return the two; (None, None) where the size does not
        divide.

        Frozen axes give fresh frozen axes; an axis that is grouped otherwise freezes.
        """
        a = find(a)
        if self._budget is not None or a.kind == LEAF:
            made = self._split(a, outer)
        else:
            self._budget = _SLACK + 4 * len(a.children)
            try:
                made = self._split(a, outer)
            except _TooFine:
                made = (None, None)
            finally:
                self._budget = None
        if made == (None, None) and _divides(outer, a.size):
            self._conflict([a], "grouped in two ways that do not fit")
            first, second = self._frozen_like(a, (outer, a.size // outer))
            return first, second
        return made

    def _split(self, a: Axis, outer: Size) -> tuple[Axis, Axis] | tuple[None, None]:
        a = find(a)
        if not _divides(outer, a.size):
            return None, None
        inner = a.size // outer
        if same(outer, a.size):
            return a, self.one
        if outer == 1:
            return self.one, a
        if self.is_frozen(a):
            first, second = self._frozen_like(a, (outer, inner))
            return first, second
        if a.kind == LEAF:
            first, second = self._new(outer), self._new(inner)
            self._refine(a, PRODUCT, (first, second))
            return first, second
        if a.kind == SUM:
            first, second = self._new(outer), self._new(inner)
            self._unify(a, self.product((first, second)))
            return first, second
        fs = factors(a)
        head: list[Axis] = []
        size: Size = 1
        while probe_of(size * fs[0].size) <= probe_of(outer):
            head.append(fs.pop(0))
            size = size * head[-1].size
        if not same(size, outer):
            one, two = self._split(fs[0], outer // size) if _divides(size, outer) else (None, None)
            if one is None or two is None:
                return None, None
            head.append(one)
            fs[0] = two
        return self.product(head), self.product(fs)

    def cut(self, a: Axis, sizes: Sequence[Size]) -> list[Axis]:
        """Refine ``a`` into consecutive pieces of ``sizes`` and return them; raises ValueError
        where they do not add up.

        Frozen axes give fresh frozen axes; an axis that is cut too finely to leave a choice
        freezes."""
        a = find(a)
        if is_static((a.size, *sizes)) and sum(map(probe_of, sizes)) != a.size:
            raise ValueError(
                f"pieces of sizes {', '.join(map(str, sizes))} do not make up {a.size}"
            )
        if self._budget is not None:
            return self._cut(a, sizes)
        self._budget = _SLACK + 4 * (len(a.children) + len(sizes))
        try:
            return self._cut(a, sizes)
        except _TooFine:
            self._conflict([a], "cut so often that nothing is left to choose")
            return self._frozen_like(a, sizes)
        finally:
            self._budget = None

    def _cut(self, a: Axis, sizes: Sequence[Size]) -> list[Axis]:
        a = find(a)
        if len(sizes) == 1:
            return [a]
        if a.size == 1 or self.is_frozen(a):
            return self._frozen_like(a, sizes)
        if not is_static((a.size, *sizes)):
            self.freeze(a, "cut at a dynamic size")
            return self._frozen_like(a, sizes)
        if a.kind == LEAF:
            pieces = [self._new(s) if s else self.leaf(0) for s in sizes]
            self._refine(a, SUM, tuple(p for p in pieces if p.size != 0))
            return pieces
        if a.kind == PRODUCT:
            return self._cut_product(a, sizes)
        return self._take(parts(a), sizes)

    def _take(self, pieces: list[Axis], sizes: Sequence[Size]) -> list[Axis]:
        """Group consecutive ``pieces`` into sums of ``sizes``, cutting a piece where a boundary
        falls inside it."""
        queue = pieces[::-1]
        out = []
        for want in sizes:
            group: list[Axis] = []
            left = probe_of(want)
            while left:
                piece = find(queue.pop())
                have = probe_of(piece.size)
                if have > left:
                    piece, rest = self._cut(piece, [left, have - left])
                    queue.append(rest)
                    have = left
                group.append(piece)
                left -= have
            out.append(self.sum(group))
        return out

    def _cut_product(self, a: Axis, sizes: Sequence[Size]) -> list[Axis]:
        """The product is cut along its outermost factor; a boundary that falls inside a row cuts
        what stands in that row."""
        first, *others = factors(a)
        rest = self.product(others)
        width = probe_of(rest.size)
        marks: list[
            int
        ] = []  # boundaries inside, in units of `rest`, on both sides of one that is not aligned
        at = 0
        for s in sizes[:-1]:
            at += probe_of(s)
            marks += [at // width, -(-at // width)]
        edges = sorted({0, *marks, probe_of(first.size)})
        rows = self._cut(first, [hi - lo for lo, hi in pairwise(edges)])
        return self._take([self.product((row, rest)) for row in rows], sizes)

    def _refine(self, a: Axis, kind: str, children: tuple[Axis, ...]) -> None:
        if len(children) == 1:
            self._attach(a, children[0])
            return
        if self._budget is not None:
            self._budget -= len(children)
            if self._budget < 0:
                raise _TooFine
        for child in children:
            child.role = a.role
            self.links.append(Link(child.id, a.id, self.node, "refine"))
        a.kind, a.children = kind, children

    def _frozen_like(self, a: Axis, sizes: Sequence[Size]) -> list[Axis]:
        """Fresh axes of ``sizes``, frozen for the reason that ``a`` is."""
        source = next((x for x in leaves(a) if x.reason is not None), find(a))
        fresh = [self._new(s) for s in sizes]
        for f in fresh:
            f.reason = source.reason or Reason("cut down to single indices", self.node)
            self.links.append(Link(f.id, source.id, self.node, "refine"))
        return fresh

    # -- reshaping ---------------------------------------------------------------------------------

    def regroup(self, axes: Sequence[Axis], shape: Sequence[Size]) -> list[Axis]:
        """The axes of a row-major reshape of dimensions ``axes`` to ``shape``; each matching run is
        aligned on its own."""
        out: list[Axis] = []
        old, new = list(axes), list(shape)
        i = j = 0
        while i < len(old) or j < len(new):
            run_old: list[Axis] = []
            run_new: list[Size] = []
            n = m = 1
            while True:  # the shortest run with equal products; trailing ones join it
                if i < len(old) and (n <= m or j == len(new)):
                    run_old.append(find(old[i]))
                    n *= probe_of(run_old[-1].size)
                    i += 1
                elif j < len(new):
                    run_new.append(new[j])
                    m *= probe_of(new[j])
                    j += 1
                if (n == m and run_old and run_new) or (i == len(old) and j == len(new)):
                    break
            if n != m:
                self._conflict(run_old, "reshaped to a size that is not known to be the same")
                out += [
                    self.frozen(s, "reshaped from a size that is not known to be the same")
                    for s in run_new
                ]
            else:
                out += self._regroup_run(run_old, run_new)
        return out

    def _regroup_run(self, old: list[Axis], new: list[Size]) -> list[Axis]:
        wide_old = [a for a in old if a.size != 1]
        wide_new = [s for s in new if s != 1]
        if any(s == 0 for s in wide_new):
            made = [
                self.leaf(s) if s == 0 else self.frozen(s, "regrouped from an empty axis")
                for s in wide_new
            ]
        elif len(wide_old) == len(wide_new) == 1:
            made = wide_old
        elif len(wide_new) == 1:
            made = [self.product(wide_old)]
        elif wide_old and all(self.is_frozen(a) for a in wide_old):
            made = self._frozen_like(self.product(wide_old), wide_new)
        else:
            # A dynamic size may be a dynamic factor times static ones: frozen after aligning
            made = [self._new(s) for s in wide_new]
            self.unify(self.product(wide_old), self.product(made))
            for x in (x for m in made for x in leaves(m)):
                if isinstance(x.size, Sym) and x.reason is None:
                    x.reason = Reason(f"dynamic size {x.size}")
        rest = iter(made)
        return [self.one if s == 1 else next(rest) for s in new]
