"""Work on many arrays at once: numpy lets go of the interpreter while it copies and sums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["concurrently"]

A = TypeVar("A")
B = TypeVar("B")


def concurrently(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """``work`` of each item, in the order of the items, on as many threads as there are processors;
    the first exception is raised."""
    many = list(items)
    threads = min(
        len(many),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        8,
    )
    if threads < 2:
        return [work(item) for item in many]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, many))
