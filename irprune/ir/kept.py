"""What is kept of each axis, worked out from what is kept of its leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from irprune.ir.axis import Axis, factors, find, leaves, parts
from irprune.ir.size import Size, Sym, probe_of

__all__ = ["Kept"]

Indices = NDArray[np.int64]


class Kept:
    """A choice: for some leaves, the kept indices, ascending. The other leaves are whole.

    An index array of two dimensions is a choice per block: row ``h`` holds what is kept within index ``h`` of the leaf ``within[leaf]``,
    which is an outer factor wherever the leaf stands.
    """

    def __init__(self, choice: Mapping[Axis, Sequence[int] | Indices], within: Mapping[Axis, Axis] | None = None) -> None:
        self.choice: dict[Axis, Indices] = {find(a): np.asarray(k, dtype=np.int64) for a, k in choice.items()}
        self.within = {find(a): find(b) for a, b in (within or {}).items()}
        self._sizes: dict[Axis, Size] = {}
        self._kept: dict[Axis, Indices] = {}

    def changes(self, axis: Axis) -> bool:
        """Whether any index of ``axis`` is dropped."""
        return any(x in self.choice and self.choice[x].shape[-1] != x.size for x in leaves(axis))

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
        """The kept indices of ``axis`` in terms of the original, ascending. Raises ValueError for a symbolic size."""
        a = find(axis)
        if a not in self._kept:
            self._kept[a] = self._compute(a)
        return self._kept[a]

    def _compute(self, a: Axis) -> Indices:
        if isinstance(a.size, Sym):
            raise ValueError(f"an axis of dynamic size {a.size} has no index list")
        if not self.changes(a):
            return np.arange(a.size)
        if len(ps := parts(a)) > 1:
            offsets = np.cumsum([0] + [probe_of(p.size) for p in ps[:-1]])
            return np.concatenate([self.kept(p) + o for p, o in zip(ps, offsets, strict=True)])
        if len(fs := factors(a)) > 1:
            return self._product(fs)
        kept = self.choice[a]
        if kept.ndim != 1:
            raise ValueError("an axis chosen per block stands without its outer axis")
        return kept

    def _product(self, fs: list[Axis]) -> Indices:
        flat = np.zeros(1, dtype=np.int64)
        seen: dict[Axis, Indices] = {}  # index of each outer factor at every element of `flat`
        for f in fs:
            own = self.choice.get(f)
            if own is not None and own.ndim == 2:
                inner = own[seen[self.within[f]]]
            else:
                inner = np.broadcast_to(self.kept(f), (flat.size, int(self.size(f))))  # type: ignore[arg-type]
            count = inner.shape[1]
            seen = {a: np.repeat(v, count) for a, v in seen.items()}
            seen[f] = inner.reshape(-1)
            flat = (flat[:, None] * probe_of(f.size) + inner).reshape(-1)
        return flat
