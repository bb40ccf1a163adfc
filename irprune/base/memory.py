"""How many bytes of memory a call may take for weights, activations and sums over them, beside what
one layer takes."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache

__all__ = [
    "DEFAULT",
    "large_blocks_apart",
    "memory_asked",
    "memory_budget",
    "memory_share",
    "trim",
    "within_memory",
]

DEFAULT = 1 << 30
_AT_ONCE = 6  # weights of a part, activations that wait, sums (twice), those of before, new weights

_BUDGET: ContextVar[int | None] = ContextVar("irprune_memory", default=None)


@contextlib.contextmanager
def within_memory(budget: int | None) -> Iterator[None]:
    """What is called inside takes no more than ``budget`` bytes; None leaves it as it is."""
    token = _BUDGET.set(_BUDGET.get() if budget is None else budget)
    try:
        yield
    finally:
        _BUDGET.reset(token)


def memory_budget() -> int:
    """The bytes that the call which is under way may take."""
    return _BUDGET.get() or DEFAULT


def memory_share() -> int:
    """The bytes for one of the kinds of things that are held at the same time: where the user has
    said how much all of them may take, a part of that."""
    asked = memory_asked()
    return DEFAULT if asked is None else max(1, asked // _AT_ONCE)


def memory_asked() -> int | None:
    """Those that the user has said; None where that is nothing."""
    return _BUDGET.get()


def trim() -> None:
    """Give the system back what was freed and what the allocator keeps for later, of which blocks
    of some megabytes leave much; where it is not that of glibc, nothing."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


@cache
def large_blocks_apart() -> None:
    """Let blocks of a megabyte and more go back to the system as soon as they are freed. By itself
    the allocator of glibc keeps those of up to 32 MB, once one of that size was freed, beside
    others of that size that are used next. Where it is not that of glibc, nothing."""
    library = _library()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 20)


_M_MMAP_THRESHOLD = -3  # of malloc.h


@cache
def _library() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    try:
        library.malloc_trim, library.mallopt  # noqa: B018 - musl has neither
    except AttributeError:
        return None
    return library
