"""Sums over calibration data that come out the same, bit for bit, on any number of ranks.

Sums of floating-point numbers depend on their order, so the order is fixed: the chunks of the data,
in their order, fall into at most ``LANES`` runs of about equal length, each is summed by itself,
and the sums of the runs are added in their order. Ranks take the runs in turn. So there is one
result, whoever has summed which run; and two sums in memory at a time, the total and that of a run.

What is summed may differ from rank to rank where the ranks compute differently: with other
processors, or other numbers of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TypeVar

from irprune.run.calibration import Batch, Calibration
from irprune.run.ranks import Ranks, Statistic

__all__ = ["LANES", "is_mine", "summed", "total"]

LANES = 16  # runs of chunks, and so the most ranks that share the data

S = TypeVar("S", bound=Statistic)
T = TypeVar("T")


def is_mine(ranks: Ranks, chunks: int) -> Callable[[int], bool]:
    """Whether a chunk, by its number, is one that this rank sums."""
    return lambda number: _lane(number, chunks) % ranks.size == ranks.rank


def _lane(number: int, chunks: int) -> int:
    return number * min(LANES, chunks) // chunks


def summed(
    ranks: Ranks,
    chunks: int,
    mine: Iterable[tuple[int, T]],
    new: Callable[[], S],
    add: Callable[[S, int, T], None],
) -> S:
    """The statistic over all chunks of all ranks.

    Args:
        ranks: Who sums.
        chunks: How many there are on all ranks.
        mine: Those of this rank (``is_mine``) with their numbers, in order; some may be left out.
        new: An empty statistic.
        add: Adds a chunk to a statistic.

    Returns:
        The statistic, on every rank.
    """
    runs = groupby(mine, lambda each: _lane(each[0], chunks))
    pending = next(runs, None)
    lanes = min(LANES, chunks)
    result: S | None = None
    for first in range(0, lanes, ranks.size):
        part = None
        if first + ranks.rank < lanes:
            part = new()
            if pending is not None and pending[0] == first + ranks.rank:
                for number, item in pending[1]:
                    add(part, number, item)
                pending = next(runs, None)
        result = ranks.fold(result, part, min(ranks.size, lanes - first))
    assert pending is None, "a chunk of another rank, or out of order"
    made = ranks.first(result)
    return new() if made is None else made


def total(
    data: Calibration,
    new: Callable[[], S],
    add: Callable[[S, Batch], None],
    samples: int | None = None,
) -> S:
    """The statistic over ``data``, or over about ``samples`` of them at equal distances; on every
    rank that shares ``data``."""
    mine = is_mine(data.ranks, data.chunk_count())
    batches = data.chunks(mine) if samples is None else data.spread(samples, mine)
    return summed(
        data.ranks,
        data.chunk_count(),
        ((batch.number, batch) for batch in batches),
        new,
        lambda statistic, number, batch: add(statistic, batch),
    )
