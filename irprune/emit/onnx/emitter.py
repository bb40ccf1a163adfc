"""ONNX out of a graph that came from ONNX: the file that came in, in which only what pruning
changed is edited.

Initializers, size attributes, shape constants and value_info change; names, order, opsets,
metadata, doc strings and everything that nobody asked about stay as they are. A tensor whose users
want different parts of it is given a copy for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from irprune.emit.onnx.branches import indices_of, restore_ifs
from irprune.emit.onnx.edit import NodeEdit, SizeNodes, tensor_of
from irprune.emit.onnx.file import with_arrays, without_arrays, write_model
from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.functions import FunctionCall, restore_calls, still_called
from irprune.frontend.onnx.opened_branches import Part
from irprune.frontend.onnx.order import captured, reads, subgraphs, target_of
from irprune.frontend.onnx.proto import attributes
from irprune.frontend.onnx.reader import nodes_of
from irprune.frontend.onnx.source import NodePlace, onnx_source
from irprune.ir.dtype import TO_ONNX, is_integer
from irprune.ir.graph import Graph, Node, TensorType, Value, Weight
from irprune.ir.size import Sym, same
from irprune.ops.arrays import as_numpy
from irprune.ops.onnx.fold import fold, is_constant, reads_sizes
from irprune.ops.onnx.importer import spelling_of
from irprune.ops.registry import is_unread

__all__ = ["Emitter", "emit_onnx", "write_onnx"]

Array = NDArray[Any]
_REMADE = {"node", "initializer", "sparse_initializer", "value_info", "input"}  # of a file's graph


def emit_onnx(graph: Graph) -> onnx.ModelProto:
    """The model of a graph that was captured from ONNX, after passes changed it. Raises
    IrpruneError for what the file cannot say."""
    emitter = Emitter(graph)
    return with_arrays(emitter.emit(), emitter.data)


def write_onnx(graph: Graph, path: str | Path) -> Path:
    """Write the model of ``graph``; weights go to ``<name>.data`` beside it where they lay outside
    before or the file would pass 2 GB.

    Each weight is read, cut and written by itself. Written aside and renamed, so that nothing
    half-written is left behind."""
    emitter = Emitter(graph)
    return write_model(emitter.emit(), emitter.data, Path(path), emitter.outside or None)


@dataclass
class _Uses:
    """Who reads a tensor: input ``slot`` of node ``index`` wants the array of ``weight``."""

    slots: list[tuple[int, int, Weight]] = field(default_factory=list)


class Emitter:
    """Edits a copy of the model behind ``graph``."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.source = onnx_source(graph)
        self.original = self.source.model
        self.nodes = [
            onnx.NodeProto.FromString(n.SerializeToString()) for n in self.original.graph.node
        ]
        self.types: dict[str, TensorType] = {
            v.name: v.type for v in graph.values() if not isinstance(v, Weight)
        }
        self.tensors = {t.name: t for t in self.original.graph.initializer}
        # Weights of branches
        self.inner = set(self.tensors) - {t.name for t in self.source.given.graph.initializer}
        self.makers = {name: i for i, n in enumerate(self.nodes) for name in n.output if name}
        self.names = {
            name for n in self.original.graph.node for name in (*reads(n), *n.output)
        } | set(self.tensors)
        self.names |= {v.name for v in (*self.original.graph.input, *self.original.graph.output)}
        self.added: dict[str, TensorProto] = {}  # new initializers
        self.replaced: dict[str, TensorProto] = {}  # initializers with new contents
        self.data: dict[str, Loader] = {}  # what large initializers hold, loaded when it is written
        self.outside = {
            t.name for t in self.original.graph.initializer if not self.source.files.inside(t)
        }
        self.before: dict[
            int, list[onnx.NodeProto]
        ] = {}  # new nodes, by the node that they stand before
        self.after: list[onnx.NodeProto] = []
        self.values: dict[str, Array | None] = {}
        self.reads = self._count_reads()
        symbols = {
            s.name: (v.name, d)
            for v in reversed(graph.inputs)
            for d, s in reversed(list(enumerate(v.type.shape or ())))
            if isinstance(s, Sym) and s.name
        }
        self.size_nodes = SizeNodes(
            self.fresh,
            lambda i, n: self.before.setdefault(i, []).append(n),
            self.add_constant,
            symbols,
        )

    def _count_reads(self) -> dict[str, int]:
        count: dict[str, int] = {}
        for name in [n for node in self.original.graph.node for n in reads(node)] + [
            v.name for v in self.original.graph.output
        ]:
            count[name] = count.get(name, 0) + 1
        return count

    # -- the whole ---------------------------------------------------------------------------------

    def emit(self) -> onnx.ModelProto:
        uses: dict[str, _Uses] = {}
        placed: dict[int, list[tuple[Node, NodePlace]]] = {}
        for node, place in nodes_of(self.graph):
            placed.setdefault(place.index, []).append((node, place))
        for index, steps in placed.items():
            for node, place in steps:
                self._rewire(index, node, place, uses)
        self._weights(uses)
        for index, steps in placed.items():
            self._write(index, steps)
        self._shapes_of_lost(placed)
        return self._assemble(placed)

    def _rewire(self, index: int, node: Node, place: NodePlace, uses: dict[str, _Uses]) -> None:
        """Let each input of the file's node read what the graph's node reads; weights are noted for
        later."""
        for value, slot in zip(node.inputs, place.operands, strict=False):
            if slot is None or value is None or slot >= len(self.nodes[index].input):
                continue
            if isinstance(value, Weight):
                stored = self.source.stored.get(value.name)
                key = stored.name if stored is not None else value.name
                uses.setdefault(key, _Uses()).slots.append((index, slot, value))
            elif self.nodes[index].input[slot] != value.name:
                self.nodes[index].input[slot] = value.name

    # -- weights -----------------------------------------------------------------------------------

    def _weights(self, uses: dict[str, _Uses]) -> None:
        for name, use in uses.items():
            variants: list[tuple[Weight, list[tuple[int, int]]]] = []
            untouched = self.reads.get(name, 0) - len(use.slots)
            for index, slot, weight in use.slots:
                if not self._changed(weight):
                    untouched += 1
                    continue
                same_as = next((slots for known, slots in variants if _alike(known, weight)), None)
                if same_as is None:
                    variants.append((weight, [(index, slot)]))
                else:
                    same_as.append((index, slot))
            for k, (weight, slots) in enumerate(variants):
                if (
                    k == 0
                    and not untouched
                    and self._replace(name, _shape(weight), _numpy_loader(weight))
                ):
                    continue
                fresh = self._add(name, weight)
                for index, slot in slots:
                    self.nodes[index].input[slot] = fresh

    def _changed(self, weight: Weight) -> bool:
        """Whether the file's own tensor does not hold what ``weight`` holds."""
        stored = self.source.stored.get(weight.name)
        if stored is None:
            return True
        if stored.kind != "folded":
            return weight.load is not stored.load
        wanted, now = as_numpy(weight.load()), self.now(stored.name)
        return (
            now is None
            or now.dtype == object
            or now.shape != wanted.shape
            or not bool((now == wanted).all())
        )

    def _replace(self, name: str, shape: tuple[int, ...], load: Loader) -> bool:
        """Put an array in the place of tensor ``name``; False where the file does not store it."""
        if name in self.source.types:
            self.types[name] = TensorType(self.source.types[name].dtype, shape)
        if name in self.tensors:
            self.replaced[name] = without_arrays(
                name, self.tensors[name].data_type, shape, self.tensors[name]
            )
            self.data[name] = load
            return True
        index = self.makers.get(name)
        if index is None:
            return False
        node = self.nodes[index]
        if is_constant(target_of(node)):
            attribute = node.attribute[0]
            if attribute.name == "value":
                attribute.t.CopyFrom(tensor_of(attribute.t.name, load(), attribute.t))
            else:
                fresh = helper.make_attribute(attribute.name, load().tolist())
                attribute.CopyFrom(fresh)
            return True
        stored = next((s for s in self.source.stored.values() if s.name == name), None)
        if stored is not None and stored.kind == "filled":
            node.input[0] = self.constant(node.input[0], np.array(shape, np.int64), index, 0)
            return True
        return False

    # -- constants ---------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A name that nobody has, made of ``hint``."""
        name, k = f"{hint}_pruned", 1
        while name in self.names:
            k += 1
            name = f"{hint}_pruned_{k}"
        self.names.add(name)
        return name

    def add_constant(self, hint: str, array: Array) -> str:
        """A new initializer."""
        name = self.fresh(hint)
        self.added[name] = tensor_of(name, array)
        self.values[name] = array
        return name

    def _add(self, hint: str, weight: Weight) -> str:
        """A new initializer that holds what ``weight`` holds."""
        name = self.fresh(hint)
        self.added[name] = without_arrays(name, TO_ONNX[weight.dtype], _shape(weight))
        self.data[name] = _numpy_loader(weight)
        return name

    def constant(self, old: str, array: Array, index: int, slot: int) -> str:
        """A tensor that holds ``array`` for input ``slot`` of node ``index``: ``old`` edited in
        place where nobody else reads it."""
        if old and self.reads.get(old, 0) == 1 and (old in self.tensors or self._is_constant(old)):
            self._replace(old, array.shape, lambda: array)
            self.values[old] = array
            return old
        return self.add_constant(old or f"{self.nodes[index].output[0]}_{slot}", array)

    def _is_constant(self, name: str) -> bool:
        return name in self.makers and is_constant(target_of(self.nodes[self.makers[name]]))

    def now(self, name: str) -> Array | None:
        """The value of a small tensor as the edited model computes it."""
        if name not in self.values:
            if name in self.data:
                self.values[name] = self.data[name]()
            elif name in self.source.computed:
                node = self.nodes[self.makers[name]]
                types = [self.type(n) if n else None for n in node.input]
                made = fold(
                    target_of(node),
                    self.source.opset(node.domain),
                    attributes(node),
                    types,
                    lambda i: (
                        self.now(node.input[i]) if i < len(node.input) and node.input[i] else None
                    ),
                )
                for n, array in zip(node.output, made or [None] * len(node.output), strict=False):  # type: ignore[list-item]
                    self.values[n] = array
            else:
                known = self.source.known.get(name)
                stored = self.source.stored.get(name)
                kind = self.source.types.get(name)
                if (
                    known is None
                    and stored is not None
                    and stored.kind != "filled"
                    and kind is not None
                    and (is_integer(kind.dtype) or kind.dtype == "bool")
                ):
                    known = np.asarray(stored.load())
                self.values[name] = known
        return self.values.get(name)

    def type(self, name: str) -> TensorType | None:
        """The type of a value after pruning."""
        return self.types.get(name) or self.source.types.get(name)

    # -- nodes -------------------------------------------------------------------------------------

    def _write(self, index: int, steps: list[tuple[Node, NodePlace]]) -> None:
        """Put changed attributes and shape constants back into the file's node."""
        node = self.nodes[index]
        covered = {slot for _, place in steps for slot in place.operands}
        for name in captured(node):  # what a body reads of a shape that changed stays what it was
            if not self._as_before(name):
                was = self.source.known[name]
                dynamic = was.dtype == object
                held = (
                    self.size_nodes.vector(
                        was.reshape(-1).tolist(), index, name, self.source.types[name].dtype
                    )
                    if dynamic
                    else self.add_constant(name, was)
                )
                _rename(node, name, held)
        loose = [j for j, name in enumerate(node.input) if name and j not in covered]
        moved = [j for j in loose if not self._as_before(node.input[j])]
        spelling = None if is_unread(steps[0][0]) else spelling_of(target_of(node))
        changed = any(n.attrs != place.attrs for n, place in steps) or any(
            self._resized(v) for n, _ in steps for v in (*n.inputs, *n.outputs)
        )
        if not moved and not changed:
            return
        if spelling is not None and spelling.write is not None:
            spelling.write(NodeEdit(self, index), *(n for n, _ in steps))
            return
        if any(n.attrs != place.attrs for n, place in steps):
            raise IrpruneError(
                f"{target_of(node)} changed and its spelling does not say how that is written",
                node.name or node.output[0],
            )
        for j in moved:  # what was read from a shape that changed stays what it was
            was = self.source.known[node.input[j]]
            if was.dtype == object:
                dtype = self.source.types[node.input[j]].dtype
                node.input[j] = self.size_nodes.vector(
                    was.reshape(-1).tolist(), index, node.input[j], dtype
                )
            else:
                node.input[j] = self.add_constant(node.input[j], was)

    def _shapes_of_lost(self, placed: Mapping[int, object]) -> None:
        """A tensor of which only the shape is read is not in the graph. Where what it is made of
        shrank, the shape that it had, which everything after it was written against, takes the
        place of its Shape node."""
        lost: set[str] = set()
        for i, node in enumerate(self.nodes):
            if i in placed:
                continue
            if (
                reads_sizes(target_of(node))
                and node.input[0] in lost
                and node.output[0] in self.source.known
            ):
                was = self.source.known[node.output[0]].reshape(-1).tolist()
                made = helper.make_node(
                    "Identity",
                    [
                        self.size_nodes.vector(
                            was, i, node.output[0], self.source.types[node.output[0]].dtype
                        )
                    ],
                    [node.output[0]],
                    name=node.name,
                )
                node.CopyFrom(made)
            elif (
                any(name in lost or self._resized_name(name) for name in reads(node))
                and node.output[0] not in self.source.known
            ):
                lost.update(node.output)

    def _as_before(self, name: str) -> bool:
        if name not in self.source.computed:
            return True
        was, now = self.source.known[name], self.now(name)
        if now is None or was.shape != now.shape:
            return False
        return all(
            same(a, b) if isinstance(a, (int, Sym)) and isinstance(b, (int, Sym)) else a == b
            for a, b in zip(was.reshape(-1).tolist(), now.reshape(-1).tolist(), strict=True)
        )

    def _resized(self, value: Value | None) -> bool:
        if value is None:
            return False
        was = self.source.types.get(
            self.source.stored[value.name].name if value.name in self.source.stored else value.name
        )
        return was is None or was.shape != value.type.shape

    # -- putting it together -----------------------------------------------------------------------

    def _assemble(self, placed: dict[int, list[tuple[Node, NodePlace]]]) -> onnx.ModelProto:
        calls, branches, old = self.source.calls, self.source.branches, self.source.given
        out = onnx.ModelProto()
        _copy_fields(old, out, {"graph", "functions"})
        _copy_fields(old.graph, out.graph, _REMADE)
        out.graph.name = out.graph.name or "graph"  # a valid file names it
        self._keep_output_names()
        alive = self._alive(placed)
        whole: Sequence[Part] = range(len(self.nodes)) if branches is None else branches.parts
        untouched = partial(self._untouched, alive, whole)
        for part in range(len(whole)) if calls is None else restore_calls(calls.parts, untouched):
            out.graph.node.extend(
                restore_ifs(whole[part], self, alive) if isinstance(part, int) else [part]
            )
        out.graph.node.extend(self.after)
        out.functions.extend(still_called(out, old))
        have = {o.domain for o in out.opset_import}
        out.opset_import.extend(o for o in self.original.opset_import if o.domain not in have)
        kept = {name for n in out.graph.node for name in reads(n)} | {
            v.name for v in out.graph.output
        }
        unused_before = {t for t in self.tensors if not self.reads.get(t)}
        beside = [t for name, t in self.tensors.items() if name in self.inner & self.outside]
        for t in (*old.graph.initializer, *beside):
            if t.name in kept or t.name in unused_before:
                out.graph.initializer.append(
                    self.replaced[t.name] if t.name in self.replaced else self._as_it_was(t)
                )
        out.graph.initializer.extend(t for name, t in self.added.items() if name in kept)
        out.graph.sparse_initializer.extend(
            s
            for s in old.graph.sparse_initializer
            if s.values.name in kept or not self.reads.get(s.values.name)
        )
        stored = {t.name for t in out.graph.initializer}
        for v in old.graph.input:
            if v.name not in self.tensors or v.name in stored:
                out.graph.input.append(self.resized_info(v))
        if old.ir_version < 4:  # every initializer is an input there
            for name, t in self.added.items():
                if name in stored:
                    out.graph.input.append(
                        helper.make_tensor_value_info(name, t.data_type, list(t.dims))
                    )
        made = {name for n in out.graph.node for name in n.output} | stored
        for v in old.graph.value_info:
            if v.name in made:
                out.graph.value_info.append(self.resized_info(v))
        del out.graph.quantization_annotation[:]
        out.graph.quantization_annotation.extend(a for a in old.graph.quantization_annotation)
        return out

    def _untouched(self, alive: set[int], whole: Sequence[Part], call: FunctionCall) -> bool:
        """Whether nothing in the body of a local function's call changed, so that the call can
        stay."""
        return all(
            i in alive
            and not self.before.get(i)
            and self.nodes[i] == self.original.graph.node[i]
            and not ((call.typed or i != part) and self._says_otherwise(i))
            for part in whole[call.first : call.last]
            for i in indices_of(part)
        )

    def _says_otherwise(self, i: int) -> bool:
        """Whether a function or a branch that holds node ``i`` says sizes of it, or has a weight
        of it, that are others now."""
        node = self.nodes[i]
        own = any(name in self.replaced for name in self.inner.intersection(node.input))
        return own or any(map(self._resized_name, node.output))

    def _as_it_was(self, tensor: TensorProto) -> TensorProto:
        """An initializer that nothing changed; what lies in a file stays there until it is
        written."""
        if tensor.data_location != TensorProto.EXTERNAL:
            return tensor
        self.data[tensor.name] = self.source.files.loader(tensor)
        return without_arrays(tensor.name, tensor.data_type, tuple(tensor.dims), tensor)

    def _keep_output_names(self) -> None:
        """A result that became a constant or another value is handed out under its own name."""
        for value, info in zip(self.graph.outputs, self.original.graph.output, strict=True):
            if value.name == info.name or (
                isinstance(value, Weight) and value.name in self.source.stored
            ):
                continue
            name = self._add(info.name, value) if isinstance(value, Weight) else value.name
            maker = self.makers.get(info.name)
            if maker is not None:
                self.nodes[maker].output[list(self.nodes[maker].output).index(info.name)] = (
                    self.fresh(info.name)
                )
            self.after.append(
                helper.make_node("Identity", [name], [info.name], name=self.fresh(info.name))
            )

    def _alive(self, placed: dict[int, list[tuple[Node, NodePlace]]]) -> set[int]:
        """Nodes that the outputs need, and those that nobody needed before either, as long as what
        they read is as it was."""
        before, wanted = (
            self._needed(self.original.graph.node, ()),
            self._needed(
                self.nodes, [n for many in self.before.values() for n in many] + self.after
            ),
        )
        spoilt = set(self.replaced)
        alive = set(wanted)
        for i, node in enumerate(self.nodes):
            intact = not any(name in spoilt or self._resized_name(name) for name in reads(node))
            if i not in wanted and i not in before and intact:
                alive.add(i)
            elif i not in alive:
                spoilt.update(node.output)
        return alive

    def _resized_name(self, name: str) -> bool:
        was, now = self.source.types.get(name), self.types.get(name)
        return now is not None and was is not None and was.shape != now.shape

    def _needed(self, nodes: Any, extra: Iterable[onnx.NodeProto]) -> set[int]:
        wanted = {v.name for v in self.original.graph.output} | {
            name for n in extra for name in reads(n)
        }
        out: set[int] = set()
        for i in range(len(nodes) - 1, -1, -1):
            if any(name in wanted for name in nodes[i].output):
                out.add(i)
                wanted.update(reads(nodes[i]))
        return out

    def resized_info(self, info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """``info`` with the sizes that its value has after pruning."""
        kind = self.type(info.name)
        if (
            kind is None
            or kind.shape is None
            or not info.type.HasField("tensor_type")
            or kind.dtype not in TO_ONNX
        ):
            return info
        dims = info.type.tensor_type.shape.dim
        if len(dims) != len(kind.shape):
            return info
        stale = [
            k
            for k, (d, s) in enumerate(zip(dims, kind.shape, strict=True))
            if isinstance(s, int) and d.HasField("dim_value") and d.dim_value != s
        ]
        if not stale:
            return info
        made = onnx.ValueInfoProto()
        made.CopyFrom(info)
        for k in stale:
            made.type.tensor_type.shape.dim[k].dim_value = kind.shape[k]
        return made


def _rename(node: onnx.NodeProto, old: str, new: str) -> None:
    """Let the subgraphs of ``node`` read ``new`` for ``old``."""
    for body in subgraphs(node):
        for inner in body.node:
            for j, name in enumerate(inner.input):
                if name == old:
                    inner.input[j] = new
            _rename(inner, old, new)


def _copy_fields(old: Any, new: Any, without: set[str]) -> None:
    """Copy every field that is set but those named."""
    for descriptor, value in old.ListFields():
        if descriptor.name in without:
            continue
        if (
            descriptor.is_repeated
            if hasattr(descriptor, "is_repeated")
            else descriptor.label == descriptor.LABEL_REPEATED
        ):
            getattr(new, descriptor.name).extend(value)
        elif descriptor.message_type is not None:
            getattr(new, descriptor.name).CopyFrom(value)
        else:
            setattr(new, descriptor.name, value)


def _shape(weight: Weight) -> tuple[int, ...]:
    return tuple(s for s in weight.shape if isinstance(s, int))  # weights have no symbolic sizes


def _numpy_loader(weight: Weight) -> Loader:
    return lambda: as_numpy(weight.load())


def _alike(a: Weight, b: Weight) -> bool:
    """Whether two weights hold the same numbers; they are loaded only where their types agree."""
    if a is b or a.type != b.type:
        return a is b
    x, y = as_numpy(a.load()), as_numpy(b.load())
    return x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
