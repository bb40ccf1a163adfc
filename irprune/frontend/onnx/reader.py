"""Capture of ONNX models: every node is read into an entry of the operator table, weights become
handles, shape arithmetic attributes.

The file's own message is kept whole in ``graph.source``: emitting edits a copy of it and leaves
what pruning did not touch as it was. Neither torch nor the weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from irprune.errors import IrpruneError
from irprune.frontend.onnx.bodies import function_of, lifted, read_body
from irprune.frontend.onnx.branches import with_branches_taken
from irprune.frontend.onnx.closed_branches import close_branches
from irprune.frontend.onnx.example_sizes import read_example_sizes
from irprune.frontend.onnx.file import Files, read_model
from irprune.frontend.onnx.functions import ExpandedCalls, expand_calls
from irprune.frontend.onnx.inference import Inference
from irprune.frontend.onnx.learned import tell_constants
from irprune.frontend.onnx.means import with_means
from irprune.frontend.onnx.opened_branches import open_branches, products_unread
from irprune.frontend.onnx.order import check_opset, reads, sort_nodes, target_of
from irprune.frontend.onnx.proto import (
    attributes,
    constant_array,
    constant_type,
    dense,
    dtype_of,
    value_type,
)
from irprune.frontend.onnx.source import FileTensor, NodePlace, OnnxSource
from irprune.frontend.onnx.types import check_types
from irprune.frontend.onnx.well_formed import check_message
from irprune.ir.body import Body
from irprune.ir.dtype import is_float, is_integer
from irprune.ir.graph import Graph, Node, Origin, TensorType, Value, Weight
from irprune.ir.size import Sym, probe_of, symbol
from irprune.ops.onnx.dynamic import at_run_time
from irprune.ops.onnx.fold import (
    LIMIT,
    SIZES,
    cast_to,
    fold,
    is_constant,
    is_filled,
    reads_sizes,
    symbolic,
)
from irprune.ops.onnx.importer import (
    PREVIOUS,
    InvalidOperands,
    OnnxNode,
    Step,
    UnsupportedUse,
    called,
    refused,
    spelling_of,
)
from irprune.ops.onnx.types import result_type
from irprune.ops.registry import TABLE, load_table

__all__ = ["capture_onnx", "nodes_of"]

PLAIN = 1 << 16  # elements of a tensor that is looked through for being one number all over
Array = NDArray[Any]


def capture_onnx(
    source: str | Path | onnx.ModelProto,
    values: Mapping[str, NDArray[Any]] | None = None,
    files: Files | None = None,
) -> Graph:
    """The graph of an ONNX model, given as a file or as a ``ModelProto`` (which is not changed).
    ``values`` are those that inputs always have, by name: branches that they decide are taken.
    ``files`` hold the data of tensors that lie apart from a ``ModelProto``.

    Raises IrpruneError for what is no valid model: truncated, cyclic, of an opset that is not
    served, with external data missing or outside the model's folder."""
    if isinstance(source, onnx.ModelProto):
        model, where = close_branches(source), source.graph.name or "model"
        files = Files() if files is None else files
    else:
        path = Path(source)
        model, files, where = read_model(path), Files(path), str(path)
    check_opset(model, where)
    model = sort_nodes(model, where)
    check_message(model, where)
    check_types(model, where)
    model, taken = with_branches_taken(model, values or {})
    calls = expand_calls(model, where) if model.functions else None
    graph, opened = _read_opened(model if calls is None else calls.model, files, calls, where)
    if calls is None and not opened and (respelled := with_means(graph, model)) is not None:
        graph = _Reader(OnnxSource(respelled, files), where).read()
    if taken:
        said = ", ".join(f"{name}={value}" for name, value in (values or {}).items())
        graph.notes.append(f"the file is for {said} alone: each If that goes by it is its branch")
    return graph


_BOTH = "parameters and MACs are those of all branches of its Ifs, of which a call runs one"


def _read_opened(
    model: onnx.ModelProto, files: Files, calls: ExpandedCalls | None, where: str
) -> tuple[Graph, bool]:
    """The graph of ``model`` with its Ifs opened where a branch can be analysed, and whether there
    are such."""
    closed: set[str] = set()
    while True:
        branches = open_branches(model, closed)
        opened = model if branches is None else branches.model
        graph = _Reader(OnnxSource(opened, files, calls, branches), where).read()
        if branches is None:
            return graph, False
        if not (unread := products_unread(graph)):
            graph.notes.append(_BOTH)
            return graph, True
        closed |= unread


class _Reader:
    """Reads the nodes in order. A node whose results are known is made only when somebody needs
    them as a tensor."""

    def __init__(self, source: OnnxSource, where: str) -> None:
        self.source, self.where = source, where
        self.proto = source.model.graph
        self.graph = Graph(self.proto.name or "graph")
        self.graph.source = source
        self.values: dict[str, Value] = {}
        self.types, self.known = source.types, source.known
        self.opset = cache(source.opset)
        self.stored: dict[str, FileTensor] = {}  # by the name of the tensor
        self.deferred: dict[str, int] = {}
        self.uses: dict[str, int] = {}
        self.inference = Inference(source, self._constant, self.fresh)
        self.wanted = {name for n in self.proto.node for name in reads(n)} | {
            v.name for v in self.proto.output
        }
        self.symbols: dict[str, Sym] = {}
        self.count = 0
        self.body = False  # whether this is a body
        opened = source.branches
        self.in_branches = frozenset(opened.inside() if opened is not None else ())

    def nested(self, model: onnx.ModelProto) -> _Reader:
        """A reader of a body that stands in this graph: it knows the same symbols and goes on
        counting them."""
        inner = _Reader(OnnxSource(model, self.source.files), self.where)
        inner.symbols, inner.count, inner.body = dict(self.symbols), self.count, True
        return inner

    def fresh(self) -> Sym:
        self.count += 1
        return symbol(f"u{self.count}")

    # -- the whole ---------------------------------------------------------------------------------

    def read(self) -> Graph:
        load_table()
        self.initializers()
        self._inputs()
        said = read_example_sizes(self.source.model)
        self.graph.sizes = {name: n for name, n in said.items() if name in self.symbols}
        return self.read_nodes()

    def _inputs(self) -> None:
        for v in self.proto.input:
            if v.name not in self.stored:
                kind = value_type(v.type, self.fresh)
                if kind.shape is None and v.type.HasField("tensor_type"):
                    raise IrpruneError(
                        f"the input '{v.name}' has no known rank",
                        self.where,
                        "say its shape, if need be with named dimensions",
                    )
                self.types[v.name] = kind
                self._note_symbols(kind)
                self.values[v.name] = self.graph.add_input(v.name, kind)

    def read_nodes(self) -> Graph:
        """The graph, once initializers and inputs are there."""
        for index, node in enumerate(self.proto.node):
            try:
                self._visit(index, node)
            except IrpruneError:
                raise
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise IrpruneError(
                    f"node '{node.name or (node.output or ['?'])[0]}' ({target_of(node)}) is not well formed: {error}",
                    self.where,
                    "onnx.checker.check_model may say more",
                ) from error
        self.graph.outputs = [self.value(v.name) for v in self.proto.output]
        tell_constants(self.graph)
        return self.graph

    def _note_symbols(self, kind: TensorType) -> None:
        for s in kind.shape or ():
            if isinstance(s, Sym):
                self.symbols.setdefault(str(s), s)

    def initializers(self) -> None:
        for t in self.proto.initializer:
            self._store(
                FileTensor("initializer", t.name, self.source.files.loader(t)),
                TensorType(dtype_of(t.data_type), tuple(t.dims)),
            )
        for s in self.proto.sparse_initializer:
            self._store(
                FileTensor("initializer", s.values.name, partial(dense, s)),
                TensorType(dtype_of(s.values.data_type), tuple(s.dims)),
            )

    def _store(self, stored: FileTensor, kind: TensorType) -> None:
        self.stored[stored.name] = stored
        self.types[stored.name] = kind

    # -- one node ----------------------------------------------------------------------------------

    def _visit(self, index: int, node: onnx.NodeProto) -> None:
        target = target_of(node)
        if is_constant(target):
            array = constant_array(node)
            if array is not None:
                self._store(FileTensor("constant", node.output[0], array), constant_type(node))
                return
        types = [self.types.get(name) if name else None for name in node.input]
        attrs = attributes(node)
        opset = self.opset(node.domain)
        if is_filled(target) and self._filled(node, attrs):
            return
        known = self._fold(node, target, opset, attrs, types)
        if known is not None:
            for name, value in zip(node.output, known, strict=False):
                self.known[name] = value
                self.types[name] = TensorType(
                    self._known_dtype(target, attrs, types, value), value.shape
                )
                self.deferred[name] = index
                if reads_sizes(target) or any(n in self.source.computed for n in node.input):
                    self.source.computed[name] = None
            return
        self._make(index, node, target, opset, attrs, types)

    def _fold(
        self,
        node: onnx.NodeProto,
        target: str,
        opset: int,
        attrs: dict[str, Any],
        types: list[TensorType | None],
    ) -> list[Array] | None:
        return fold(
            target,
            opset,
            attrs,
            types,
            lambda i: self._small(node.input[i]) if i < len(node.input) and node.input[i] else None,
        )

    @staticmethod
    def _known_dtype(
        target: str, attrs: dict[str, Any], types: list[TensorType | None], array: Array
    ) -> str:
        if array.dtype != object:
            return dtype_of(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
        if (made := cast_to(target, attrs)) is not None:
            return dtype_of(made)
        if reads_sizes(target):
            return "i64"
        return next((t.dtype for t in types if t is not None and t.dtype != "bool"), "i64")

    def _small(self, name: str) -> Array | None:
        """The value of a tensor if it is known and small enough for shape arithmetic."""
        if name in self.known:
            return self.known[name]
        stored, kind = self.stored.get(name), self.types.get(name)
        if stored is None or kind is None or stored.kind == "filled" or _count(kind) > LIMIT:
            return None
        if kind.dtype not in (
            "i64",
            "i32",
            "bool",
            "f32",
            "f64",
            "f16",
            "u8",
            "i8",
            "u64",
            "u32",
            "i16",
            "u16",
        ):
            return None
        self.known[name] = np.asarray(stored.load())
        return self.known[name]

    def _constant(self, name: str) -> Array | None:
        """The value of a tensor that a reader asks for: also long lists of indices."""
        small = self._small(name)
        if small is not None:
            return small
        stored, kind = self.stored.get(name), self.types.get(name)
        if (
            stored is not None
            and kind is not None
            and (is_integer(kind.dtype) or kind.dtype == "bool")
        ):
            return np.asarray(stored.load())
        return None

    def _filled(self, node: onnx.NodeProto, attrs: dict[str, Any]) -> bool:
        """A ConstantOfShape of a constant shape is a weight of that shape; one that follows a
        tensor's shape is a node."""
        shape = self._small(node.input[0])
        if shape is None or symbolic(shape) or node.input[0] in self.source.computed:
            return False
        sizes = tuple(int(s) for s in shape.reshape(-1))
        value = (
            numpy_helper.to_array(attrs["value"]) if "value" in attrs else np.zeros(1, np.float32)
        )
        kind = TensorType(dtype_of(onnx.helper.np_dtype_to_tensor_dtype(value.dtype)), sizes)
        if prod(sizes) <= LIMIT and is_integer(kind.dtype):
            return False
        self._store(
            FileTensor(
                "filled", node.output[0], lambda: np.full(sizes, value.reshape(-1)[0], value.dtype)
            ),
            kind,
        )
        return True

    def _make(
        self,
        index: int,
        node: onnx.NodeProto,
        target: str,
        opset: int,
        attrs: dict[str, Any],
        types: list[TensorType | None],
    ) -> None:
        names = reads(node)
        subgraphs = {a.name: a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH}
        view = OnnxNode(
            target,
            opset,
            attrs,
            types,
            self._read_outputs(node),
            len(node.output),
            lambda i: (
                self._constant(node.input[i]) if i < len(node.input) and node.input[i] else None
            ),
            lambda: self.inference.of(node, opset, types, self.symbols),
            lambda name, formals: read_body(self, subgraphs[name], formals),
            self.fresh,
        )
        spelling = spelling_of(target)
        steps: Sequence[Step]
        try:
            if spelling is not None:
                made = spelling.read(view)
                steps = [made] if isinstance(made, Step) else made
            elif (body := function_of(self, node, opset, types)) is not None:
                steps = [called(view, body)]
            else:
                steps = [
                    at_run_time(view, "a shape known at run time")
                    or Step(target, tuple(range(len(names))), attrs)
                ]
            steps = self._typed(steps, view)
            final = self._types_of(steps[-1], view, node)
        except UnsupportedUse as why:
            may_never_run = self.body or index in self.in_branches
            if isinstance(why, InvalidOperands) and not may_never_run:
                raise IrpruneError(
                    f"node '{node.name or node.output[0]}' ({target}) cannot run: {why}", self.where
                ) from why
            fallback = at_run_time(view, str(why))
            steps = [fallback or refused(target, len(names), str(why))]
            final = self._types_of(steps[-1], view, node)
        for k, step in enumerate(steps):
            if any(isinstance(v, Body) for v in step.attrs.values()):
                held = {
                    a: lifted(self, v, names) if isinstance(v, Body) else v
                    for a, v in step.attrs.items()
                }
                steps = [
                    *steps[:k],
                    replace(step, operands=tuple(range(len(names))), attrs=held),
                    *steps[k + 1 :],
                ]
        self._add(index, node, names, steps, final)

    @staticmethod
    def _typed(steps: Sequence[Step], view: OnnxNode) -> list[Step]:
        """The steps, with the types that their axis rules give where they say none."""
        previous: TensorType | None = None
        out = []
        for step in steps:
            positions = range(len(view.types)) if step.operands is None else step.operands
            operands = [
                previous
                if j == PREVIOUS
                else view.types[j]
                if j is not None and j < len(view.types)
                else None
                for j in positions
            ]
            entry = TABLE.get(step.op)
            if entry is not None and entry.macs is not None:  # what it costs is counted by rank
                unknown = [k for k in operands if k is not None and k.shape is None]
                if unknown:
                    raise UnsupportedUse(f"an input of {view.target} has no known rank")
            if step.types is None and (found := result_type(step, operands)) is not None:
                step = replace(step, types=[found])
            previous = step.types[0] if step.types else None
            out.append(step)
        return out

    def _types_of(self, step: Step, view: OnnxNode, node: onnx.NodeProto) -> list[TensorType]:
        count = len(view.outputs)
        made = (
            list(step.types)[: len(node.output)]
            if step.types is not None
            else view.inferred()[:count]
        )
        return made if len(made) >= count else made + view.inferred()[len(made) : count]

    def _read_outputs(self, node: onnx.NodeProto) -> list[str]:
        """The results of ``node`` up to the last one that is read, "" for those that are not."""
        names = [name if name in self.wanted else "" for name in node.output]
        while len(names) > 1 and not names[-1]:
            names.pop()
        return names

    def _add(
        self,
        index: int,
        node: onnx.NodeProto,
        names: list[str],
        steps: Sequence[Step],
        final: list[TensorType],
    ) -> None:
        previous: Value | None = None
        for k, step in enumerate(steps):
            positions = tuple(range(len(node.input))) if step.operands is None else step.operands
            operands: list[Value | None] = []
            for j in positions:
                if j == PREVIOUS:
                    operands.append(previous)
                else:
                    operands.append(
                        self.value(names[j])
                        if j is not None and j < len(names) and names[j]
                        else None
                    )
            while operands and operands[-1] is None:
                operands.pop()
            if k == len(steps) - 1:
                results = [
                    (name or f"{node.output[0]}.unused{i}", t)
                    for i, (name, t) in enumerate(zip(node.output, final, strict=False))
                ]
            else:
                results = [(f"{node.output[0]}.{k}", t) for t in step.types or ()]
            place = NodePlace(
                index,
                tuple(None if j == PREVIOUS else j for j in positions[: len(operands)]),
                dict(step.attrs),
                k,
                len(steps),
            )
            origin = Origin("onnx", target_of(node), (), node.name, _source_line(node), place)
            made = self.graph.add(step.op, operands, dict(step.attrs), results, origin)
            previous = made.outputs[0]
        for value in made.outputs:
            self.values[value.name] = value
            self.types[value.name] = value.type

    # -- values ------------------------------------------------------------------------------------

    def value(self, name: str) -> Value:
        """The tensor ``name``, made now if it was put off. A vector, or one number all over, that
        nodes share is a weight of its own for each."""
        if name in self.values:
            return self.values[name]
        if name in self.stored:
            return self._weight(name)
        index = self.deferred[name]
        node = self.proto.node[index]
        if name in self.source.computed:
            self.values[name] = self._computed(name)
        else:
            types = [self.types.get(n) if n else None for n in node.input]
            self._make(
                index,
                node,
                target_of(node),
                self.source.opset(node.domain),
                attributes(node),
                types,
            )
        return self.values[name]

    def _weight(self, name: str) -> Weight:
        kind, stored = self.types[name], self.stored[name]
        floating = is_float(kind.dtype)
        trained = floating and kind.rank > 0 and _count(kind) > 1
        self.uses[name] = self.uses.get(name, 0) + 1
        own = name if self.uses[name] == 1 else f"{name}@{self.uses[name]}"
        weight = Weight(
            own, kind, stored.load, "parameter" if trained else "constant", trainable=trained
        )
        self.graph.add_weight(weight)
        self.source.stored[own] = stored
        if kind.rank != 1 and not self._plain(name):
            self.values[name] = weight
        return weight

    def _plain(self, name: str) -> bool:
        """Whether a tensor of floating point is one number all over (a zero state that an exporter
        shares): its readers have nothing in common but that number."""
        kind, stored = self.types[name], self.stored[name]
        if not is_float(kind.dtype) or _count(kind) > PLAIN:
            return False
        array = np.asarray(stored.load()).reshape(-1)
        return bool(array.size and (array == array[0]).all())

    def _computed(self, name: str) -> Value:
        """A value that shape arithmetic computes, read as a tensor: what it was stays, whatever
        pruning does to the shape."""
        array, kind = self.known[name], self.types[name]
        if symbolic(array):
            made = self.graph.add(
                SIZES,
                [],
                {
                    "values": [
                        x if isinstance(x, Sym) else int(x) for x in array.reshape(-1).tolist()
                    ],
                    "shape": list(array.shape),
                    "dtype": kind.dtype,
                },
                [(name, kind)],
                Origin("onnx", "Shape", (), name, "", None),
            )
            return made.out
        weight = Weight(name, kind, lambda: array, "constant")
        self.graph.add_weight(weight)
        self.source.stored[name] = FileTensor("folded", name, weight.load)
        return weight


def _count(kind: TensorType) -> int:
    """How many elements a stored tensor has."""
    return prod(map(probe_of, kind.known))


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _source_line(node: onnx.NodeProto) -> str:
    """The user's ``file:line`` where the exporter of torch recorded it."""
    for p in node.metadata_props:
        if p.key == "pkg.torch.onnx.stack_trace":
            frames = _FRAME.findall(p.value)
            if frames:
                return f"{frames[-1][0]}:{frames[-1][1]}"
    return ""


def nodes_of(graph: Graph) -> Iterable[tuple[Node, NodePlace]]:
    """The nodes that stand in the file, with their places."""
    for node in graph.nodes:
        if isinstance(node.origin.raw, NodePlace):
            yield node, node.origin.raw
