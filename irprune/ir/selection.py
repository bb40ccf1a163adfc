"""What is kept of each axis, worked out from what is kept of its leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from irprune.base.moved import renamed
from irprune.ir.axis import Axis, factors, find, leaves, parts
from irprune.ir.size import Size, Sym, UnboundSymbol, evaluate, probe_of

__all__ = ["Indices", "Mask", "PresenceTable", "Selection"]

__getattr__ = renamed(__name__, {"Kept": "Selection"})

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PresenceTable:
    """Who is present along an axis: ``mask[..., i]`` for index ``i``, one leading dimension for
    each axis of ``outer`` it depends on."""

    outer: tuple[Axis, ...]
    mask: Mask


class Selection:
    """A choice: for some leaves, the kept indices, ascending. The other leaves are whole.

    An index array of two dimensions is a choice per block: row ``h`` holds what is kept within
    index ``h`` of the leaf ``within[leaf]``, which stands in the same value wherever the leaf
    stands. ``dropped`` are sums whose branch goes as a whole (``irprune.analysis.branches``): by
    the name of the sum's result, its operand that stays. Raises ValueError for indices that are out
    of range, not ascending or none."""

    def __init__(
        self,
        choice: Mapping[Axis, Sequence[int] | Indices],
        within: Mapping[Axis, Axis] | None = None,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        self.dropped = dict(dropped or {})
        self.choice: dict[Axis, Indices] = {
            find(a): np.asarray(k, dtype=np.int64) for a, k in choice.items()
        }
        self.within = {find(a): find(b) for a, b in (within or {}).items()}
        for leaf, indices in self.choice.items():
            self._check(leaf, indices)
        self._sizes: dict[Axis, Size] = {}
        self._kept: dict[Axis, Indices] = {}
        self._tables: dict[Axis, PresenceTable] = {}
        self._changes: dict[Axis, bool] = {}

    def _check(self, leaf: Axis, indices: Indices) -> None:
        if leaf.kind != "leaf" or isinstance(leaf.size, Sym):
            raise ValueError(f"{leaf!r} is no leaf of a known size")
        if indices.ndim not in (1, 2) or indices.shape[-1] == 0:
            raise ValueError(
                f"{leaf!r}: at least one index is kept, in one row or one row per block"
            )
        if (
            indices.min() < 0
            or indices.max() >= leaf.size
            or (np.diff(indices, axis=-1) <= 0).any()
        ):
            raise ValueError(f"{leaf!r}: kept indices are ascending and below {leaf.size}")
        if indices.ndim == 2 and (
            leaf not in self.within or self.within[leaf].size != len(indices)
        ):
            raise ValueError(
                f"{leaf!r}: a choice per block has one row for each index of the axis it is within"
            )

    def same_as(self, other: Selection | None) -> bool:
        """Whether both drop the same indices; None drops nothing."""
        theirs, within = (other.choice, other.within) if other is not None else ({}, {})
        gone = other.dropped if other is not None else {}
        if list(self.choice) != list(theirs) or self.dropped != gone:
            return False
        return all(
            np.array_equal(k, theirs[x]) and self.within.get(x) is within.get(x)
            for x, k in self.choice.items()
        )

    @property
    def counts(self) -> dict[Axis, int]:
        """How many indices of each chosen leaf are kept."""
        return {a: int(k.shape[-1]) for a, k in self.choice.items()}

    def changes(self, axis: Axis) -> bool:
        """Whether any index of ``axis`` is dropped."""
        if axis not in self._changes:
            self._changes[axis] = any(
                x in self.choice and self.choice[x].shape[-1] != x.size for x in leaves(axis)
            )
        return self._changes[axis]

    def size(self, axis: Axis) -> Size:
        """How many indices of ``axis`` are kept."""
        a = find(axis)
        if a not in self._sizes:
            if len(ps := parts(a)) > 1:
                total: Size = 0
                for p in ps:
                    total = total + self.size(p)
                self._sizes[a] = total
            elif len(fs := factors(a)) > 1:
                out: Size = 1
                for f in fs:
                    out = out * self.size(f)
                self._sizes[a] = out
            else:
                self._sizes[a] = int(self.choice[a].shape[-1]) if a in self.choice else a.size
        return self._sizes[a]

    def kept(self, axis: Axis) -> Indices:
        """The kept indices of ``axis`` in terms of the original, ascending.

        Raises ValueError for a symbolic size, and for an axis chosen per block that stands without
        its outer axis."""
        a = find(axis)
        if a not in self._kept:
            if isinstance(a.size, Sym):
                raise ValueError(f"an axis of dynamic size {a.size} has no index list")
            table = self.table(a)
            if table.outer:
                raise ValueError(f"{a!r}, chosen per block, stands without its outer axis")
            self._kept[a] = np.flatnonzero(table.mask)
        return self._kept[a]

    def table(self, axis: Axis, sizes: Mapping[str, int] | None = None) -> PresenceTable:
        """Who is present along ``axis``, as far as it depends on axes that do not stand in it;
        ``sizes`` are the values of symbols. Raises ValueError for a symbolic size without one."""
        a = find(axis)
        if a in self._tables:
            return self._tables[a]
        if len(ps := parts(a)) > 1:
            made = _joined([self.table(p, sizes) for p in ps])
        elif len(fs := factors(a)) > 1:
            made = _crossed(fs, [self.table(f, sizes) for f in fs])
        else:
            made = self._leaf(a, sizes or {})
        if not isinstance(a.size, Sym):
            self._tables[a] = made
        return made

    def present(
        self, axes: Sequence[Axis], dim: int, sizes: Mapping[str, int] | None = None
    ) -> Mask:
        """Who is present along dimension ``dim`` of a value with ``axes``, to broadcast against the
        value: it varies along ``dim``, and along the dimensions of those that ``dim`` is chosen
        within. ``sizes`` are the values of symbols.

        Raises ValueError for a symbolic size, and for an axis chosen per block that stands without
        its outer axis."""
        table = self.table(axes[dim], sizes)
        rank = len(axes)
        at = []
        for outer in table.outer:
            beside = next((k for k, a in enumerate(axes) if k != dim and outer in factors(a)), None)
            if beside is None:
                raise ValueError(f"{axes[dim]!r}, chosen per block, stands without its outer axis")
            at.append(_along(_positions(factors(axes[beside]), outer, sizes or {}), beside, rank))
        mask: Mask = table.mask[(*at, _along(np.arange(table.mask.shape[-1]), dim, rank))]
        return mask

    def _leaf(self, a: Axis, sizes: Mapping[str, int]) -> PresenceTable:
        if isinstance(a.size, Sym):
            try:
                return PresenceTable((), np.ones(evaluate(a.size, sizes), dtype=bool))
            except UnboundSymbol:
                raise ValueError(f"an axis of dynamic size {a.size} has no index list") from None
        own = self.choice.get(a)
        if own is None:
            return PresenceTable((), np.ones(a.size, dtype=bool))
        mask = np.zeros((*own.shape[:-1], a.size), dtype=bool)
        np.put_along_axis(mask, own, True, axis=-1)
        return PresenceTable((self.within[a],) if own.ndim == 2 else (), mask)


def _positions(fs: list[Axis], outer: Axis, symbols: Mapping[str, int]) -> Indices:
    """Along a product of ``fs``, the index of its factor ``outer``."""
    try:
        sizes = [evaluate(f.size, symbols) for f in fs]
    except UnboundSymbol:
        raise ValueError(
            f"a choice within {outer!r}, which stands in a product of a dynamic size"
        ) from None
    inner = prod(sizes[fs.index(outer) + 1 :])
    return np.arange(prod(sizes)) // inner % probe_of(outer.size)


def _along(values: Indices, dim: int, rank: int) -> Indices:
    """``values`` along dimension ``dim`` of ``rank``."""
    return values.reshape([-1 if k == dim else 1 for k in range(rank)])


def _joined(tables: list[PresenceTable]) -> PresenceTable:
    """The tables of the summands one after the other."""
    outer = tuple(dict.fromkeys(h for t in tables for h in t.outer))
    sizes = tuple(probe_of(h.size) for h in outer)
    rows = []
    for t in tables:
        placed = _placed(t.mask, [*map(outer.index, t.outer), len(outer)], len(outer) + 1)
        rows.append(np.broadcast_to(placed, (*sizes, t.mask.shape[-1])))
    return PresenceTable(outer, np.concatenate(rows, axis=-1))


def _crossed(fs: list[Axis], tables: list[PresenceTable]) -> PresenceTable:
    """Present where every factor is; an outer axis that is itself a factor is met there."""
    outer = tuple(h for h in dict.fromkeys(h for t in tables for h in t.outer) if h not in fs)
    sizes = tuple(probe_of(h.size) for h in outer)
    rank = len(outer) + len(fs)
    mask = np.ones((*sizes, *(t.mask.shape[-1] for t in tables)), dtype=bool)
    for i, t in enumerate(tables):
        places = [outer.index(h) if h in outer else len(outer) + fs.index(h) for h in t.outer]
        mask &= _placed(t.mask, [*places, len(outer) + i], rank)
    return PresenceTable(outer, mask.reshape(*sizes, -1))


def _placed(mask: Mask, places: list[int], rank: int) -> Mask:
    """``mask`` with its dimensions moved to ``places`` among ``rank`` of them, the others of size
    1."""
    order = np.argsort(places)
    shape = [1] * rank
    for k in order:
        shape[places[k]] = mask.shape[k]
    return mask.transpose(order).reshape(shape)
