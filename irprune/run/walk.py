"""A graph run over calibration data block by block: all chunks go through one part of the graph
before the next part begins, so that each weight is read once and no more than a part's weights are
in memory, whatever the number of layers and samples.

What a chunk needs further on waits on a shelf, in memory and then on the disk; of a run that is
kept, in files as well, from which another goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from math import prod
from typing import Any, TypeVar

from irprune.ir.dtype import item_bytes
from irprune.ir.graph import Graph, Node, Weight
from irprune.ir.size import probe_of
from irprune.run.batch import Batch
from irprune.run.calibration import Calibration
from irprune.run.interpret import Hook
from irprune.run.kept_files import KeptFiles
from irprune.run.ranks import Statistic
from irprune.run.statistics import Shelf, Tape
from irprune.run.total import is_mine, summed

__all__ = ["Walk"]

S = TypeVar("S", bound=Statistic)


class Walk:
    """``graph`` over the chunks of ``data`` that are this rank's.

    Args:
        graph: The graph.
        data: The calibration data.
        memory: Bytes of weights that are read at a time, and of what waits between two parts; a
            single operator may take more.
        take: What of a chunk is run; None leaves it out.
        files: Where what chunks need at the end of each part is kept.
        ends: Numbers of nodes before which parts end as well.
    """

    def __init__(
        self,
        graph: Graph,
        data: Calibration,
        memory: int,
        take: Callable[[Batch], Batch | None] = lambda batch: batch,
        files: KeptFiles | None = None,
        ends: Collection[int] = (),
    ) -> None:
        self.graph, self.data, self.memory, self._take = graph, data, memory, take
        self.files, self._ends = files, ends
        self._sizes: dict[int, int] = {}
        self._tape = Tape(graph)
        self._shelf: Shelf | None = None
        self._symbols: dict[int, dict[str, int]] = {}
        self._at = 0
        self._started = False  # whether the chunks have been read, and wait

    def parts(self, nodes: Sequence[Node]) -> Iterator[list[Node]]:
        """``nodes``, in the order of the graph, in runs of which each lies in one part."""
        bounds = self._bounds()
        some: list[Node] = []
        last = -1
        for node in sorted(nodes, key=lambda n: self._tape.at[n]):
            part = next(i for i, end in enumerate(bounds) if self._tape.at[node] < end)
            if some and part != last:
                yield some
                some = []
            some.append(node)
            last = part
        if some:
            yield some

    def _bounds(self) -> list[int]:
        """Where parts end: each has weights of at most ``memory`` bytes."""
        ends, held = [], 0
        seen: set[Weight] = set()
        for i, node in enumerate(self.graph.nodes):
            fresh = {v for v in node.inputs if isinstance(v, Weight)} - seen
            size = sum(map(_bytes, fresh))
            if held and (held + size > self.memory or i in self._ends):
                ends.append(i)
                held, seen = 0, set()
                size = sum(_bytes(v) for v in node.inputs if isinstance(v, Weight))
            held += size
            seen |= fresh
        return [*ends, len(self.graph.nodes)]

    def total(
        self,
        nodes: Sequence[Node],
        new: Callable[[], S],
        hook: Callable[[S, int, int], Hook],
        last: bool = True,
    ) -> S:
        """The statistic of what happens at ``nodes``, over the chunks of all ranks.

        Args:
            nodes: Of one part; the walk begins anew where they lie behind it.
            new: An empty statistic.
            hook: Gives, for a statistic, the number of a chunk and its number of samples, what
                computes a node and adds to the statistic.
            last: Whether nothing is asked for behind these nodes.

        Returns:
            The statistic, in the order of ``irprune.run.total``.
        """
        places = [self._tape.at[n] for n in nodes]
        if min(places) < self._at:
            self.close()
        if self._shelf is None:
            self._begin(min(places))
        for end in self._bounds():
            if self._at < end <= min(places):
                self._go_to(end)
        goal = max(places) + 1

        def add(statistic: S, number: int, env: dict[str, Any]) -> None:
            watch = hook(statistic, number, self._sizes[number])
            self._tape.advance(env, self._symbols[number], self._at, goal, watch)
            if not last:
                self._put(number, env, goal)

        made = summed(self.data.ranks, self.data.chunk_count(), self._chunks(), new, add)
        self._tape.forget()
        self._at = goal
        if last:
            self.close()
        return made

    def _go_to(self, end: int) -> None:
        """Run all chunks up to a place in the graph."""
        for number, env in self._chunks():
            self._tape.advance(env, self._symbols[number], self._at, end)
            self._put(number, env, end)
        self._tape.forget()
        self._at = end
        self.arrived()

    def _put(self, number: int, env: dict[str, Any], place: int) -> None:
        assert self._shelf is not None
        self._shelf.put(number, (env,))
        if self.files is not None:
            told = {"symbols": self._symbols[number], "size": self._sizes[number], "env": env}
            self.files.put_chunk((place,), number, told)

    def _begin(self, before: int) -> None:
        """Begin at the first node, or at the last place before node ``before`` where the chunks
        are kept."""
        self._shelf, self._at = Shelf(self.memory), 0
        self._started = False
        if self.files is not None:
            place = self.files.latest(self._mine(), (before,))
            self._at = 0 if place is None else place[0]

    def arrived(self) -> None:
        """What was made up to here is kept: another run may go on from here, and needs nothing
        that lies before."""
        if self.files is None or self._shelf is None:
            return
        for number in self._mine():
            if number not in self._symbols:  # nothing of it is run
                self.files.put_chunk((self._at,), number, None)
        self.files.arrived((self._at,), self._mine())

    def _kept(self, place: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The chunks of this rank as they are kept at a place."""
        assert self.files is not None
        for number in self._mine():
            told = self.files.chunk((place,), number)
            if told is not None:
                self._symbols[number], self._sizes[number] = told["symbols"], told["size"]
                yield number, told["env"]

    def _mine(self) -> list[int]:
        """The numbers of the chunks of this rank."""
        count = self.data.chunk_count()
        return list(filter(is_mine(self.data.ranks, count), range(count)))

    def _chunks(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The chunks of this rank by number, as far as they are."""
        assert self._shelf is not None
        if self._started:
            for number in list(self._symbols):
                (env,) = self._shelf.get(number)
                yield number, env
            return
        self._started = True
        if self._at:
            yield from self._kept(self._at)
            return
        mine = is_mine(self.data.ranks, self.data.chunk_count())
        for chunk in self.data.chunks(mine):
            batch = self._take(chunk)
            if batch is not None:
                self._symbols[chunk.number] = self._tape.symbols(batch.inputs)
                self._sizes[chunk.number] = batch.size
                yield chunk.number, self._tape.start(batch.inputs)

    def close(self) -> None:
        """Let go of what waits; the next statistic begins at the first node."""
        if self._shelf is not None:
            self._shelf.close()
        self._shelf, self._at = None, 0
        self._symbols.clear()
        self._tape.forget()


def _bytes(weight: Weight) -> int:
    """What a weight takes when it is computed with: half precisions are widened."""
    return prod(probe_of(s) for s in weight.shape) * max(4, item_bytes(weight.dtype))
