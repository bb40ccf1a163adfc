"""Calibration data: whatever the user has, as flat tensors in the order of the graph's inputs.

A source is an iterable of model inputs (a tensor, a tuple of arguments, a dict of keyword arguments
as Hugging Face tokenizers give, or those with labels behind them), one tensor of many samples, a
folder of ``.npy``, ``.npz`` and image files, or texts (``irprune.run.texts``). Everything is
checked against the graph's inputs when it is read, so that a wrong shape or a NaN is named by the
item it came from and not by an operator deep in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from irprune.errors import IrpruneError, option
from irprune.ir.graph import Graph
from irprune.ir.size import Sym
from irprune.ops.arrays import checksum
from irprune.run.activations import Activations, activations
from irprune.run.batch import Batch, any_batch, batch_size, rows_of, split_rows
from irprune.run.images import Folder, combined
from irprune.run.items import flat
from irprune.run.ranks import current
from irprune.run.sources import File, opened

__all__ = ["ACTIVATIONS", "Calibration"]

ACTIVATIONS = 1 << 29  # bytes of activations that run at once, of more than one sample


class Calibration:
    """Checked inputs for a graph; iterating gives ``Batch`` after ``Batch``, as often as asked.

    A source that can be read only once (a generator) is kept; all others are read again, so that
    memory does not grow with them.

    Args:
        source: A DataLoader, an iterable of items (tensors, tuples, dictionaries), a file or folder
            of arrays or images (``irprune.run.images.Folder``).
        graph: The graph whose inputs they are.
        samples: How many samples are used at most; None for all.
        batch: How many run at once at most, where the model takes any number.
        derived: Derivatives are taken, so that all activations are held and not those that are
            still needed alone; for ``activations``, which bounds how many run at once.
        graphs: How many graphs run side by side on a chunk, each with activations of its own.
        mean: Per channel, of pixels in 0..1; for image files alone.
        std: As ``mean``.

    Raises:
        IrpruneError: For a source that yields nothing, for shapes and types that the graph does not
            take, and for NaN.
    """

    def __init__(
        self,
        source: Any,
        graph: Graph,
        *,
        samples: int | None = None,
        batch: int = 64,
        derived: bool = False,
        graphs: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.graph = graph
        self.samples = samples
        self.batch = batch
        self.derived = derived
        self.graphs = graphs
        if isinstance(source, (str, Path)):
            source = Folder(source, combined(None, mean=mean, std=std))
        self.source: _Source = (
            source.source if isinstance(source, Calibration) else _Source(opened(source, graph))
        )
        self.ranks = current()
        self._free: bool | None = None
        self._table: list[list[_Piece]] | None = None
        if batch < 1 or (samples is not None and samples < 1):
            raise IrpruneError("calibration of no samples", "", "samples and batch are at least 1")

    def __iter__(self) -> Iterator[Batch]:
        return self.chunks()

    def chunks(self, wanted: Callable[[int], bool] | None = None) -> Iterator[Batch]:
        """The data in chunks; files of those that are not wanted are not read.

        Args:
            wanted: Says of the number of a chunk whether it is wanted; None for all.

        Returns:
            The chunks, in their order.
        """
        table = None if wanted is None else self._pieces()
        pieces = _Pieces(self)
        some = False
        for number, item in enumerate(self.source.items()):
            if table is not None and number >= len(table):
                return
            if table is not None and wanted is not None:
                some = True
                mine = [p for p in table[number] if wanted(p.number)]
                if not mine:
                    continue
                made = self._flat(number, item)
            else:
                made = self._flat(number, item)
                mine = list(pieces.of(made.size))
            for piece in mine:
                some = True
                yield piece.cut(made)
            if pieces.done:
                return
        if not some:
            raise _nothing()

    def _flat(self, number: int, item: Any) -> Batch:
        read = item.read() if isinstance(item, File) else item
        made = flat(read, self.graph, f"calibration item {number}")
        if self.source.few is None and number == 0:  # the same on all ranks, whoever reads what
            own = batch_size(self.graph)
            few = 1 if isinstance(own, Sym) else own
            self.source.few = made if few is None or made.size <= few else rows_of(made, slice(few))
        return made

    def _pieces(self) -> list[list[_Piece]]:
        """The pieces of every item; the data are read for it once, files by one rank each."""
        if self._table is not None:
            return self._table
        if self.source.sizes is None:
            self.source.sizes = self._item_sizes()
        if not self.source.sizes:
            raise _nothing()
        pieces = _Pieces(self)
        self._table = []
        for size in self.source.sizes:
            self._table.append(list(pieces.of(size)))
            if pieces.done:
                break
        return self._table

    def _item_sizes(self) -> list[int]:
        """The number of samples of every item. Raises IrpruneError where ranks have other data."""
        own: dict[int, int] = {}
        seen = sha256()
        for number, item in enumerate(self.source.items()):
            if isinstance(item, File):
                seen.update(f"{item.path.name} {item.path.stat().st_size}".encode())
                if number % self.ranks.size != self.ranks.rank:
                    continue
            made = self._flat(number, item)
            own[number] = made.size
            if self.ranks.size > 1 and not isinstance(item, File):
                for tensor in made.inputs:
                    seen.update(checksum(tensor))
        if self.ranks.size == 1:
            return list(own.values())
        told = self.ranks.gather((seen.digest(), own))
        for rank, (digest, _) in enumerate(told):
            if digest != told[0][0]:
                raise IrpruneError(
                    f"rank {rank} gives other calibration data than rank 0",
                    option("calibration"),
                    "give the same data on every rank: they are split here",
                )
        every = {k: v for _, sizes in told for k, v in sizes.items()}
        return [every[k] for k in range(len(every))]

    def sizes(self) -> list[int]:
        """How the samples fall into chunks.

        Returns:
            The number of samples of each chunk.
        """
        return [p.size for many in self._pieces() for p in many]

    def chunk_count(self) -> int:
        """How many chunks there are.

        Returns:
            Their number.
        """
        return sum(len(many) for many in self._pieces())

    def count(self) -> int:
        """The number of samples; the data are read for it once.

        Returns:
            How many there are, at most ``samples``.
        """
        return sum(self.sizes())

    def spread(
        self, samples: int, wanted: Callable[[int], bool] | None = None, among: int = 1
    ) -> Iterator[Batch]:
        """Some of the samples, at equal distances.

        Args:
            samples: About how many; whole items where the graph takes no other number.
            wanted: Says of the number of a chunk whether it is wanted; None for all.
            among: The distance of the samples that they are taken among.

        Returns:
            Batches of them.
        """
        sizes = self.sizes()
        stride = among * max(1, sum(sizes) // (samples * among))
        starts = [0, *accumulate(sizes)]

        def reached(number: int) -> bool:
            return -starts[number] % stride < sizes[number]

        for batch in self.chunks(lambda n: reached(n) and (wanted is None or wanted(n))):
            yield (
                rows_of(batch, slice(-starts[batch.number] % stride, None, stride))
                if stride > 1 and batch.size > 1 and self.resizable
                else batch
            )

    def rest(self, batch: Batch, among: int) -> Batch | None:
        """What of a chunk ``spread`` among samples at a distance leaves.

        Args:
            batch: The chunk.
            among: The distance.

        Returns:
            The rest of the chunk; None where there is none.
        """
        first = -sum(self.sizes()[: batch.number]) % among
        if first >= batch.size:
            return batch
        if not self.resizable or batch.size == 1:
            return None
        mask = torch.ones(batch.size, dtype=torch.bool)
        mask[first::among] = False
        if not bool(mask.any()):
            return None
        return Batch(tuple(x[mask] for x in batch.inputs), number=batch.number)

    def joined(self, samples: int, among: int = 1) -> list[Batch]:
        """``spread`` in as few batches as the graph takes.

        Args:
            samples: About how many.
            among: As of ``spread``.

        Returns:
            The batches, without what the items hold beyond inputs.
        """
        return self.together([Batch(b.inputs) for b in self.spread(samples, among=among)])

    def together(self, made: Sequence[Batch]) -> list[Batch]:
        """Batches joined where the graph takes more samples at a time.

        Args:
            made: Batches without what the items hold beyond inputs.

        Returns:
            The same samples in as few batches as may be.
        """
        alike = len({tuple(t.shape[1:] for t in b.inputs) for b in made}) == 1
        if len(made) < 2 or not alike or not self.resizable:
            return list(made)  # a size is written down in the graph, or differs from item to item
        whole = Batch(tuple(map(torch.cat, zip(*(b.inputs for b in made), strict=True))))
        return split_rows(whole, max(1, self.activations.fitting(ACTIVATIONS)))

    @property
    def step(self) -> int:
        """How many samples run at once: ``batch``, or as many as ``ACTIVATIONS`` bytes hold."""
        if self.batch == 1:
            return 1
        room = ACTIVATIONS // self.graphs
        return min(self.batch, self.activations.fitting(room, derived=self.derived))

    @property
    def activations(self) -> Activations:
        """What those of one sample take, measured once on the first."""
        known = self.source.activations
        if known is None:
            first = self.first_samples()
            known = activations(self.graph, first.inputs, first.size)
            self.source.activations = known
        return known

    @property
    def resizable(self) -> bool:
        """Whether the graph runs with another number of samples than it was captured with: tried
        once, and compared."""
        if self._free is None:
            self._free = any_batch(self.graph, self.first_samples())
        return self._free

    def first_samples(self) -> Batch:
        """As many as the graph was captured with; one where it takes any number.

        Returns:
            A batch of them.
        """
        if self.source.few is None:
            for number, item in enumerate(self.source.items()):
                self._flat(number, item)
                break
        if self.source.few is None:
            raise _nothing()
        return self.source.few


@dataclass
class _Source:
    """What calibration data are read from, and the sizes of its items once they are known."""

    items: Callable[[], Iterator[Any]]
    sizes: list[int] | None = None
    activations: Activations | None = None
    few: Batch | None = None  # the first samples


@dataclass(frozen=True)
class _Piece:
    """A chunk: rows of an item, or all of it."""

    number: int
    size: int
    rows: slice | None

    def cut(self, item: Batch) -> Batch:
        made = item if self.rows is None else rows_of(item, self.rows)
        return replace(made, number=self.number)


class _Pieces:
    """How items become chunks: in runs of at most ``batch`` samples, or of as many as the graph was
    captured with where it takes no other number; ``done`` when there are ``samples``."""

    def __init__(self, data: Calibration) -> None:
        self.data, self.own = data, batch_size(data.graph)
        self.left, self.number = data.samples, 0
        self.done = False

    def of(self, size: int) -> Iterator[_Piece]:
        """The pieces of the next item, of so many samples."""
        for rows in self._runs(size):
            n = size if rows is None else rows.stop - rows.start
            if self.left is not None and n > self.left and self.data.resizable:
                start = 0 if rows is None else rows.start
                n, rows = self.left, slice(start, start + self.left)
            yield _Piece(self.number, n, rows)
            self.number += 1
            if self.left is not None:
                self.left -= n
                if self.left <= 0:
                    self.done = True
                    return

    def _runs(self, size: int) -> Iterator[slice | None]:
        own = self.own
        if own is None:
            yield None
            return
        if size == 1 and (isinstance(own, Sym) or own == 1):
            yield None
            return
        step = self.data.step
        if (
            not isinstance(own, Sym)
            and not (size == own and size <= step)
            and not self.data.resizable
        ):
            if size % own:
                raise IrpruneError(
                    f"a calibration item of {size} samples for a model that takes {own} at a time",
                    "",
                    f"give multiples of {own}, or capture the model with a dynamic batch dimension",
                )
            step = own
        if size <= step:
            yield None
            return
        for at in range(0, size, step):
            yield slice(at, min(at + step, size))


def _nothing() -> IrpruneError:
    return IrpruneError(
        "the calibration data yield nothing",
        "",
        "give at least one input; an iterator that was read before is empty",
    )
