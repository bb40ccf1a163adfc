"""Statistics of activations: the original and the pruned graph run side by side over calibration
data, layer by layer.

A repair changes a layer and the next one must see the change, so the walk stops at each layer of
interest, hands out what that layer reads in the pruned model and what it gave in the original, and
goes on with the new weights. Between stops each chunk of samples keeps only the values that are
still needed; beyond ``memory`` bytes they wait in temporary files, so that memory does not grow
with the number of samples while every node runs once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from irprune.errors import IrpruneError
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.selection import Selection
from irprune.ops.arrays import as_tensor
from irprune.ops.choice import guards
from irprune.run.calibration import Calibration
from irprune.run.interpret import Arithmetic, Hook, is_taken, symbols_of
from irprune.run.kept_files import kept_files, save
from irprune.run.ranks import Statistic
from irprune.run.spill import spill
from irprune.run.take import kept_indices, take
from irprune.run.total import is_mine, summed

__all__ = ["Moments", "Pair", "Shelf", "Stop", "Tape", "counterparts", "kept_part", "load_as"]

S = TypeVar("S", bound=Statistic)


def load_as(weight: Weight, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The weight's array on the CPU as ``dtype``."""
    return as_tensor(weight.load()).detach().cpu().to(dtype)


def store(weight: Weight, tensor: torch.Tensor) -> None:
    """Let ``weight`` load ``tensor`` from now on, as the kind of array and the element type that it
    had."""
    old = weight.load()
    if tuple(tensor.shape) != tuple(old.shape):
        raise ValueError(f"{weight.name} has shape {tuple(old.shape)}, not {tuple(tensor.shape)}")
    if isinstance(old, torch.Tensor):
        # A copy each time: an emitted module owns what it loads, and may be trained
        weight.load = spill(tensor.to(device=old.device, dtype=old.dtype).contiguous())
    else:
        array = tensor.cpu().numpy().astype(old.dtype)
        weight.load = lambda: array


class Moments:
    """Mean and variance in float64 over rows that come chunk by chunk (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self._scatter: Any = 0.0

    def add(self, x: torch.Tensor) -> None:
        """Rows [..., n, features]."""
        x = x.double().cpu()
        n, mean = x.shape[-2], x.mean(-2)
        shift, share = mean - self.mean, n / (self.count + n)
        self._scatter = (
            self._scatter
            + (x - mean[..., None, :]).square().sum(-2)
            + shift.square() * (self.count * share)
        )
        self.mean = self.mean + shift * share
        self.count += n

    def merged(self, other: Moments) -> Moments:
        """Of the rows of both."""
        if not self.count or not other.count:
            return self if self.count else other
        shift, share = other.mean - self.mean, other.count / (self.count + other.count)
        self._scatter = self._scatter + other._scatter + shift.square() * (self.count * share)
        self.mean = self.mean + shift * share
        self.count += other.count
        return self

    @property
    def variance(self) -> torch.Tensor:
        """Unbiased [..., features]."""
        scatter: torch.Tensor = self._scatter
        return scatter / max(self.count - 1, 1)


class Tape:
    """One graph run piece by piece: ``advance`` runs its nodes up to a position, in an environment
    of values by name.

    Half-precision models run in float32; everything else as it is.
    """

    def __init__(self, graph: Graph, device: torch.device | None = None) -> None:
        self.graph = graph
        self.device = device or torch.device("cpu")
        self.at = {node: i for i, node in enumerate(graph.nodes)}
        self.last: dict[Value, int] = {}
        for i, node in enumerate(graph.nodes):
            self.last.update((v, i) for v in node.inputs if v is not None)
        self._guarded = guards(graph.nodes, graph.outputs)
        self._weights: dict[Weight, torch.Tensor] = {}
        self._arithmetic = Arithmetic(self.device, torch.float32, halves_only=True)

    def start(self, inputs: Iterable[torch.Tensor]) -> dict[str, Any]:
        """The environment before the first node."""
        return {
            v.name: self._arithmetic.converted(t)
            for v, t in zip(self.graph.inputs, inputs, strict=True)
        }

    def forget(self) -> None:
        """Read weights afresh: one of them was replaced."""
        self._weights.clear()

    def read(self, env: dict[str, Any], v: Value | None) -> Any:
        """A value in ``env``, or a weight."""
        if v is None:
            return None
        if isinstance(v, Weight):
            if v not in self._weights:
                self._weights[v] = self._arithmetic.loaded(v)
            return self._weights[v]
        return env[v.name]

    def takes(self, node: Node, env: dict[str, Any]) -> bool:
        """Whether ``node`` runs: the branch of an If that it lies in, if any, is taken."""
        return is_taken(self._guarded.get(node, ()), partial(self.read, env))

    def advance(
        self,
        env: dict[str, Any],
        symbols: dict[str, int],
        start: int,
        stop: int,
        hook: Hook | None = None,
    ) -> None:
        """Run nodes ``start .. stop``; values that no later node and no output reads are dropped.
        ``hook(node, operands, run)`` may compute a node its own way."""
        outputs = {v.name for v in self.graph.outputs}
        with torch.no_grad():
            for i in range(start, stop):
                node = self.graph.nodes[i]
                many = [None] * len(node.outputs)
                if self.takes(node, env):
                    operands = [self.read(env, v) for v in node.inputs]
                    many = self._arithmetic.results(node, operands, symbols, hook)
                for v, t in zip(node.outputs, many, strict=False):
                    if v in self.last or v.name in outputs:
                        env[v.name] = t
                for used in node.inputs:
                    if used is not None and self.last.get(used) == i and used.name not in outputs:
                        env.pop(used.name, None)

    def symbols(self, inputs: Iterable[torch.Tensor]) -> dict[str, int]:
        return symbols_of(self.graph, list(inputs))


class Shelf:
    """Environments of chunks between two stops: in memory up to ``limit`` bytes, the others in
    temporary files."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: dict[int, Any] = {}
        self.bytes: dict[int, int] = {}
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, key: int, item: Any) -> None:
        size = sum(t.nbytes for env in item for t in _tensors(env))
        self.held.pop(key, None)
        self.bytes.pop(key, None)
        if sum(self.bytes.values()) + size <= self.limit:
            self.held[key], self.bytes[key] = item, size
            return
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="irprune-")
        save(item, Path(self.folder.name) / f"{key}.pt")

    def get(self, key: int) -> Any:
        if key in self.held:
            return self.held[key]
        assert self.folder is not None
        # Our own file, written above
        return torch.load(Path(self.folder.name) / f"{key}.pt", weights_only=False)

    def close(self) -> None:
        if self.folder is not None:
            self.folder.cleanup()


def _tensors(env: dict[str, Any]) -> Iterator[torch.Tensor]:
    for v in env.values():
        if isinstance(v, torch.Tensor):
            yield v


def counterparts(original: Graph) -> dict[str, Node]:
    """Nodes of the original by the name of their first result, which a copy keeps."""
    return {node.outputs[0].name: node for node in original.nodes if node.outputs}


def kept_part(tensor: torch.Tensor, value: Value, kept: Selection) -> torch.Tensor:
    """What of the original's ``value`` the pruned model still has."""
    part: torch.Tensor = take(tensor, kept_indices(value, kept))
    return part


def _finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite: NaN is the least and the greatest of any numbers."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


@dataclass(frozen=True)
class Stop:
    """Where the walk of a pair of graphs stands with a chunk of data.

    ``number`` is that of the chunk and ``size`` its number of samples. ``operands`` are those of
    the node in the cut graph, ``target`` the kept part of what the original's node gave (None where
    it has no counterpart). For a value beside it, ``short`` is by how much that falls short of the
    kept part of the original's."""

    number: int
    size: int
    operands: list[Any]
    target: Any
    short: Any

    def __iter__(self) -> Iterator[Any]:
        """Operands, target and what falls short."""
        return iter((self.operands, self.target, self.short))


class Pair:
    """The original and the cut graph walked together over ``calibration``; a context manager.

    ``to(node)`` runs both up to ``node`` of the cut graph and yields what they give there, chunk by
    chunk of this rank; ``total`` adds that up over all ranks. Nodes must come in the order of the
    graph. Where the run is kept, so is what chunks need at the first stop behind each of ``ends``,
    numbers of nodes of the original, and ``total`` goes on from the last of them. Raises
    IrpruneError where activations are NaN, or where the original's axes or choice are missing."""

    def __init__(
        self,
        original: Graph,
        cut: Graph,
        calibration: Calibration,
        *,
        kept: Selection | None = None,
        memory: int = 1 << 30,
        device: torch.device | None = None,
        ends: Collection[int] = (),
    ) -> None:
        choice = kept if kept is not None else original.kept
        if choice is None or original.axes is None:
            raise IrpruneError(
                "repair needs the original graph with its axes and its choice",
                "",
                "run choose on it, and slice on a copy",
            )
        self.original, self.cut, self.kept, self.calibration = original, cut, choice, calibration
        self.tapes = (Tape(original, device), Tape(cut, device))
        self.twins = counterparts(original)
        self._known = {v.name: v for v in original.values()}
        self._shelf = Shelf(memory)
        self._done: tuple[int, ...] = (0, 0)
        # By the number of the chunk; each graph learns its own
        self._symbols: dict[int, tuple[dict[str, int], dict[str, int]]] = {}
        self._begun = False
        self._ends = sorted(ends)
        self._kept_at = 0  # the number of the original's node where chunks were kept last
        self.files = kept_files("pair", lambda: (repr(calibration.sizes()),), of_step=True)

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shelf.close()

    def twin(self, node: Node) -> Node | None:
        """The original's node that ``node`` of the cut graph was copied from."""
        found = self.twins.get(node.outputs[0].name)
        return found if found is not None and found.op == node.op else None

    def alive(self, value: Value, node: Node) -> bool:
        """Whether both graphs have ``value`` and have computed it before ``node``."""
        made = value.producer
        if value.name not in self._known or isinstance(value, Weight):
            return False
        if made is None:
            return True
        twin = self.twin(made)
        return (
            twin is not None
            and self.tapes[1].at[made] < self.tapes[1].at[node]
            and twin.op == made.op
        )

    def total(
        self,
        node: Node,
        new: Callable[[], S],
        add: Callable[[S, Stop], None],
        beside: Value | None = None,
    ) -> S:
        """What the stops at ``node`` add up to, over the chunks of all ranks; in the order of
        ``irprune.run.total``."""
        if not self._begun and self.files is not None:
            self._done = self.files.latest(self._mine(), self._goal(node)) or self._done
            self._kept_at = self._done[0]
        made = summed(
            self.calibration.ranks,
            self.calibration.chunk_count(),
            ((stop.number, stop) for stop in self.to(node, beside)),
            new,
            lambda statistic, number, stop: add(statistic, stop),
        )
        if self._keeps(self._done):
            assert self.files is not None
            self.files.arrived(self._done, self._mine())
            self._kept_at = self._done[0]
        return made

    def _keeps(self, place: tuple[int, ...]) -> bool:
        """Whether chunks are kept at a place: an end lies between it and the last one."""
        return self.files is not None and any(self._kept_at < e <= place[0] for e in self._ends)

    def _mine(self) -> list[int]:
        """The numbers of the chunks of this rank."""
        data = self.calibration
        count = data.chunk_count()
        return list(filter(is_mine(data.ranks, count), range(count)))

    def _goal(self, node: Node) -> tuple[int, int]:
        """How far the graphs have run at a stop at ``node``."""
        twin, (before, after) = self.twin(node), self.tapes
        return before.at[twin] + 1 if twin is not None else self._done[0], after.at[node]

    def to(self, node: Node, beside: Value | None = None) -> Iterator[Stop]:
        """A stop at ``node`` for each chunk of this rank that runs it; ``beside`` is a value of the
        cut graph that is alive."""
        twin = self.twin(node)
        before, after = self.tapes
        goal = self._goal(node)
        if goal[0] < self._done[0] or goal[1] < self._done[1]:
            raise ValueError(f"{node!r} lies behind the walk")
        after.forget()
        sizes, keeps = self.calibration.sizes(), self._keeps(goal)
        for key, symbols, old, new in self._chunks():
            before.advance(old, symbols[0], self._done[0], goal[0])
            after.advance(new, symbols[1], self._done[1], goal[1])
            if after.takes(node, new):
                target = None if twin is None else self._target(old, twin)
                short = None if beside is None else self._short(old, new, beside)
                operands = [after.read(new, v) for v in node.inputs]
                yield Stop(key, sizes[key], operands, target, short)
            self._shelf.put(key, (old, new))
            if keeps and self.files is not None:
                told = {"symbols": symbols, "envs": (old, new)}
                self.files.put_chunk(goal, key, told)
        self._done = goal
        before.forget()

    def _target(self, env: dict[str, Any], twin: Node) -> torch.Tensor:
        """The kept part of what the original's node gives."""
        target = kept_part(env[twin.outputs[0].name], twin.outputs[0], self.kept)
        if not _finite(target):
            raise IrpruneError(
                "activations are NaN or infinite on the calibration data",
                twin.where,
                "check the model and the data",
            )
        return target

    def _short(self, old: dict[str, Any], new: dict[str, Any], beside: Value) -> Any:
        """By how much a value of the cut graph falls short of the original's kept part."""
        whole = kept_part(old[beside.name], self._known[beside.name], self.kept)
        return whole - new[beside.name]

    def _chunks(
        self,
    ) -> Iterator[
        tuple[int, tuple[dict[str, int], dict[str, int]], dict[str, Any], dict[str, Any]]
    ]:
        """Number, size symbols and environments of both graphs for each chunk of this rank."""
        if self._begun:
            for key, symbols in self._symbols.items():
                yield key, symbols, *self._shelf.get(key)
            return
        self._begun = True
        if self.files is not None and any(self._done):
            for key in self._mine():
                told = self.files.chunk(self._done, key)
                self._symbols[key] = told["symbols"]
                yield key, told["symbols"], *told["envs"]
            return
        before, after = self.tapes
        data = self.calibration
        for batch in data.chunks(is_mine(data.ranks, data.chunk_count())):
            symbols = before.symbols(batch.inputs), after.symbols(batch.inputs)
            self._symbols[batch.number] = symbols
            yield batch.number, symbols, before.start(batch.inputs), after.start(batch.inputs)
