"""Work on many arrays at once: every item once, in order, and the first exception."""

import time
from threading import get_ident

import pytest

from irprune.base import concurrent
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


@pytest.fixture(autouse=True, params=[0.0, 1e-2], ids=["threads", "caller first"])
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent, "_SHORT", request.param)


def test_short_work_needs_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent, "_SHORT", 60.0)
    assert set(concurrently(lambda i: get_ident(), range(40))) == {get_ident()}


def test_the_exception_of_the_first_item_is_raised() -> None:
    def work(i: int) -> int:
        if i == 0:
            time.sleep(0.05)  # the second item fails before it does
        raise ValueError(str(i))

    with pytest.raises(ValueError, match=r"^0$"):
        concurrently(work, range(4))
