"""Calibration data: whatever the user has, as flat tensors in the order of the graph's inputs.

A source is an iterable of model inputs (a tensor, a tuple of arguments, a dict of keyword arguments
as Hugging Face tokenizers give, or those with labels behind them), one tensor of many samples, a
folder of ``.npy``, ``.npz`` and image files, or texts (``irprune.run.texts``). Everything is
checked against the graph's inputs when it is read, so that a wrong shape or a NaN is named by the
item it came from and not by an operator deep in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irprune.errors import IrpruneError, option
from irprune.ir.dtype import is_float, is_integer
from irprune.ir.graph import Graph, Value
from irprune.ir.size import Sym, probe_of, same
from irprune.ops.arrays import as_tensor, checksum
from irprune.ops.dtypes import TO_TORCH
from irprune.run.activations import Activations, activations
from irprune.run.images import Folder, Preprocess, combined
from irprune.run.inputs import drawn, index_limits
from irprune.run.interpret import evaluate
from irprune.run.pixels import plain_pixels
from irprune.run.ranks import current
from irprune.run.texts import has_texts, items_of

__all__ = ["ACTIVATIONS", "Batch", "Calibration", "noise", "split_rows"]

ACTIVATIONS = 1 << 29  # bytes of activations that run at once, of more than one sample


@dataclass(frozen=True)
class Batch:
    """``inputs`` are in the order of the graph's inputs; ``extra`` is what the item held beyond
    them (labels), for the loss."""

    inputs: tuple[torch.Tensor, ...]
    extra: tuple[Any, ...] = ()
    rows: slice | None = None  # which rows of the item this is, where it was cut into pieces
    number: int = 0  # of the chunk, counted over all of the data

    @property
    def size(self) -> int:
        """The number of samples: the first dimension of the first input."""
        return int(self.inputs[0].shape[0]) if self.inputs and self.inputs[0].dim() else 1


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
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.graph = graph
        self.samples = samples
        self.batch = batch
        self.derived = derived
        if isinstance(source, (str, Path)):
            source = Folder(source, combined(None, mean=mean, std=std))
        self.source: _Source = (
            source.source if isinstance(source, Calibration) else _Source(_opened(source, graph))
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
        read = item.read() if isinstance(item, _File) else item
        made = _flat(read, self.graph, f"calibration item {number}")
        if self.source.few is None and number == 0:  # the same on all ranks, whoever reads what
            own = _batch_size(self.graph)
            few = 1 if isinstance(own, Sym) else own
            self.source.few = made if few is None or made.size <= few else _rows(made, slice(few))
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
            if isinstance(item, _File):
                seen.update(f"{item.path.name} {item.path.stat().st_size}".encode())
                if number % self.ranks.size != self.ranks.rank:
                    continue
            made = self._flat(number, item)
            own[number] = made.size
            if self.ranks.size > 1 and not isinstance(item, _File):
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
                _rows(batch, slice(-starts[batch.number] % stride, None, stride))
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
        return min(self.batch, self.activations.fitting(ACTIVATIONS, derived=self.derived))

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
            self._free = _any_batch(self.graph, self.first_samples())
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
        made = item if self.rows is None else _rows(item, self.rows)
        return replace(made, number=self.number)


class _Pieces:
    """How items become chunks: in runs of at most ``batch`` samples, or of as many as the graph was
    captured with where it takes no other number; ``done`` when there are ``samples``."""

    def __init__(self, data: Calibration) -> None:
        self.data, self.own = data, _batch_size(data.graph)
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


def split_rows(batch: Batch, count: int) -> list[Batch]:
    """``batch`` in pieces of at most ``count`` samples."""
    starts = range(0, max(1, batch.size), count)
    return [_rows(batch, slice(at, min(at + count, batch.size))) for at in starts]


def noise(
    graph: Graph,
    samples: int = 256,
    *,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
    batch: int = 64,
) -> Calibration:
    """Inputs drawn at random, for repair without data: uniform in ``low .. high`` where both are
    given, else normal.

    Integer inputs that index a table are drawn below its size; other integers are 0 or 1 (masks).
    Dynamic sizes other than the first dimension are as large as the capture's example. The same
    seed gives the same inputs."""
    below = index_limits(graph)
    limits = [probe_of(below[v]) if v in below else None for v in graph.inputs]
    within = None if low is None or high is None else (low, high)
    example = [
        tuple(_example_size(graph, i, d) for d in range(v.rank)) for i, v in enumerate(graph.inputs)
    ]
    own = _batch_size(graph)

    def items() -> Iterator[Any]:
        generator = np.random.default_rng(seed)
        step = 1 if own is None else batch
        for at in range(0, samples, step):
            n = min(step, samples - at)
            if own is not None and not isinstance(own, Sym):
                n = -(-n // own) * own
            made = [
                as_tensor(
                    drawn(
                        generator,
                        (n, *shape[1:]) if own is not None and shape else shape,
                        v.dtype,
                        limit,
                        within,
                    )
                )
                for v, shape, limit in zip(graph.inputs, example, limits, strict=True)
            ]
            yield tuple(made)

    return Calibration(_Stream(items), graph, batch=batch)


def _nothing() -> IrpruneError:
    return IrpruneError(
        "the calibration data yield nothing",
        "",
        "give at least one input; an iterator that was read before is empty",
    )


class _Stream:
    """An iterable that starts over each time; its items are flat tensors already."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


# -- sources ---------------------------------------------------------------------------------------


def _opened(source: Any, graph: Graph) -> Callable[[], Iterator[Any]]:
    """A function that starts reading ``source`` from its beginning."""
    if callable(source) and not isinstance(source, Iterable):
        return source  # type: ignore[no-any-return]
    if isinstance(source, Folder):
        return _folder(source, graph)
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return lambda: iter([source])
    if isinstance(source, Mapping):
        return lambda: iter([source])
    if not isinstance(source, Iterable):
        raise IrpruneError(
            f"calibration is a {type(source).__name__}",
            "",
            "give an iterable of inputs, a tensor, or a folder of .npy, .npz or image files",
        )
    if iter(source) is source:  # can be read once
        kept = list(source)
        return lambda: iter(kept)
    return lambda: iter(source)


@dataclass(frozen=True)
class _File:
    """An item that is read when it is wanted."""

    path: Path
    folder: Folder
    graph: Graph

    def read(self) -> Any:
        """Its arrays, or its pixels as the model takes them."""
        suffix = self.path.suffix.lower()
        try:
            if suffix == ".npy":
                return np.load(self.path, allow_pickle=False)
            if suffix == ".npz":
                with np.load(self.path, allow_pickle=False) as held:
                    return {k: held[k] for k in held.files}
            size, last = _picture_size(self.graph, str(self.path))
            how = _preprocess(self.folder, self.graph, self.path)
            made = self.folder.picture(self.path, how, size)
            return made.transpose(0, 2, 3, 1) if last else made
        except (ValueError, OSError, EOFError) as error:
            raise IrpruneError(
                f"cannot be read: {error}",
                str(self.path),
                "save arrays with numpy.save or numpy.savez",
            ) from error


def _folder(folder: Folder, graph: Graph) -> Callable[[], Iterator[Any]]:
    """The files of a folder, one by one; texts as rows of token numbers."""
    if has_texts(folder.path):
        if id(graph) not in folder.tokens:
            folder.tokens[id(graph)] = items_of(folder.path, graph)
        items = folder.tokens[id(graph)]
        return lambda: iter(items)
    return lambda: iter([_File(file, folder, graph) for file in folder.files])


def _preprocess(folder: Folder, graph: Graph, file: Path) -> Preprocess:
    """What was said, else what the model's own first layers make plain. Raises IrpruneError where
    neither tells."""
    if folder.preprocess is not None:
        return folder.preprocess
    pixels = plain_pixels(graph)
    if pixels is None:
        raise IrpruneError(
            "images, and nothing says how this model takes them",
            str(file),
            "say preprocess= (--preprocess imagenet, timm:NAME, hf:FOLDER, file.py:function) or "
            "mean=, std=, pixels= (--mean, --std, --pixels 0..1)",
        )
    folder.preprocess = Preprocess(pixels=pixels)
    return folder.preprocess


def _picture_size(graph: Graph, where: str) -> tuple[tuple[int, int, int], bool]:
    """Channels, height and width of the only input, and whether channels come last there. Raises
    IrpruneError for a model that takes no pictures."""
    value = graph.inputs[0]
    sizes = [_known_size(graph, d) for d in range(value.rank)]
    if len(graph.inputs) != 1 or value.rank != 4:
        raise IrpruneError(
            "images fit a model with one input [batch, channels, height, width]",
            where,
            "save the inputs as .npz",
        )
    last = sizes[1] not in (1, 3, 4) and sizes[3] in (1, 3, 4)
    _, channels, height, width = [sizes[d] for d in ((0, 3, 1, 2) if last else (0, 1, 2, 3))]
    if channels is None or height is None or width is None:
        raise IrpruneError(
            f"the size of images for {value.name!r} is open", where, "say --input 1x3x224x224"
        )
    return (channels, height, width), last


def _known_size(graph: Graph, d: int) -> int | None:
    """Dimension ``d`` of the first input: its own, the example's, or what the user gave."""
    size = graph.inputs[0].shape[d]
    if not isinstance(size, Sym):
        return int(size)
    if size.name in graph.sizes:
        return graph.sizes[size.name]
    shapes = graph.source.example_shapes() if graph.source is not None else None
    return None if shapes is None else shapes[0][d]


# -- items -----------------------------------------------------------------------------------------


def _flat(item: Any, graph: Graph, where: str) -> Batch:
    """An item as the graph's inputs, each checked."""
    tensors, extra = _matched(item, graph, where)
    return Batch(
        tuple(_checked(t, v, where) for t, v in zip(tensors, graph.inputs, strict=True)), extra
    )


def _matched(item: Any, graph: Graph, where: str) -> tuple[list[Any], tuple[Any, ...]]:
    """The item's tensors in the order of the graph's inputs, and what is left over. An attention
    mask that is not given is ones."""
    names = [v.name for v in graph.inputs]
    if isinstance(item, Batch):
        return list(item.inputs), item.extra
    if isinstance(item, Mapping) or (hasattr(item, "keys") and hasattr(item, "__getitem__")):
        given = {str(k): item[k] for k in item.keys()}  # noqa: SIM118 - BatchEncoding iterates otherwise
        _mask_tokens(given, graph)
        if all(n in given for n in names):
            return [given[n] for n in names], _left(given, names)
        return _called(given, graph, where)
    if isinstance(item, (torch.Tensor, np.ndarray)):
        item = (item,)
    if not isinstance(item, Sequence) or isinstance(item, (str, bytes)):
        raise IrpruneError(
            f"a {type(item).__name__} is no model input",
            where,
            "give tensors, tuples of arguments or dicts of keyword arguments",
        )
    args = tuple(item)
    tokens_alone = len(args) == 1 and len(names) == 2 and _masked_tokens(graph) is not None
    if tokens_alone and isinstance(args[0], (torch.Tensor, np.ndarray)):
        return [args[0], _all_ones(args[0])], ()
    if len(args) == len(names) or (
        all(isinstance(a, (torch.Tensor, np.ndarray)) for a in args[: len(names)])
        and len(args) > len(names)
    ):
        return list(args[: len(names)]), args[len(names) :]
    bound = graph.source.bind_args(args) if graph.source is not None else None
    if bound is not None:
        return bound
    raise IrpruneError(
        f"{len(args)} arguments for a model that takes {len(names)} tensors ({', '.join(names)})",
        where,
        "give the arguments of forward in their order, or a dict by their names",
    )


def _masked_tokens(graph: Graph) -> tuple[Value, Value] | None:
    """The first input and the second where these are numbers of tokens and their attention mask, as
    long as they are."""
    if len(graph.inputs) < 2:
        return None
    tokens, mask = graph.inputs[:2]
    fits = tokens.rank == mask.rank == 2 and same(tokens.shape[1], mask.shape[1])
    whole = is_integer(tokens.dtype) and not is_float(mask.dtype)
    return (tokens, mask) if "attention_mask" in mask.name and fits and whole else None


def _mask_tokens(given: dict[str, Any], graph: Graph) -> None:
    """Puts a mask of ones beside tokens that are given without one, as transformers does itself."""
    masked = _masked_tokens(graph)
    if masked is None or any("attention_mask" in name for name in given):
        return
    for tokens, mask in ((masked[0].name, masked[1].name), ("input_ids", "attention_mask")):
        if isinstance(given.get(tokens), (torch.Tensor, np.ndarray)):
            given[mask] = _all_ones(given[tokens])
            return


def _all_ones(tokens: Any) -> torch.Tensor:
    return torch.ones(tuple(tokens.shape), dtype=torch.int64)


def _left(given: Mapping[str, Any], used: Iterable[str]) -> tuple[Any, ...]:
    """Labels and the like, as one dict behind the inputs."""
    rest = {k: v for k, v in given.items() if k not in set(used)}
    return (rest,) if rest else ()


def _called(
    given: Mapping[str, Any], graph: Graph, where: str
) -> tuple[list[Any], tuple[Any, ...]]:
    """Keyword arguments put into the places of the recorded call, however that one passed them."""
    bound = graph.source.bind_names(given, where) if graph.source is not None else None
    if bound is None:
        missing = [v.name for v in graph.inputs if v.name not in given]
        raise IrpruneError(
            f"no value for input {missing[0]!r}; given: {', '.join(given)}",
            where,
            f"the inputs are {', '.join(v.name for v in graph.inputs)}",
        )
    return bound[0], _left(given, bound[1])


def _checked(x: Any, value: Value, where: str) -> torch.Tensor:
    """``x`` as a tensor of the value's type. Raises IrpruneError where it is none or does not
    fit."""
    if not isinstance(x, torch.Tensor):
        try:
            x = torch.as_tensor(np.asarray(x))
        except (TypeError, ValueError):
            raise IrpruneError(
                f"input {value.name!r} is a {type(x).__name__}, not a tensor", where
            ) from None
    want = TO_TORCH[value.dtype]
    x = x.detach()
    if want.is_floating_point != x.is_floating_point():
        raise IrpruneError(
            f"input {value.name!r} holds {x.dtype}, the model takes {want}",
            where,
            "convert (and scale) the data as for the model itself",
        )
    if x.dim() == value.rank - 1 and all(
        isinstance(s, Sym) or n == s for n, s in zip(x.shape, value.shape[1:], strict=True)
    ):
        x = x[None]  # one sample
    fits = x.dim() == value.rank and all(
        isinstance(s, Sym) or same(int(n), s)
        for n, s in zip(x.shape[1:], value.shape[1:], strict=True)
    )
    if not fits or not x.numel():
        shown = ", ".join(str(s) for s in value.shape)
        raise IrpruneError(
            f"input {value.name!r} has shape {list(x.shape)}, the model takes [{shown}]",
            where,
            "the first dimension may be any number of samples",
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise IrpruneError(
            f"input {value.name!r} holds NaN or infinity", where, "clean the calibration data"
        )
    made: torch.Tensor = x.to(want)
    return made


def _rows(made: Batch, rows: slice) -> Batch:
    own = made.size

    def cut(x: Any) -> Any:
        if isinstance(x, (torch.Tensor, np.ndarray)) and x.ndim and x.shape[0] == own:
            return x[rows]
        return {k: cut(v) for k, v in x.items()} if isinstance(x, dict) else x

    return Batch(
        tuple(cut(x) for x in made.inputs), tuple(cut(x) for x in made.extra), rows, made.number
    )


# -- the batch dimension ---------------------------------------------------------------------------


def _batch_size(graph: Graph) -> Any:
    """The first dimension that all inputs share; None where they do not."""
    sizes = [v.shape[0] for v in graph.inputs if v.rank]
    if not sizes or len(sizes) != len(graph.inputs) or any(not same(s, sizes[0]) for s in sizes):
        return None
    return sizes[0]


def _any_batch(graph: Graph, first: Batch) -> bool:
    """Whether two samples at once give what each gives alone."""
    own = _batch_size(graph)
    if own is None:
        return False
    if isinstance(own, Sym):
        return True
    own = int(own)
    inputs = [x[torch.arange(own) % x.shape[0]] for x in first.inputs]
    turned = [x.roll(1, -1) if x.is_floating_point() else x for x in inputs]
    try:
        alone, other = evaluate(graph, inputs), evaluate(graph, turned)
        both = evaluate(graph, [torch.cat(pair) for pair in zip(inputs, turned, strict=True)])
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # a size is written down somewhere in the graph
    return all(
        a.dim() > 0
        and b.shape == (2 * a.shape[0], *a.shape[1:])
        and torch.allclose(torch.cat((a, o)).float(), b.float(), rtol=1e-3, atol=1e-4)
        for a, o, b in zip(alone, other, both, strict=True)
    )


def _example_size(graph: Graph, i: int, d: int) -> int:
    """A size for dimension ``d`` of input ``i``: the captured example's where the size is
    dynamic."""
    size = graph.inputs[i].shape[d]
    if not isinstance(size, Sym):
        return int(size)
    shapes = graph.source.example_shapes() if graph.source is not None else None
    return 8 if shapes is None else shapes[i][d]
