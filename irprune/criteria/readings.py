"""What layers read over the calibration data: means, variances and Gram matrices.

They belong to a value, not to a layer: queries, keys and values that project the same activation
share one. Rows (samples and positions) are drawn before patches are unfolded, no more than a matrix
of that width needs. One run over the data serves as many layers as are asked for, and what fits
``memory`` is kept for the next one who asks; layers that are asked for in the order of the graph,
portion by portion, are served by one run as well (``irprune.run.walk``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from irprune.analysis.branches import block_ends
from irprune.base.memory import memory_asked, memory_share
from irprune.base.progress import tell
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph, Node
from irprune.ir.text import to_text
from irprune.ops.arrays import checksum
from irprune.ops.registry import quantised_in
from irprune.run.ranks import Several

if TYPE_CHECKING:
    import torch

    from irprune.analysis.layers import Layer
    from irprune.run.batch import Batch
    from irprune.run.calibration import Calibration
    from irprune.run.gram import Gram
    from irprune.run.walk import Walk

__all__ = ["WIDEST", "Reading", "Readings", "calibrated", "has_products", "key_of", "readings_of"]

WIDEST = 6144  # inputs beyond which there is no Gram matrix unless memory for it is asked for
ROWS = 32768  # for means and variances

Source = tuple[Any, ...]
K = TypeVar("K")


def rows_for(blocks: int, width: int) -> int:
    """How many rows the Gram matrices of ``blocks`` times ``width`` inputs are made of: three times
    the width, and more where they cost little."""
    return max(3 * width, 1024, min(8192, (1 << 21) // (blocks * width)))


def key_of(layer: Layer) -> str:
    return f"{layer.weight.name} at {layer.node.outputs[0].name}"


def source_of(layer: Layer) -> Source:
    """What layers that read the same rows have in common."""
    if layer.at in quantised_in(layer.node):  # what integers stand for, its node alone says
        return (layer.node.outputs[0].name,)
    return (layer.node.operand(layer.at).name, *layer.reads)


@dataclass
class _Rows:
    """The sums over one value's rows, and inverses made of them, by (ridge, centred)."""

    gram: Gram
    inverses: dict[tuple[float, bool], torch.Tensor] = field(default_factory=dict)


class Reading:
    """What ``layer`` read: the ``mean`` and ``variance`` of its inputs [b, k] in float64 and, where
    asked, their products."""

    def __init__(self, layer: Layer, rows: _Rows) -> None:
        self.layer, self._rows = layer, rows
        self.mean, self.variance = rows.gram.mean, rows.gram.variance
        self.products = rows.gram.products

    @property
    def weight(self) -> torch.Tensor:
        """[b, k, o] in float64, read afresh."""
        return self.layer.load_matrix()

    @property
    def square(self) -> torch.Tensor:
        """The mean square of each input [b, k]."""
        return self.variance + self.mean.square()

    @property
    def peak(self) -> torch.Tensor:
        """The highest square of each input [b, k]; of a product of matrices over all rows."""
        peak: torch.Tensor = self._rows.gram.peak
        return peak

    @property
    def second_moment(self) -> torch.Tensor:
        """The mean products of the inputs [b, k, k], in the rows' precision."""
        return self._rows.gram.second_moment()

    @property
    def covariance(self) -> torch.Tensor:
        """Of the inputs [b, k, k], in the rows' precision."""
        return self._rows.gram.covariance()

    def energy(self) -> float:
        """The mean square of what the layer gives, without its bias, summed over outputs."""
        weight = self.weight
        spread = self.covariance.to(weight) @ weight
        return float((weight * spread).sum() + (self.mean[:, None] @ weight).square().sum())

    def inverse(self, ridge: float) -> torch.Tensor:
        """Of what a refit weighs errors by [b, k, k]: the covariance where a bias says what is
        constant, else the second moment, with ``ridge`` times its mean diagonal added. In float32,
        for float64 rows and small ridges in float64. Never changed in place."""
        import torch

        from irprune.run.gram import signal

        centred = self.layer.bias is not None
        held = self._rows.inverses
        if (ridge, centred) not in held:
            gram = self._rows.gram
            products = gram.covariance() if centred else gram.second_moment()
            exact = ridge < 1e-4 or products.dtype == torch.float64
            level = ridge * signal(gram, centred)[:, None]
            made = None if exact else _inverted(products, level)
            if made is None:
                found = _inverted(products.double(), level)
                assert found is not None, "positive definite in float64"
                made = found if exact else found.float()
            held[ridge, centred] = made
        return held[ridge, centred]


def _inverted(products: torch.Tensor, level: torch.Tensor) -> torch.Tensor | None:
    """The inverse of ``products`` [b, k, k] with ``level`` [b, 1] on their diagonal; None where
    rounding has made one indefinite."""
    import torch

    products = products.clone()
    products.diagonal(dim1=1, dim2=2).add_(level.to(products.dtype))
    lower, failed = torch.linalg.cholesky_ex(products)
    if bool(failed.any()):
        return None
    made = torch.cholesky_inverse(lower)
    return made if bool(torch.isfinite(made).all()) else None


class Readings:
    """The readings of ``graph``'s layers on ``data``; may stand for ``data`` where criteria take
    calibration data, so that several share them.

    Args:
        graph: The analysed graph.
        data: What its layers are to read.
        memory: Bytes of Gram matrices that are held at a time.
        judged: Samples that are left out of ``data``, to judge by what was fitted to it; ``data``
            itself where it is None.
        complete: Read every row of the data, and layers of any width: for refits that rest on no
            other statistics. Else no more rows than a matrix of its width needs, of layers up to
            ``WIDEST`` inputs.
    """

    def __init__(
        self,
        graph: Graph,
        data: Calibration,
        memory: int | None = None,
        judged: Calibration | None = None,
        complete: bool = False,
    ) -> None:
        self.graph, self.data = graph, data
        self.judged = data if judged is None else judged
        self.complete = complete
        self.memory = memory_share() if memory is None else memory
        self._held: dict[tuple[Source, bool], _Rows] = {}
        self._walk: Walk | None = None
        self._more = False  # whether layers further on are to be asked for
        self.among = 0  # the distance of samples that are left out of them

    def hold_out(self, samples: int) -> int:
        """Leave about ``samples`` of the data, and no more than a fourth, out of what is read from
        now on, so that what is fitted to the readings can be tried on others.

        Returns:
            About their number; 0 where there are too few data for it.
        """
        count = self.data.count()
        held = min(samples, count // 4)
        among = count // held if held else 0
        if not self.data.resizable:  # whole calls are left out
            among *= max(self.data.sizes(), default=1)
        if among != self.among:
            self.among, self._held = among, {}
            self._walk = None
        return held

    def of(self, layers: Sequence[Layer], *, products: bool) -> dict[str, Reading]:
        """By ``key_of``. Raises IrpruneError where activations are NaN or infinite."""
        wanted = {layer.node: layer for layer in layers}
        keys = {n: (source_of(x), products and self._multiplies(x)) for n, x in wanted.items()}
        firsts: dict[tuple[Source, bool], Layer] = {}
        for node, layer in wanted.items():
            if keys[node] not in self._held:
                firsts.setdefault(keys[node], layer)
        self._make_room({keys[n]: layer for n, layer in wanted.items()})
        if firsts:
            self._held |= self._gathered(firsts)
        return {key_of(x): Reading(x, self._held[keys[n]]) for n, x in wanted.items()}

    def _make_room(self, wanted: Mapping[tuple[Source, bool], Layer]) -> None:
        """Forget what does not fit beside the matrices of ``wanted`` and their inverses: inverses
        first, then what was read last, since layers are asked for from the first on. It goes by
        what every rank holds, not by the inverses that this one has made."""
        room = self.memory - sum(_size(layer) for (_, some), layer in wanted.items() if some)
        others = {k: rows for k, rows in self._held.items() if k not in wanted}
        held = sum(rows.gram.bytes for rows in others.values())
        if 2 * held <= room:
            return
        for rows in others.values():
            rows.inverses.clear()
        for key in reversed(others):
            if held <= room:
                break
            held -= self._held.pop(key).gram.bytes
            if self._walk is not None and self._walk.files is not None:
                self._walk.files.forget()

    def _multiplies(self, layer: Layer) -> bool:
        """Whether the products of what ``layer`` reads are wanted at all."""
        return self.complete or has_products(layer)

    def portions(
        self, layers: Mapping[K, Sequence[Layer]], memory: int | None = None
    ) -> Iterator[list[K]]:
        """The keys of ``layers`` in runs whose Gram matrices and inverses fit ``memory``, None for
        that of these readings; one that does not stands by itself."""
        memory = self.memory if memory is None else memory
        some: list[K] = []
        held: dict[Source, int] = {}
        for key, many in layers.items():
            mine = {source_of(x): _size(x) for x in many if self._multiplies(x)}
            if some and sum((held | mine).values()) > memory:
                self._more = True
                yield some
                some, held = [], {}
            some.append(key)
            held |= mine
        self._more = False
        if some:
            yield some

    def _about(self) -> tuple[str, ...]:
        """What tells what is read from what other readings read."""
        first = [checksum(t) for t in self.data.first_samples().inputs]
        how = self.data.sizes(), self.among, self.complete, first
        return to_text(self.graph), repr(how)

    def _gathered(
        self, firsts: Mapping[tuple[Source, bool], Layer]
    ) -> dict[tuple[Source, bool], _Rows]:
        """The sums over the rows of each of ``firsts``, from one run over the data of all ranks;
        without the samples that are held out."""
        from irprune.run.gram import Gram
        from irprune.run.kept_files import kept_files
        from irprune.run.walk import Walk

        if self._walk is None:
            files = kept_files("readings", self._about)
            ends = () if files is None else block_ends(self.graph)
            rest = partial(
                _rest, self.data, self.among
            )  # not ours: sums are freed with the last of us
            self._walk = Walk(self.graph, self.data, self.memory, rest, files, ends)
        files = self._walk.files
        made: dict[tuple[Source, bool], _Rows] = {}
        by_node: dict[Node, dict[tuple[Source, bool], Layer]] = {}
        for key, layer in firsts.items():
            known = None if files is None else files.get(repr(key))
            if known is not None:
                made[key] = _Rows(Gram.of_state(known))
            else:
                by_node.setdefault(layer.node, {})[key] = layer
        parts = list(self._walk.parts(list(by_node)))
        for number, nodes in enumerate(parts, 1):
            some = {key: layer for n in nodes for key, layer in by_node[n].items()}
            last = number == len(parts) and not self._more
            sums = _summed(self._walk, self.data, some, last, self.complete)
            if files is not None:
                for key, rows in sums.items():
                    files.put(repr(key), rows.gram.state())
                self._walk.arrived()
            made |= sums
        return {key: made[key] for key in firsts}


def _rest(data: Calibration, among: int, batch: Batch) -> Batch | None:
    """What of a chunk is read: all but what is held out."""
    return data.rest(batch, among) if among else batch


def has_products(layer: Layer) -> bool:
    """Whether there is a Gram matrix of what ``layer`` reads: it is not wider than ``WIDEST``, or
    fits the memory that was asked for."""
    asked = memory_asked()
    return layer.blocks[1] <= WIDEST or (asked is not None and _size(layer) <= asked)


def _size(layer: Layer) -> int:
    """Bytes of the Gram matrix of what ``layer`` reads, and of its inverse."""
    b, k, _ = layer.blocks
    return 8 * b * k * k


def _summed(
    walk: Walk,
    data: Calibration,
    firsts: Mapping[tuple[Source, bool], Layer],
    last: bool,
    complete: bool,
) -> dict[tuple[Source, bool], _Rows]:
    """The sums over the rows of each of ``firsts``, whose nodes lie in one part of the ``walk``;
    of all rows where ``complete``."""
    from irprune.run.gram import Gram, sampled_rows

    stops: dict[Node, list[tuple[Layer, int, int, int]]] = {}
    for i, (key, layer) in enumerate(firsts.items()):
        b, k, o = layer.blocks
        limit = rows_for(b, k) if key[1] else ROWS
        stops.setdefault(layer.node, []).append((layer, i, b * o, limit))
    samples, chunks = data.count(), data.chunk_count()

    def watch(grams: Several[Gram], number: int, size: int) -> Any:
        tell("reading what layers see", number, chunks)

        def hook(node: Node, operands: list[Any], run: Any) -> Any:
            made = run(*operands)
            for layer, i, outs, limit in stops.get(node, ()):
                share = max(1, -(-limit * size // samples))
                at = None
                if not complete:
                    at = sampled_rows(made.numel() // outs, share, number)
                _add(grams[i], layer.input_rows(operands, at), node.where)
                if at is not None and not layer.unfolds:
                    grams[i].saw(layer.input_rows(operands).cpu())
            return made

        return hook

    grams = walk.total(
        list(stops), lambda: Several(Gram(products=some) for _, some in firsts), watch, last
    )
    return {key: _Rows(gram) for key, gram in zip(firsts, grams, strict=True)}


def _add(gram: Gram, x: torch.Tensor, where: str) -> None:
    import torch

    gram.add(x.transpose(0, 1).cpu())
    if not bool(torch.isfinite(gram.mean).all() and torch.isfinite(gram.variance).all()):
        raise IrpruneError(
            "activations are NaN or infinite on the calibration data",
            where,
            "check the model and the data",
        )


def calibrated(
    source: Any, graph: Graph, criterion: str, batch: int = 64, derived: bool = False
) -> Calibration:
    """``source`` as calibration data for ``graph``, in chunks of ``batch`` samples, fewer where
    memory asks for it (``derived``: where derivatives are taken). Raises IrpruneError where there
    is none."""
    if source is None:
        raise IrpruneError(
            f"criterion {criterion!r} needs calibration data",
            "importance",
            "give calibration=: an iterable of inputs, a tensor, or a folder of .npy, .npz or image files",
        )
    from irprune.run.calibration import Calibration

    data = source.data if isinstance(source, Readings) else source
    if isinstance(source, Readings) and (data.batch, data.derived) == (batch, derived):
        return data
    return Calibration(
        data,
        graph,
        samples=data.samples if isinstance(data, Calibration) else None,
        batch=batch,
        derived=derived,
    )


def readings_of(source: Any, graph: Graph, criterion: str) -> Readings:
    """``source`` itself where it is readings of ``graph``, else new ones of it as calibration data.
    Raises IrpruneError where there is none."""
    if isinstance(source, Readings) and source.graph is graph:
        return source
    return Readings(graph, calibrated(source, graph, criterion))
