"""Work on many arrays at once: every item once, in order, and the first exception."""

import time

import pytest

from irprune.base.concurrent import concurrently


def test_results_stand_in_the_order_of_the_items() -> None:
    seen: list[int] = []

    def work(i: int) -> int:
        seen.append(i)
        time.sleep(0.001 * (i % 3))
        return 10 * i

    assert concurrently(work, range(40)) == [10 * i for i in range(40)]
    assert sorted(seen) == list(range(40))
    assert concurrently(work, []) == []


def test_the_exception_of_the_first_item_is_raised() -> None:
    def work(i: int) -> int:
        if i == 0:
            time.sleep(0.05)  # the second item fails before it does
        raise ValueError(str(i))

    with pytest.raises(ValueError, match="^0$"):
        concurrently(work, range(4))
