"""One count for leaves that are tied."""

from hypothesis import given
from hypothesis import strategies as st

from irprune.choice.uniform import levelled
from irprune.ir.axis import Axes


@given(
    st.lists(st.tuples(st.integers(1, 24), st.sampled_from([1, 2, 3, 4])), min_size=1, max_size=5)
)
def test_tied_leaves_get_one_count_that_all_their_steps_allow(tied):
    axes = [Axes().leaf(24) for _ in tied]
    counts = {x: -(-n // step) * step for x, (n, step) in zip(axes, tied, strict=True)}
    steps = {x: step for x, (_, step) in zip(axes, tied, strict=True)}
    out = levelled(counts, dict.fromkeys(axes, axes[0]), steps)
    count = out[axes[0]]
    assert set(out.values()) == {count}
    assert count == 24 or all(count % step == 0 for step in steps.values())
    assert count >= min(counts.values())


def test_leaves_that_are_not_tied_keep_their_counts():
    a, b = Axes().leaf(8), Axes().leaf(8)
    assert levelled({a: 3, b: 5}, {}, {}) == {a: 3, b: 5}
