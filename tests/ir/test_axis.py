"""The axis algebra against brute force: whatever it leaves free may be dropped, and slicing then
commutes with every operation.

A random program runs on small arrays of distinct numbers and, beside it, on axes. Then some indices
of every free leaf are dropped, the program runs again on what is left, and each result must be the
slice of the original result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from irprune.ir.axis import Axes, Axis, leaves
from irprune.ir.group import leaf_positions
from irprune.ir.selection import Selection
from irprune.ir.size import probe_of

Array = NDArray[np.int64]
Compute = Callable[[list[Array]], list[Array]]
Again = Callable[[list[Array], Selection], list[Array]]
FAST = settings(max_examples=300, deadline=None, derandomize=True)


def numel(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


@dataclass
class Step:
    """An operation of a random program: what it reads, how it computes, and what it does once
    ``kept`` is chosen."""

    reads: tuple[int, ...]
    compute: Compute
    again: Again
    writes: int = 1


@dataclass
class Program:
    """A straight-line program over a pool of arrays, with the axes of every array."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    axes: Axes = field(default_factory=Axes)
    arrays: list[Array] = field(default_factory=list)
    dims: list[tuple[Axis, ...]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def fresh(self, shape: tuple[int, ...]) -> int:
        """A new array: an input of the program."""
        at = len(self.arrays)
        start = 10_000 * (at + 1)
        self.put(
            np.arange(start, start + numel(shape), dtype=np.int64).reshape(shape),
            tuple(self.axes.leaf(s) for s in shape),
        )
        whole = self.arrays[at]
        self.steps.append(
            Step((), lambda _: [whole], lambda _, kept: [cut_to(whole, self.dims[at], kept)])
        )
        self.log.append(f"v{at} = input{list(shape)}")
        return at

    def put(self, array: Array, dims: tuple[Axis, ...]) -> None:
        assert tuple(a.size for a in dims) == array.shape
        self.arrays.append(array)
        self.dims.append(dims)

    def result(
        self,
        note: str,
        reads: tuple[int, ...],
        dims: list[tuple[Axis, ...]],
        compute: Compute,
        again: Again,
    ) -> None:
        first = len(self.arrays)
        for array, axes in zip(compute([self.arrays[k] for k in reads]), dims, strict=True):
            self.put(array, axes)
        self.steps.append(Step(reads, compute, again, len(dims)))
        self.log.append(f"v{first}.. = {note}")

    # -- operations --------------------------------------------------------------------------------

    def reshape(self, k: int) -> None:
        shape = self.factorised(numel(self.arrays[k].shape))
        made = tuple(self.axes.regroup(self.dims[k], shape))
        self.result(
            f"reshape(v{k}, {list(shape)})",
            (k,),
            [made],
            lambda x: [x[0].reshape(shape)],
            lambda x, kept: [x[0].reshape([kept.size(a) for a in made])],
        )

    def factorised(self, n: int) -> tuple[int, ...]:
        out: list[int] = []
        while n > 1 and len(out) < 4:
            d = self.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
            out.append(d)
            n //= d
        if n > 1 or not out:
            out.append(n)
        return tuple(out)

    def permute(self, k: int) -> None:
        order = self.draw(st.permutations(range(self.arrays[k].ndim)))
        self.result(
            f"permute(v{k}, {order})",
            (k,),
            [tuple(self.dims[k][d] for d in order)],
            lambda x: [x[0].transpose(order)],
            lambda x, kept: [x[0].transpose(order)],
        )

    def cat(self, k: int) -> None:
        shape = self.arrays[k].shape
        if not shape:
            return
        d = self.integer(0, len(shape) - 1)
        alike = [
            j
            for j, a in enumerate(self.arrays)
            if a.ndim == len(shape)
            and all(m == n for e, (m, n) in enumerate(zip(a.shape, shape, strict=True)) if e != d)
        ]
        j = (
            self.draw(st.sampled_from(alike))
            if self.integer(0, 2)
            else self.fresh((*shape[:d], self.integer(0, 4), *shape[d + 1 :]))
        )
        if self.arrays[j].shape[d] + shape[d] > 24:
            return
        reads = (k, j)
        dims = list(self.dims[k])
        for e, (a, b) in enumerate(zip(self.dims[k], self.dims[j], strict=True)):
            if e != d:
                self.axes.unify(a, b)
        dims[d] = self.axes.sum((self.dims[k][d], self.dims[j][d]))
        self.result(
            f"cat({reads}, {d})",
            reads,
            [tuple(dims)],
            lambda x: [np.concatenate(x, d)],
            lambda x, kept: [np.concatenate(x, d)],
        )

    def split(self, k: int) -> None:
        shape = self.arrays[k].shape
        if not shape:
            return
        d = self.integer(0, len(shape) - 1)
        bounds = sorted(self.draw(st.lists(st.integers(0, shape[d]), min_size=1, max_size=3)))
        sizes = np.diff([0, *bounds, shape[d]]).tolist()
        pieces = self.axes.cut(self.dims[k][d], sizes)
        self.result(
            f"split(v{k}, {sizes}, {d})",
            (k,),
            [(*self.dims[k][:d], p, *self.dims[k][d + 1 :]) for p in pieces],
            lambda x: np.split(x[0], bounds, d),
            lambda x, kept: np.split(
                x[0], np.cumsum([kept.size(p) for p in pieces])[:-1].tolist(), d
            ),
        )

    def strided(self, k: int) -> None:
        shape = self.arrays[k].shape
        steps = [(d, n) for d, size in enumerate(shape) for n in range(2, size) if size % n == 0]
        if not steps:
            return
        d, n = self.draw(st.sampled_from(steps))
        outer, inner = self.axes.split(self.dims[k][d], shape[d] // n)
        assert outer is not None and inner is not None
        self.axes.freeze(inner, "stride")
        at = (slice(None),) * d + (slice(None, None, n),)
        self.result(
            f"v{k}[::{n}] along {d}",
            (k,),
            [(*self.dims[k][:d], outer, *self.dims[k][d + 1 :])],
            lambda x: [x[0][at]],
            lambda x, kept: [x[0][at]],
        )

    def add(self, k: int) -> None:
        shape = self.arrays[k].shape
        alike = [j for j, a in enumerate(self.arrays) if a.shape == shape]
        j = (
            self.draw(st.sampled_from(alike))
            if self.integer(0, 2)
            else self.fresh(tuple(n if self.integer(0, 3) else 1 for n in shape))
        )
        dims = []
        for a, b in zip(self.dims[k], self.dims[j], strict=True):
            if a.size == b.size:
                self.axes.unify(a, b)
            dims.append(a)
        self.result(
            f"add(v{k}, v{j})",
            (k, j),
            [tuple(dims)],
            lambda x: [x[0] + 7 * x[1]],
            lambda x, kept: [x[0] + 7 * x[1]],
        )

    def freeze(self, k: int) -> None:
        if self.dims[k] and not self.integer(0, 2):
            d = self.integer(0, len(self.dims[k]) - 1)
            self.axes.freeze(self.dims[k][d], "asked")
            self.log.append(f"freeze v{k} dim {d}")

    # -- the check ---------------------------------------------------------------------------------

    def free(self) -> list[Axis]:
        return list(
            dict.fromkeys(
                x
                for dims in self.dims
                for a in dims
                for x in leaves(a)
                if x.reason is None and x.size != 1
            )
        )

    def check(self, kept: Selection) -> None:
        pool: list[Array] = []
        for step in self.steps:
            pool += step.again([pool[k] for k in step.reads], kept)
        for k, (ours, whole, dims) in enumerate(zip(pool, self.arrays, self.dims, strict=True)):
            assert ours.shape == tuple(kept.size(a) for a in dims)
            np.testing.assert_array_equal(
                ours, cut_to(whole, dims, kept), err_msg=f"v{k} of\n" + "\n".join(self.log)
            )


def cut_to(array: Array, dims: tuple[Axis, ...], kept: Selection) -> Array:
    for d, a in enumerate(dims):
        array = array.take(kept.kept(a), axis=d)
    return array


SIZES = st.sampled_from([2, 3, 4, 6, 8, 12, 1, 0])
SHAPES = st.one_of(
    st.tuples(SIZES),
    st.tuples(SIZES, st.sampled_from([2, 3, 4, 6])),
    st.tuples(st.sampled_from([2, 3, 4]), SIZES, st.sampled_from([2, 3])),
)
OPERATIONS = ("reshape", "reshape", "permute", "cat", "split", "strided", "add", "add", "freeze")


def program(data: st.DataObject, length: int) -> Program:
    made = Program(data.draw)
    for _ in range(made.integer(1, 2)):
        made.fresh(data.draw(SHAPES))
    for name in data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=length)):
        getattr(made, name)(made.integer(0, len(made.arrays) - 1))
    return made


@FAST
@given(st.data())
def test_slicing_commutes_with_every_program(data: st.DataObject) -> None:
    made = program(data, length=14)
    choice = {}
    for x in made.free():
        kept = sorted(data.draw(st.sets(st.integers(0, probe_of(x.size) - 1), min_size=1)))
        choice[x] = kept
    event("free leaves", "some" if choice else "none")
    made.check(Selection(choice))


# -- nothing is tied that need not be --------------------------------------------------------------


class Orbits:
    """Union-find over single indices: the finest coupling that a program of one-dimensional
    operations asks for."""

    def __init__(self) -> None:
        self.parent: list[int] = []

    def make(self, n: int) -> list[int]:
        first = len(self.parent)
        self.parent += range(first, first + n)
        return list(range(first, first + n))

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            i = self.parent[i]
        return i

    def join(self, a: list[int], b: list[int]) -> None:
        for i, j in zip(a, b, strict=True):
            self.parent[self.root(i)] = self.root(j)


@FAST
@given(st.data())
def test_one_dimensional_coupling_is_exactly_that_of_single_indices(data: st.DataObject) -> None:
    axes, orbits = Axes(), Orbits()
    pool: list[tuple[Axis, list[int]]] = []

    def fresh(n: int) -> int:
        pool.append((axes.leaf(n), orbits.make(n)))
        return len(pool) - 1

    fresh(data.draw(st.integers(2, 12)))
    for name in data.draw(
        st.lists(st.sampled_from(("new", "cat", "split", "add", "add")), max_size=12)
    ):
        a, own = pool[data.draw(st.integers(0, len(pool) - 1))]
        if name == "new":
            fresh(data.draw(st.integers(2, 12)))
        elif name == "cat":
            b, other = pool[data.draw(st.integers(0, len(pool) - 1))]
            if len(own) + len(other) <= 24:
                pool.append((axes.sum((a, b)), own + other))
        elif name == "split":
            at = data.draw(st.integers(0, len(own)))
            # A piece of one index is no dimension of its own: size 1 broadcasts
            if 1 < at < len(own) - 1:
                first, second = axes.cut(a, [at, len(own) - at])
                pool += [(first, own[:at]), (second, own[at:])]
        else:
            alike = [(b, other) for b, other in pool if len(other) == len(own)]
            b, other = data.draw(st.sampled_from(alike))
            axes.unify(a, b)
            orbits.join(own, other)

    ours: dict[tuple[Axis, int], int] = {}
    theirs: dict[int, tuple[Axis, int] | None] = {}
    for a, own in pool:
        places = [
            (slot.leaf, i) for slot in leaf_positions(a) for i in range(probe_of(slot.leaf.size))
        ]
        for place, index in zip(places, own, strict=True):
            orbit = orbits.root(index)
            whole = place[0].size == 1 or str(place[0].reason) == "cut down to single indices"
            # Which index is which is not recorded where nothing can be dropped
            where = None if whole else place
            assert ours.setdefault(place, orbit) == orbit, (
                "one leaf index covers two orbits: tied without need"
            )
            assert theirs.setdefault(orbit, where) == where, (
                "an orbit has two leaf indices: a coupling was missed"
            )
