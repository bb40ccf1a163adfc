"""The graph: values, nodes and weights in single static assignment, with use-def kept by the
classes themselves.

Nothing here knows torch or onnx. A ``Weight`` is a handle: its array comes when ``load()`` is
called. ``Origin`` keeps what a node was in the dialect it came from, so that emitting changes only
what pruning changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from irprune.ir.dtype import is_half
from irprune.ir.guards import Fixed, Guard
from irprune.ir.size import Size, is_static

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from irprune.ir.axis import Axes, Axis
    from irprune.ir.selection import Selection
    from irprune.ir.source import Source

__all__ = ["Graph", "GraphError", "Node", "Origin", "Rotated", "TensorType", "Value", "Weight"]


class GraphError(Exception):
    """An edit that would leave the graph broken, or a graph found broken."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type (``f32``, ``bf16``, ``i64``, ``bool`` ...) and shape; ``shape`` is None where
    the rank is unknown."""

    dtype: str
    shape: tuple[Size, ...] | None

    def __str__(self) -> str:
        inside = "?" if self.shape is None else ", ".join(str(s) for s in self.shape)
        return f"{self.dtype}[{inside}]"

    @property
    def rank(self) -> int:
        return len(self.known)

    @property
    def known(self) -> tuple[Size, ...]:
        """The shape; raises GraphError where the rank is unknown."""
        if self.shape is None:
            raise GraphError("a value of unknown rank has no shape")
        return self.shape

    @property
    def static(self) -> bool:
        return self.shape is not None and is_static(self.shape)


class Value:
    """One tensor: a graph input, a node's output or (``Weight``) a stored array."""

    __slots__ = ("axes", "index", "name", "producer", "type", "users")

    def __init__(
        self, name: str, type: TensorType, producer: Node | None = None, index: int = 0
    ) -> None:
        self.name = name
        self.type = type
        self.producer = producer
        self.index = index  # position among the producer's outputs
        self.users: dict[Node, int] = {}  # node -> number of operand slots that read this value
        self.axes: tuple[Axis, ...] | None = None  # one per dimension, set by infer-axes

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.type.known

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def rank(self) -> int:
        return len(self.type.known)

    def replace_all_uses(self, other: Value) -> None:
        """Let every node that reads this value read ``other``; graph outputs are the graph's to
        change."""
        for node in list(self.users):
            for i, operand in enumerate(node.inputs):
                if operand is self:
                    node.set_input(i, other)


class Weight(Value):
    """A stored array. ``load()`` returns it (a torch tensor or a numpy array, as the capture had
    it); nothing is cached here.

    ``kind`` is ``parameter``, ``buffer`` or ``constant``; ``aliases`` are the other names under
    which the same storage is known."""

    __slots__ = ("aliases", "kind", "load", "trainable")

    def __init__(
        self,
        name: str,
        type: TensorType,
        load: Callable[[], Any],
        kind: str = "parameter",
        aliases: tuple[str, ...] = (),
        trainable: bool = False,
    ) -> None:
        super().__init__(name, type)
        self.load = load
        self.kind = kind
        self.aliases = aliases
        self.trainable = trainable


@dataclass(slots=True)
class Origin:
    """What a node was before capture.

    ``target`` is the ATen overload (``aten.conv2d.default``) or the ONNX operator (``Conv``,
    ``com.microsoft::Gelu``); ``layout`` says for each tensor argument of the ATen schema which
    operands fill it; ``scope`` is the module path and ``source`` the user's ``file:line``; ``raw``
    is what the front end alone keeps of it, such as its place in the file."""

    dialect: str = "irprune"
    target: str = ""
    layout: tuple[tuple[str, int | tuple[int | None, ...] | None], ...] = ()
    scope: str = ""
    source: str = ""
    raw: object = None


@dataclass(frozen=True)
class Rotated:
    """A width in the basis of its principal components, those of most energy first.

    ``energy`` is the share of each of them in the mean square of what norms give; ``scales`` are
    the weights of these norms, 1 for every component."""

    energy: NDArray[np.float64]
    scales: tuple[str, ...]

    def factor(self, kept: Sequence[int] | NDArray[np.int64]) -> float:
        """What a norm over the ``kept`` components is to be multiplied by, so that they come out
        as large as out of the norm over all of them: the mean of the squares is over fewer."""
        left = float(self.energy[list(kept)].sum())
        return float((len(self.energy) * left / len(kept)) ** 0.5)


@dataclass(eq=False, slots=True)
class Node:
    """An operation: ``op`` names an entry of the operator table, or the dialect's own name where
    there is none."""

    op: str
    inputs: list[Value | None]
    attrs: dict[str, Any]
    outputs: list[Value] = field(default_factory=list)
    origin: Origin = field(default_factory=Origin)
    graph: Graph | None = None

    def __repr__(self) -> str:
        made, read = (
            ", ".join("%" + o.name for o in self.outputs),
            ", ".join("-" if i is None else "%" + i.name for i in self.inputs),
        )
        return f"{made} = {self.op}({read})"

    def operand(self, i: int) -> Value:
        """Operand ``i``, which must be there."""
        value = self.inputs[i] if i < len(self.inputs) else None
        if value is None:
            raise GraphError(f"{self!r} has no operand {i}")
        return value

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    @property
    def out(self) -> Value:
        return self.outputs[0]

    def set_input(self, i: int, value: Value | None) -> None:
        _drop_use(self.inputs[i], self)
        self.inputs[i] = value
        _add_use(value, self)

    def set_inputs(self, values: Iterable[Value | None]) -> None:
        for old in self.inputs:
            _drop_use(old, self)
        self.inputs = list(values)
        for new in self.inputs:
            _add_use(new, self)

    @property
    def where(self) -> str:
        """For messages: the user's line, else the module path, else the node's name."""
        return (
            self.origin.source
            or self.origin.scope
            or (self.outputs[0].name if self.outputs else self.op)
        )


def _add_use(value: Value | None, node: Node) -> None:
    if value is not None:
        value.users[node] = value.users.get(node, 0) + 1


def _drop_use(value: Value | None, node: Node) -> None:
    if value is not None:
        left = value.users[node] - 1
        if left:
            value.users[node] = left
        else:
            del value.users[node]


class Graph:
    """``inputs`` and ``outputs`` are values, ``nodes`` are in topological order, ``weights`` go by
    name.

    ``source`` is what the graph keeps of the model that it was read from; None for a graph that was
    made by hand or read from its text form."""

    # The text form, which knows all of the graph: set by ``irprune.ir``
    printer: ClassVar[Callable[[Graph], str]]

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.nodes: list[Node] = []
        self.weights: dict[str, Weight] = {}
        self.axes: Axes | None = None  # set by infer-axes
        # The groups that were found last, behind what they were found for (``groups_of``)
        self.grouped: tuple[object, list[Any]] | None = None
        self.scores: dict[
            Axis, NDArray[np.float64]
        ] = {}  # importance of each index of a free leaf, set by score
        self.drops: dict[Axis, float] = {}  # loss of a branch whose last layer sums over the leaf
        self.factorable: dict[Axis, str] = {}  # leaf of a rank -> weight, set by low-rank
        self.rotated: dict[Axis, Rotated] = {}  # widths that are in another basis
        self.low_rank: dict[str, int] = {}  # weight -> rank of the two layers that replace its one
        self.kept: Selection | None = None  # set by choose
        self.removed: dict[str, None] = {}  # names of weights that went with a whole branch
        self.skipped: dict[Axis, str] = {}  # free leaves that choose left whole, and why
        self.source: Source | None = None  # what the front end keeps of the model
        self.fixed: list[Fixed] = []  # sizes of inputs that the graph is right for alone
        self.guards: list[Guard] = []  # what must hold between the sizes that are open
        self.sizes: dict[str, int] = {}  # open sizes that the user gave: the example call's
        self.places: dict[str, tuple[int, int]] = {}  # of symbols in guards: input, dimension
        self.notes: list[str] = []  # what the capture wants the user told

    def add_input(self, name: str, type: TensorType) -> Value:
        value = Value(name, type)
        self.inputs.append(value)
        return value

    def add_weight(self, weight: Weight) -> Weight:
        if weight.name in self.weights:
            raise GraphError(f"two weights are called {weight.name!r}")
        self.weights[weight.name] = weight
        return weight

    def add(
        self,
        op: str,
        inputs: Iterable[Value | None],
        attrs: dict[str, Any] | None = None,
        types: Iterable[tuple[str, TensorType]] = (),
        origin: Origin | None = None,
        before: Node | None = None,
    ) -> Node:
        """Append a node (or put it ``before`` another); ``types`` gives name and type of each
        output."""
        node = Node(op, [], dict(attrs or {}), [], origin or Origin(), self)
        node.set_inputs(inputs)
        node.outputs = [Value(name, type, node, i) for i, (name, type) in enumerate(types)]
        if before is None:
            self.nodes.append(node)
        else:
            self.nodes.insert(self.nodes.index(before), node)
        return node

    def replace(self, old: Value, new: Value) -> None:
        """Let all readers of ``old``, the graph's outputs among them, read ``new``."""
        old.replace_all_uses(new)
        self.outputs = [new if v is old else v for v in self.outputs]

    def remove(self, node: Node) -> None:
        """Take ``node`` out; refused while a result of it is read or is a graph output."""
        for value in node.outputs:
            if value.users or any(value is out for out in self.outputs):
                raise GraphError(f"{node!r} is still used")
        node.set_inputs(())
        node.graph = None
        self.nodes.remove(node)

    def remove_all(self, dead: Iterable[Node]) -> None:
        """Take out nodes that only read each other, in one sweep over the node list."""
        gone = dict.fromkeys(dead)
        for node in gone:
            node.set_inputs(())
        outputs = {id(v) for v in self.outputs}
        for node in gone:
            for value in node.outputs:
                if value.users or id(value) in outputs:
                    raise GraphError(f"{node!r} is still used")
            node.graph = None
        self.nodes = [n for n in self.nodes if n not in gone]

    def copy(self) -> Graph:
        """A graph of its own nodes and values; weights' loaders, axes and what passes found are
        shared."""
        twin = Graph(self.name)
        new: dict[Value, Value] = {}
        for v in self.inputs:
            new[v] = twin.add_input(v.name, v.type)
        for w in self.weights.values():
            new[w] = twin.add_weight(Weight(w.name, w.type, w.load, w.kind, w.aliases, w.trainable))
        for n in self.nodes:
            read = [None if v is None else new[v] for v in n.inputs]
            made = twin.add(
                n.op, read, n.attrs, [(v.name, v.type) for v in n.outputs], replace(n.origin)
            )
            new.update(zip(n.outputs, made.outputs, strict=True))
        for old, fresh in new.items():
            fresh.axes = old.axes
        twin.outputs = [new[v] for v in self.outputs]
        twin.drops, twin.removed = self.drops, dict(self.removed)
        twin.factorable, twin.low_rank = self.factorable, self.low_rank
        twin.rotated = self.rotated
        twin.source, twin.notes = self.source, list(self.notes)
        twin.fixed, twin.guards = list(self.fixed), list(self.guards)
        twin.sizes, twin.places = dict(self.sizes), dict(self.places)
        twin.axes, twin.scores, twin.kept, twin.skipped = (
            self.axes,
            self.scores,
            self.kept,
            self.skipped,
        )
        return twin

    def values(self) -> Iterator[Value]:
        """Inputs, weights and results, in definition order."""
        yield from self.inputs
        yield from self.weights.values()
        for node in self.nodes:
            yield from node.outputs

    @property
    def has_half_floats(self) -> bool:
        """Whether a value is a float of 16 bits."""
        return any(is_half(v.dtype) for v in self.values())

    def __str__(self) -> str:
        return type(self).printer(self)
