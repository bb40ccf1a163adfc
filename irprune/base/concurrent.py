"""Work on many arrays at once: numpy lets go of the interpreter while it copies and sums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import perf_counter
from typing import TypeVar

__all__ = ["concurrently"]

A = TypeVar("A")
B = TypeVar("B")


_SHORT = 1e-2  # seconds: to start threads and to wait for them takes about half of it


def concurrently(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """``work`` of each item, in the order of the items, on as many threads as there are processors;
    of exceptions that of the first item is raised.

    The caller begins, and what is short it does alone. The threads take item after item: a task for
    each, which the caller waits for, would cost more than the work on a small array."""
    many = list(items)
    done: list[B] = []
    ends = perf_counter() + _SHORT
    while len(done) < len(many) and perf_counter() < ends:
        done.append(work(many[len(done)]))
    rest = many[len(done) :]
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = min(len(rest), processors, 8)
    return done + (_shared(work, rest, threads) if threads > 1 else [work(item) for item in rest])


def _shared(work: Callable[[A], B], items: list[A], threads: int) -> list[B]:
    """``work`` of each item on so many threads."""
    done: dict[int, B] = {}
    failed: dict[int, BaseException] = {}
    left = iter(enumerate(items))  # of which no two threads get the same
    lock = Lock()

    def take() -> None:
        while not failed:
            with lock:
                taken = next(left, None)
            if taken is None:
                return
            i, item = taken
            try:
                done[i] = work(item)
            except BaseException as error:
                failed[i] = error

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(threads):
            pool.submit(take)
    if failed:
        raise failed[min(failed)]
    return [done[i] for i in range(len(items))]
