"""The axis algebra by examples: what is tied, what stays free, and what is frozen where."""

from __future__ import annotations

import time

import pytest

from irprune.ir.axis import Axes, Axis, factors, find, leaves, parts
from irprune.ir.selection import Selection
from irprune.ir.size import Sym, probe_of, symbol

# -- examples --------------------------------------------------------------------------------------


def free_sizes(*axes: Axis) -> list[int]:
    """Sizes of the free leaves, each leaf once."""
    return [
        probe_of(x.size)
        for x in dict.fromkeys(x for a in axes for x in leaves(a))
        if x.reason is None and x.size != 1
    ]


def test_heads_and_head_dim_are_two_leaves() -> None:
    axes = Axes()
    width = axes.leaf(64)
    heads, dim = axes.regroup([width], [8, 8])
    assert (find(width).kind, factors(width)) == ("product", [find(heads), find(dim)])
    assert free_sizes(width) == [8, 8]


def test_channel_shuffle_leaves_both_factors_free() -> None:
    axes = Axes()
    x = axes.leaf(12)
    g, c = axes.regroup([x], [3, 4])
    (shuffled,) = axes.regroup([c, g], [12])
    assert factors(shuffled) == [find(c), find(g)]
    assert free_sizes(shuffled) == [4, 3]
    assert not axes.unify(x, shuffled) and free_sizes(x, shuffled) == [], (
        "adding a shuffle to its input ties every factor"
    )


def test_a_concatenation_is_cut_where_its_sum_is() -> None:
    axes = Axes()
    a, b = axes.leaf(6), axes.leaf(10)
    joined = axes.sum([a, b])
    first, second = axes.cut(joined, [6, 10])
    assert find(first) is a and find(second) is b
    left, middle, right = axes.cut(joined, [4, 8, 4])
    assert [probe_of(p.size) for p in parts(joined)] == [4, 2, 6, 4]
    assert (
        parts(middle) == parts(joined)[1:3]
        and find(left) is parts(a)[0]
        and find(right) is parts(b)[1]
    )


def test_a_refinement_is_seen_by_every_dimension_that_shares_the_leaf() -> None:
    axes = Axes()
    a, b = axes.leaf(12), axes.leaf(12)
    axes.unify(a, b)
    axes.regroup([a], [3, 4])
    assert [f.size for f in factors(b)] == [3, 4]


def test_a_gate_and_a_value_in_one_projection_share_a_leaf() -> None:
    axes = Axes()
    fused = axes.leaf(64)
    gate, value = axes.cut(fused, [32, 32])
    axes.unify(gate, value)
    assert parts(fused) == [find(gate)] * 2
    assert Selection({gate: [1, 30]}).kept(fused).tolist() == [1, 30, 33, 62]


def test_fused_qkv_in_both_groupings() -> None:
    axes = Axes()
    thrice, heads, dim = axes.regroup([axes.leaf(36)], [3, 4, 3])
    fused = axes.leaf(36)
    q, k, v = axes.cut(fused, [12, 12, 12])
    for part in (q, k, v):
        for a, b in zip(axes.regroup([part], [4, 3]), (heads, dim), strict=True):
            axes.unify(a, b)
    axes.freeze(thrice, "indexed")
    assert [factors(p) for p in parts(fused)] == [[find(heads), find(dim)]] * 3
    assert free_sizes(fused) == [4, 3]


def test_a_product_joined_to_a_sum_is_cut_along_its_outermost_factor() -> None:
    axes = Axes()
    total = axes.sum([axes.leaf(6), axes.leaf(12)])
    heads, dim = axes.leaf(6), axes.leaf(3)
    assert axes.unify(total, axes.product([heads, dim]))
    assert [p.size for p in parts(heads)] == [2, 4]
    assert free_sizes(total) == [2, 4, 3]
    kept = Selection({parts(heads)[1]: [0, 3], dim: [1]})
    assert kept.kept(total).tolist() == [1, 4, 7, 16]


def test_a_boundary_inside_a_row_cuts_the_row() -> None:
    axes = Axes()
    heads, dim = axes.leaf(4), axes.leaf(6)
    first, second = axes.cut(axes.product([heads, dim]), [8, 16])
    assert (first.size, second.size) == (8, 16)
    assert [p.size for p in parts(dim)] == [2, 4]
    assert [p.size for p in parts(heads)] == [1, 1, 2]


def test_a_conflict_freezes_the_factors_concerned_and_no_more() -> None:
    axes = Axes()
    c, h, w, d = axes.leaf(32), axes.leaf(8), axes.leaf(7), axes.leaf(5)
    made = axes.regroup([axes.product([c, h, w, d])], [32, 7, 8, 5])
    assert [axes.is_frozen(a) for a in (c, h, w, d)] == [False, True, True, False]
    assert [axes.is_frozen(a) for a in made] == [False, True, True, False]
    assert str(h.reason) == "regrouped in two ways that do not fit"


def test_frozen_axes_regroup_without_touching_the_others() -> None:
    axes = Axes()
    c, h, w = axes.leaf(32), axes.frozen(8, "positions"), axes.frozen(7, "positions")
    made = axes.regroup([c, h, w], [32, 2, 28])
    assert find(made[0]) is c and c.reason is None
    assert [str(find(a).reason) for a in made[1:]] == ["positions"] * 2
    tied = axes.regroup([axes.product([c, h]), w], [32, 2, 28])
    assert free_sizes(*tied) == [32]


def test_a_frozen_leaf_freezes_what_it_is_joined_to() -> None:
    axes = Axes()
    composite = axes.product([axes.leaf(3), axes.leaf(4)])
    axes.unify(axes.frozen(12, "graph output 'y'"), composite)
    assert {str(x.reason) for x in leaves(composite)} == {"graph output 'y'"}


def test_sizes_that_meet_freeze_both() -> None:
    axes = Axes()
    a, b = axes.leaf(3), axes.leaf(4)
    assert not axes.unify(a, b)
    assert str(a.reason) == str(b.reason) == "sizes 3 and 4 meet"


def test_empty_axes_relate_nothing() -> None:
    axes = Axes()
    none = axes.leaf(0)
    assert axes.unify(none, axes.product([none, axes.leaf(5)]))
    assert list(leaves(none)) == [none]
    assert axes.split(none, 0) == (None, None)
    assert [a.size for a in axes.cut(none, [0, 0])] == [0, 0]
    c = axes.leaf(5)
    made = axes.regroup([c, none], [0, 7])
    assert [a.size for a in made] == [0, 7] and c.reason is None and axes.is_frozen(made[1])


def test_an_axis_joined_to_its_own_rotation_ends_in_a_freeze() -> None:
    """Its indices are all one orbit: found without walking through all 100 000 of them."""
    axes = Axes()
    x = axes.leaf(100_000)
    first, rest = axes.cut(x, [1, 99_999])
    started = time.process_time()
    assert not axes.unify(x, axes.sum([rest, first]))
    assert time.process_time() - started < 2
    assert axes.is_frozen(x) and axes.count < 2_000


def test_work_does_not_depend_on_sizes() -> None:
    counts = []
    for scale in (1, 1000):
        axes = Axes()
        a, b = axes.leaf(12 * scale), axes.leaf(8 * scale)
        joined = axes.sum([a, b, a])
        axes.unify(joined, axes.leaf(32 * scale))
        axes.regroup([joined], [4, 8 * scale])
        axes.cut(joined, [2 * scale] * 16)
        counts.append((axes.count, len(axes.links)))
    assert counts[0] == counts[1]


def test_five_hundred_cuts_of_what_is_left_stay_quick() -> None:
    axes = Axes()
    x = rest = axes.leaf(4096)
    started = time.process_time()
    for _ in range(500):
        _, rest = axes.cut(rest, [8, rest.size - 8])
    assert len(parts(x)) == 501 and len(list(leaves(x))) == 501
    assert time.process_time() - started < 2


def test_dynamic_sizes_stay_frozen_expressions() -> None:
    axes = Axes()
    n, c = symbol("n"), axes.leaf(12)
    batch, four, three = axes.regroup([axes.leaf(n), c], [n, 4, 3])
    assert batch.size == n and free_sizes(four, three, c) == [4, 3]
    tokens, again = (
        axes.regroup([axes.leaf(n), c], [n * 4, 3]),
        axes.regroup([axes.leaf(n), c], [n * 3, 4]),
    )
    assert [str(a.size) for a in tokens] == ["(n * 4)", "3"] and [str(a.size) for a in again] == [
        "(n * 3)",
        "4",
    ]
    assert not any(isinstance(x.size, Sym) for x in leaves(c)), (
        "a static axis is made of static ones"
    )
    flat = axes.product([axes.leaf(n), axes.leaf(6)])
    assert [a.size for a in axes.cut(flat, [n * 2, n * 4])] == [n * 2, n * 4]
    assert axes.is_frozen(flat)


def test_symbols_that_cancel_leave_a_number() -> None:
    n, m = symbol("n"), symbol("m")
    assert (n * 3) // n == 3 and (n + 5) - n == 5 and n - n == 0 and n // n == 1
    assert str((n * m) // m) == "((n * m) // m)" and probe_of((n * m) // m) == n.probe
    assert str(n - m) == "(n - m)" and str(n // 2) == "(n // 2)"


def test_channels_merged_with_a_dynamic_batch_stay_free() -> None:
    """Windows cut by merging batch, channels and rows: (b, 64, 28, 28) as (b*64*14, 2, 14, 2) and
    back."""
    axes, batch = Axes(), symbol("b")
    b, c, h, w = (
        axes.leaf(batch),
        axes.leaf(64),
        axes.frozen(28, "rows"),
        axes.frozen(28, "columns"),
    )
    merged, *inside = axes.regroup([b, c, h, w], [batch * 896, 2, 14, 2])
    assert c.reason is None and find(c) in factors(merged)
    back = axes.regroup([merged, *inside], [batch, 64, 28, 28])
    assert find(back[1]) is find(c) and c.reason is None
    assert all(
        x.reason is not None for a in (merged, *back) for x in leaves(a) if isinstance(x.size, Sym)
    )


def test_pieces_that_do_not_add_up_are_refused() -> None:
    axes = Axes()
    with pytest.raises(ValueError, match="pieces of sizes 3, 4 do not make up 8"):
        axes.cut(axes.leaf(8), [3, 4])


def test_a_role_follows_its_leaf_through_refinement_and_joining() -> None:
    axes = Axes()
    g = axes.leaf(8)
    g.role = "group"
    outer, inner = axes.split(axes.leaf(8), 4)
    assert outer is not None and inner is not None
    axes.unify(g, axes.product([outer, inner]))
    assert (outer.role, inner.role) == ("group", "group")


def test_links_name_the_node_that_related_two_axes() -> None:
    axes = Axes()
    a, b = axes.leaf(4), axes.leaf(4)
    axes.unify(a, b)
    axes.freeze(b, "kernel size")
    assert [(x.a, x.b, x.kind) for x in axes.links] == [(b.id, a.id, "unify"), (a.id, -1, "freeze")]
