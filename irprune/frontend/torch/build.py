"""What both captures of a torch model share: ATen calls become nodes, tensors become values,
aliases are watched.

``Builder`` takes calls whose operands are graph values already. ``Aliases`` tells whether in-place
operators may be renamed to their functional twins, or whether another view of the storage would
miss the change."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from irprune.errors import IrpruneError
from irprune.frontend.torch.open_results import open_results
from irprune.frontend.torch.sizes import size_of
from irprune.ir.graph import Graph, Origin, TensorType, Value, Weight
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Sym
from irprune.ops.dtypes import FROM_TORCH, TO_TORCH
from irprune.ops.registry import spelling
from irprune.ops.torch.dispatched import CONVERT, EXPAND, canonical_target, functional, is_copy

__all__ = [
    "Aliases",
    "Builder",
    "CallSite",
    "decomposition",
    "decompositions",
    "innermost",
    "open_dataclasses",
    "type_of",
]

TORCH = str(Path(torch.__file__).parent) + "/"
LAYERS = TORCH + "nn/modules/"


def open_dataclasses(tree: Any) -> bool:
    """Let pytrees open the dataclasses in ``tree``, as ``torch.export.register_dataclass`` would;
    whether there were new ones."""
    found = False
    leaves = pytree.tree_leaves(tree)
    while leaves:
        fresh = {
            type(x): x
            for x in leaves
            if dataclasses.is_dataclass(x) and type(x) not in pytree.SUPPORTED_NODES
        }
        for kind in fresh:
            torch.export.register_dataclass(kind)
            found = True
        leaves = pytree.tree_leaves([x for x in leaves if type(x) in fresh])
    return found


# -- types -----------------------------------------------------------------------------------------


def type_of(t: torch.Tensor) -> TensorType:
    """Element type and shape. Raises IrpruneError for an element type that the graph does not
    know."""
    if t.dtype not in FROM_TORCH:
        raise IrpruneError(
            f"element type {t.dtype} is not supported",
            "",
            f"use one of {', '.join(FROM_TORCH.values())}",
        )
    return TensorType(FROM_TORCH[t.dtype], tuple(size_of(s) for s in t.shape))


def plain(x: Any) -> Any:
    """Attributes as plain data: torch's enumerations by name."""
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if isinstance(x, torch.dtype):
        return FROM_TORCH[x]
    if isinstance(x, (torch.device, torch.layout, torch.memory_format)):
        return str(x).removeprefix("torch.")
    if isinstance(x, torch.SymInt):
        return size_of(x)
    return x


# -- calls -----------------------------------------------------------------------------------------


@cache
def _schema(target: Any) -> tuple[tuple[str, bool, Any], ...]:
    """Name, whether it takes tensors, and default of each argument."""
    return tuple(
        (a.name, "Tensor" in str(a.type), a.default_value) for a in target._schema.arguments
    )


def innermost(frames: Sequence[tuple[str, int]]) -> str:
    """``file:line`` of the innermost frame outside torch, or of the innermost layer where all are
    torch's; ``frames`` run inwards."""
    # "<eval_with_key>": code that torch wrote
    user = [f for f in frames if not f[0].startswith((TORCH, "<"))]
    layers = [f for f in frames if f[0].startswith(LAYERS) and not f[0].endswith("/module.py")]
    best = (user or layers or list(frames))[-1:]
    return f"{best[0][0]}:{best[0][1]}" if best else ""


def decompositions(targets: Iterable[Any]) -> dict[Any, Any]:
    """What torch says the overloads consist of, for those where it says so."""
    wanted = list(targets)
    if not wanted:
        return {}
    table = torch.export.default_decompositions()
    return {t: table[t] for t in wanted if t in table}


@cache
def decomposition(target: Any) -> Any:
    """What torch says that ``target`` consists of, as a function of its arguments; None where the
    operator table knows it, where torch says nothing, and for what writes to its arguments."""
    if target._schema.is_mutable or spelling("aten", canonical_target(target)) is not None:
        return None
    return decompositions([target]).get(target)


@dataclass(frozen=True, slots=True)
class CallSite:
    """Where a call stands in the user's program: module path, that module's class, and
    ``file:line``."""

    scope: str = ""
    kind: str | None = None
    source: str = ""


# Captured as off, because fake tensors have no use for cuDNN; real ones have
_HINTS = {
    "cudnn_enable",
    "cudnn_enabled",
}


class Builder:
    """A graph under construction from ATen calls."""

    def __init__(self, name: str) -> None:
        self.graph = Graph(name)
        self.sizes: OpenSizes | None = None  # where sizes are open
        self._names: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """``name``, with a number where it is taken."""
        if name not in self._names:
            self._names[name] = 0
            return name
        while True:
            self._names[name] += 1
            fresh = f"{name}_{self._names[name]}"
            if fresh not in self._names:
                self._names[fresh] = 0
                return fresh

    def constant(self, tensor: torch.Tensor, name: str = "constant") -> Weight:
        """``tensor`` as a constant of the graph."""
        return self.graph.add_weight(
            Weight(self.unique(name), type_of(tensor), lambda: tensor, "constant")
        )

    def call(
        self,
        target: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        made: Any,
        name: str,
        place: CallSite,
    ) -> Any:
        """Append the call of the overload ``target``; returns its value, or a list of values where
        it makes several.

        Arguments are graph values, lists of them, sizes and plain data; ``made`` is what the call
        returned, as tensors or their types."""
        spelled = canonical_target(target)
        if is_copy(spelled) and isinstance(args[1], Value):
            written = args[0].type if isinstance(args[0], Value) else type_of(made)
            return self._copied(args[1], written, place)
        inputs: list[Value | None] = []
        attrs: dict[str, Any] = {}
        layout: list[tuple[str, int | tuple[int | None, ...] | None]] = []
        own = {a: i for i, (a, _, _) in enumerate(_schema(target))}
        schema = _schema(functional(target))  # its names may differ: dropout_(self), dropout(input)
        given = dict(zip((a for a, _, _ in schema), args, strict=False)) | {
            schema[own[k]][0]: v for k, v in kwargs.items()
        }
        spelled = canonical_target(target)
        entry = spelling("aten", spelled)
        rename = entry.aten[spelled] if entry is not None else {}
        for key, tensorial, default in schema:
            value = given.get(key, default)
            if not tensorial:
                attrs[rename.get(key, key)] = True if key in _HINTS else plain(value)
            elif isinstance(value, (int, float, bool, complex, Sym)):
                attrs[rename.get(key, key)] = value  # a number where the schema has a tensor
            elif isinstance(value, (list, tuple)):
                layout.append((key, tuple(self._operand(v, inputs) for v in value)))
            else:
                layout.append((key, self._operand(value, inputs)))
        while inputs and inputs[-1] is None:
            inputs.pop()
        layout = [(n, s) for n, s in layout if not (isinstance(s, int) and s >= len(inputs))]
        several = isinstance(made, (list, tuple))
        flat = list(made) if several else [made]
        types = [
            v
            if isinstance(v, TensorType)
            else type_of(v)
            if isinstance(v, torch.Tensor)
            else TensorType("none", ())
            for v in flat
        ]
        base = self.unique(name)
        named = [
            (base if len(flat) == 1 else self.unique(f"{base}_{i}"), t) for i, t in enumerate(types)
        ]
        origin = Origin("aten", spelled, tuple(layout), place.scope, place.source, place.kind)
        node = self.graph.add(
            entry.name if entry is not None else spelled, inputs, attrs, named, origin
        )
        if self.sizes is not None:
            open_results(node, self.sizes)
        return node.outputs if several else node.out

    def _copied(self, source: Value, written: TensorType, place: CallSite) -> Value:
        """``x.copy_(source)`` as a value of its own: ``source`` in the shape and element type of
        ``x``. The copy itself has no derivative."""
        if source.shape != written.shape:
            spread = TensorType(source.dtype, written.shape)
            source = self.call(
                EXPAND,
                (source, list(written.known)),
                {},
                spread,
                "expand",
                place,
            )
        if source.dtype != written.dtype:
            source = self.call(
                CONVERT,
                (source,),
                {"dtype": TO_TORCH[written.dtype]},
                written,
                "to",
                place,
            )
        return source

    def _operand(self, value: Any, inputs: list[Value | None]) -> int:
        if isinstance(value, torch.Tensor):
            value = self.constant(value)
        elif value is not None and not isinstance(value, Value):
            raise IrpruneError(f"operand {value!r} is not a tensor")
        inputs.append(value)
        return len(inputs) - 1


# -- aliases ---------------------------------------------------------------------------------------


class Aliases:
    """Which tensors may share storage, and whether each write in place may be taken for a new value
    under the same name.

    Keys are whatever stands for a tensor. Calls are reported in program order.
    """

    def __init__(self) -> None:
        self._time = 0
        self._root: dict[Hashable, Hashable] = {}
        self._family: dict[Hashable, list[Hashable]] = {}
        self._born: dict[Hashable, int] = {}
        self._read: dict[Hashable, int] = {}  # time of the last read
        self._given: set[Hashable] = set()
        self._state: dict[Hashable, str] = {}
        self._writes: list[tuple[int, Hashable, Hashable]] = []
        self._clash = ""

    def given(self, key: Hashable, state: str = "") -> None:
        """An input or a weight; ``state`` is the name of a buffer, which forward may change."""
        if state:
            self._state[key] = state
        else:
            self._given.add(key)
        self._add(key, key)

    def tick(self) -> None:
        """The next call."""
        self._time += 1

    def read(self, key: Hashable) -> None:
        self._read[key] = self._time

    def made(self, key: Hashable, source: Hashable | None = None) -> None:
        """A new tensor, which may share storage with ``source``."""
        self._add(key, key if source is None else self._root[source])

    def _add(self, key: Hashable, root: Hashable) -> None:
        self._root[key] = root
        self._born[key] = self._time
        self._family.setdefault(root, []).append(key)

    def wrote(
        self, target: Any, written: Hashable, result: Hashable, dtypes: Sequence[torch.dtype]
    ) -> None:
        """``target`` changed ``written`` in place and returned ``result``; ``dtypes`` are those of
        its tensors, the written one first."""
        if any(
            d.is_floating_point and torch.promote_types(dtypes[0], d) != dtypes[0]
            for d in dtypes[1:]
        ):
            self._clash = f"{target} would promote the element type"
        if functional(target) is target:
            self._clash = f"{target} has no functional twin"
        self._writes.append((self._time, written, result))

    def is_own(self, key: Hashable) -> bool:
        """Whether the storage of ``key`` was made by the program."""
        root = self._root.get(key)
        return root is not None and root not in self._given and root not in self._state

    def changed(self) -> list[str]:
        """The names of buffers that were written to."""
        roots = (self._root[written] for _, written, _ in self._writes)
        return list(dict.fromkeys(self._state[r] for r in roots if r in self._state))

    def refused(self) -> str:
        """Why a write is no new value; "" where each is."""
        if any(self._root[written] in self._given for _, written, _ in self._writes):
            return "forward writes to an input or a weight"
        return self._clash

    def clash(self) -> str:
        """Why renaming would not do; "" where it does."""
        for time, written, result in self._writes:
            root = self._root[written]
            for other in self._family[root]:
                if (
                    other not in (written, result)
                    and self._born[other] < time
                    and self._read.get(other, -1) > time
                ):
                    return "a view of a tensor that is changed in place is read afterwards"
        return self.refused()
