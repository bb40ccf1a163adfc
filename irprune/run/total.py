"""Sums over calibration data that come out the same, bit for bit, on any number of ranks.

Sums of floating-point numbers depend on their order, so the order is fixed: the chunks of the
data, in their order, fall into at most ``LANES`` runs of about equal length, each of which is
summed by itself; the sums of ``GROUP`` runs are added in their order, and then the sums of these
groups. So there is one result, whoever has summed which run. Each rank takes runs that follow each
other, adds up what begins a group, and sends the first rank what it has then: on as many ranks as
there are groups one sum each. Three sums are in memory at a time: the total, and those of a group
and of a run.

What is summed may differ from rank to rank where the ranks compute differently: with other
processors, or other numbers of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Generic, TypeVar

from irprune.run.batch import Batch
from irprune.run.calibration import Calibration
from irprune.run.ranks import Ranks, Statistic

__all__ = ["GROUP", "LANES", "is_mine", "summed", "total"]

LANES = 16  # runs of chunks, and so the most ranks that share the data
GROUP = 4  # runs whose sums are added before they are added to those of others

S = TypeVar("S", bound=Statistic)
T = TypeVar("T")


def is_mine(ranks: Ranks, chunks: int) -> Callable[[int], bool]:
    """Whether a chunk, by its number, is one that this rank sums."""
    mine = _lanes(ranks.rank, ranks.size, chunks)
    return lambda number: _lane(number, chunks) in mine


def _lane(number: int, chunks: int) -> int:
    return number * min(LANES, chunks) // chunks


def _lanes(rank: int, size: int, chunks: int) -> range:
    """The runs of a rank."""
    lanes = min(LANES, chunks)
    some = min(size, lanes)
    if rank >= some:
        return range(0)
    return range(-(-rank * lanes // some), -(-(rank + 1) * lanes // some))


def _pieces(lanes: range) -> list[range]:
    """The runs of a rank, those together whose sums it may add up: from the beginning of a
    group."""
    out: list[range] = []
    for lane in lanes:
        if out and lane % GROUP and out[-1].start % GROUP == 0:
            out[-1] = range(out[-1].start, lane + 1)
        else:
            out.append(range(lane, lane + 1))
    return out


class _Total(Generic[S]):
    """The sums of pieces, which come in order."""

    def __init__(self) -> None:
        self._whole: S | None = None
        self._group: S | None = None

    def add(self, piece: range, part: S) -> None:
        """The sum of a piece; it may be used up."""
        if piece.start % GROUP == 0:
            self._close()
            self._group = part
        else:
            assert self._group is not None, "pieces come in order"
            self._group = self._group.merged(part)

    def _close(self) -> None:
        if self._group is not None:
            self._whole = self._group if self._whole is None else self._whole.merged(self._group)
        self._group = None

    def result(self) -> S | None:
        """The sum of all."""
        self._close()
        return self._whole


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
    whole: _Total[S] = _Total()
    held: list[S] = []
    for piece in _pieces(_lanes(ranks.rank, ranks.size, chunks)):
        own: S | None = None
        for lane in piece:
            part = new()
            if pending is not None and pending[0] == lane:
                for number, item in pending[1]:
                    add(part, number, item)
                pending = next(runs, None)
            own = part if own is None else own.merged(part)
        assert own is not None
        if ranks.leads:
            whole.add(piece, own)
        else:
            held.append(own)
    assert pending is None, "a chunk of another rank, or out of order"
    theirs = [
        (other, piece)
        for other in range(1, ranks.size)
        for piece in _pieces(_lanes(other, ranks.size, chunks))
    ]
    received = ranks.collect(held, [other for other, _ in theirs])
    for (_, piece), part in zip(theirs, received, strict=ranks.leads):
        whole.add(piece, part)
    made = ranks.first(whole.result())
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
