"""Kept against brute force: an element of an axis is kept when every leaf index it stands for
is."""

from __future__ import annotations

from itertools import product as every
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irprune.ir.axis import Axes, Axis, factors, find, leaves, parts
from irprune.ir.selection import Selection
from irprune.ir.size import symbol

FAST = settings(max_examples=200, deadline=None, derandomize=True)


def readings(a: Axis) -> list[dict[Axis, int]]:
    """For each element of ``a`` the index it has in each leaf, worked out from what products and
    sums mean."""
    a = find(a)
    if len(ps := parts(a)) > 1:
        return [r for p in ps for r in readings(p)]
    if len(fs := factors(a)) > 1:
        return [
            {k: v for r in rows for k, v in r.items()} for rows in every(*(readings(f) for f in fs))
        ]
    return [{a: i} for i in range(int(a.size))]  # type: ignore[arg-type]


def draw_axis(draw: Any, axes: Axes, pool: list[Axis], depth: int) -> Axis:
    kind = draw(st.sampled_from(["leaf", "sum", "product"])) if depth else "leaf"
    if kind == "leaf":
        if pool and draw(st.booleans()):
            return pool[draw(st.integers(0, len(pool) - 1))]
        pool.append(axes.leaf(draw(st.integers(2, 4))))
        return pool[-1]
    many = [draw_axis(draw, axes, pool, depth - 1) for _ in range(draw(st.integers(2, 3)))]
    return axes.sum(many) if kind == "sum" else axes.product(many)


@FAST
@given(st.data())
def test_indices_and_size_of_nested_axes(data: st.DataObject) -> None:
    axes, pool = Axes(), []
    a = draw_axis(data.draw, axes, pool, 3)
    repeated = [f for f in [a] if _repeats_in_a_product(f)]
    # A leaf that multiplies itself stands for two indices at once: readings() cannot say both
    if repeated:
        return
    choice = {}
    for leaf in pool:
        if data.draw(st.booleans()):
            some = data.draw(st.sets(st.integers(0, int(leaf.size) - 1), min_size=1))  # type: ignore[arg-type]
            choice[leaf] = sorted(some)
    kept = Selection(choice)
    expected = [
        i
        for i, r in enumerate(readings(a))
        if all(v in choice.get(leaf, range(99)) for leaf, v in r.items())
    ]
    assert kept.kept(a).tolist() == expected
    assert kept.size(a) == len(expected)
    assert kept.changes(a) == (len(expected) < a.size)  # type: ignore[operator]


def _repeats_in_a_product(a: Axis) -> bool:
    a = find(a)
    if len(ps := parts(a)) > 1:
        return any(map(_repeats_in_a_product, ps))
    if len(fs := factors(a)) > 1:
        below = [x for f in fs for x in dict.fromkeys(leaves(f))]
        return len(below) != len(set(below)) or any(map(_repeats_in_a_product, fs))
    return False


@FAST
@given(st.data())
def test_choice_per_block(data: st.DataObject) -> None:
    """h * (d + e) * r with d chosen per block of h, and h itself cut or not."""
    axes = Axes()
    h, d, e, r = (axes.leaf(data.draw(st.integers(2, 4))) for _ in range(4))
    shape = data.draw(
        st.sampled_from(["hd", "dh", "hdr", "h(d+e)", "(hd+hd+he)", "rhd", "h(er+dr)"])
    )
    a = {
        "hd": lambda: axes.product((h, d)),
        "dh": lambda: axes.product((d, h)),
        "hdr": lambda: axes.product((h, d, r)),
        "h(d+e)": lambda: axes.product((h, axes.sum((d, e)))),
        "(hd+hd+he)": lambda: axes.sum(
            (axes.product((h, d)), axes.product((h, d)), axes.product((h, e)))
        ),
        "rhd": lambda: axes.product((r, h, d)),
        "h(er+dr)": lambda: axes.product(
            (h, axes.sum((axes.product((e, r)), axes.product((d, r)))))
        ),
    }[shape]()
    count = data.draw(st.integers(1, int(d.size)))  # type: ignore[arg-type]
    rows = [
        sorted(data.draw(st.permutations(range(int(d.size))))[:count]) for _ in range(int(h.size))
    ]  # type: ignore[arg-type]
    heads = sorted(data.draw(st.sets(st.integers(0, int(h.size) - 1), min_size=1)))  # type: ignore[arg-type]
    kept = Selection({d: np.asarray(rows), h: heads}, {d: h})
    expected = [
        i for i, x in enumerate(readings(a)) if x[h] in heads and (d not in x or x[d] in rows[x[h]])
    ]
    assert kept.kept(a).tolist() == expected
    assert kept.size(a) == len(expected)


def test_who_is_present_depends_on_the_outer_axis() -> None:
    axes = Axes()
    h, d, e = axes.leaf(2), axes.leaf(3), axes.leaf(2)
    kept = Selection({d: np.asarray([[0, 2], [1, 2]])}, {d: h})
    table = kept.table(axes.sum((e, d)))
    assert table.outer == (h,)
    assert table.mask.tolist() == [[True, True, True, False, True], [True, True, False, True, True]]
    with pytest.raises(ValueError, match="without its outer axis"):
        kept.kept(d)


def test_an_axis_that_multiplies_itself() -> None:
    axes = Axes()
    a = axes.leaf(3)
    assert Selection({a: [0, 2]}).kept(axes.product((a, a))).tolist() == [0, 2, 6, 8]


def test_unchanged_and_dynamic_axes() -> None:
    axes = Axes()
    a, s = axes.leaf(4), axes.leaf(symbol("n"))
    kept = Selection({a: [0, 1]})
    assert kept.size(axes.product((s, a))) == symbol("n") * 2
    assert not kept.changes(s)
    assert kept.kept(axes.leaf(3)).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="dynamic"):
        kept.kept(s)


@pytest.mark.parametrize("indices", [[], [3, 1], [0, 0], [0, 4], [-1, 2], [[0, 1]]])
def test_refuses_what_is_no_choice(indices: Any) -> None:
    axes = Axes()
    a = axes.leaf(4)
    with pytest.raises(ValueError, match=r"a\d+:4"):
        Selection({a: indices})


def test_rows_must_match_the_outer_axis() -> None:
    axes = Axes()
    h, d = axes.leaf(3), axes.leaf(4)
    with pytest.raises(ValueError, match="one row for each index"):
        Selection({d: np.asarray([[0], [1]])}, {d: h})
