"""Subgraphs of ONNX nodes (If, Loop, Scan) and the functions that ONNX defines operators by, each
read into a graph of its own.

The inputs of such a graph are the body's own, then the outer values that it reads; weights stored
in the body become operands of the node, so that they count, move and train with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import onnx
import onnx.inliner
from numpy.typing import NDArray

from irprune.errors import first_line
from irprune.frontend.onnx.order import outer_names
from irprune.frontend.onnx.proto import type_proto, value_type
from irprune.frontend.onnx.source import FileTensor, OnnxSource
from irprune.ir.body import Body
from irprune.ir.graph import Graph, TensorType, Value
from irprune.ir.size import Sym
from irprune.ops.onnx.importer import UnsupportedUse

__all__ = ["BodyReader", "function_of", "lifted", "read_body"]


class BodyReader(Protocol):
    """The reader of the graph around a body, as far as bodies need it."""

    source: OnnxSource
    where: str
    proto: onnx.GraphProto
    graph: Graph
    symbols: dict[str, Sym]
    count: int
    types: dict[str, TensorType]
    known: dict[str, NDArray[Any]]
    stored: dict[str, FileTensor]
    values: dict[str, Value]

    def nested(self, model: onnx.ModelProto) -> BodyReader:
        """A reader of a body that stands in this graph."""

    def fresh(self) -> Sym:
        """A symbol that no other size has."""

    def initializers(self) -> None:
        """Read the weights."""

    def read_nodes(self) -> Graph:
        """Read the nodes and return the graph."""


def read_body(outer: BodyReader, body: onnx.GraphProto, formals: Sequence[TensorType]) -> Body:
    """``body`` as a graph whose first inputs are of the types ``formals``; where the body declares
    more, that holds."""
    model = onnx.ModelProto(ir_version=outer.source.model.ir_version)
    model.opset_import.extend(outer.source.model.opset_import)
    model.graph.CopyFrom(body)
    inner = outer.nested(model)
    for v, given in zip(model.graph.input, formals, strict=True):
        declared = value_type(v.type, inner.fresh)
        kind = given if given.shape is not None or declared.shape is None else declared
        inner.types[v.name] = kind
        inner.values[v.name] = inner.graph.add_input(v.name, kind)
    inner.initializers()
    names = tuple(outer_names(body))
    for name in names:
        inner.types[name] = outer.types[name]
        if name in outer.known:
            inner.known[name] = outer.known[name]
        if name in outer.stored:
            inner.stored[name] = outer.stored[name]
        if name in outer.source.computed:
            inner.source.computed[name] = None
        inner.values[name] = inner.graph.add_input(name, outer.types[name])
    graph = inner.read_nodes()
    graph.source = None
    outer.count = inner.count
    return Body(graph, names)


def lifted(outer: BodyReader, body: Body, names: list[str]) -> Body:
    """``body`` with its weights among the operands of its node, whose ``names`` grow; ``outer``
    then counts positions there."""
    graph, outside = body.graph, list(body.outer)
    for weight in list(graph.weights.values()):
        own = weight.name
        while own in outer.types:
            own += "."
        outer.stored[own], outer.types[own] = (
            FileTensor("initializer", weight.name, weight.load),
            weight.type,
        )
        value = graph.add_input(weight.name, weight.type)
        weight.replace_all_uses(value)
        graph.outputs = [value if v is weight else v for v in graph.outputs]
        names.append(own)
        outside.append(own)
    graph.weights.clear()
    places = {name: k for k, name in reversed(list(enumerate(names)))}
    return Body(graph, tuple(places[str(n)] for n in outside))


def function_of(
    outer: BodyReader, node: onnx.NodeProto, opset: int, types: Sequence[TensorType | None]
) -> Body | None:
    """The function that ONNX defines the operator of ``node`` by, for operands of these types; None
    where there is none."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        # Functions are not among its declared attributes
        schema: Any = onnx.defs.get_schema(node.op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    if not (schema.has_function or schema.has_context_dependent_function):
        return None
    declared = {v.name: v.type for v in (*outer.proto.value_info, *outer.proto.input)}

    def told(name: str, kind: TensorType | None) -> onnx.TypeProto:
        found = onnx.TypeProto() if kind is None else type_proto(kind, outer.symbols)
        found = declared.get(name, found) if not found.WhichOneof("value") else found
        # The builders of functions do not survive it
        if kind is not None and not found.WhichOneof("value"):
            raise UnsupportedUse(f"the function of {node.op_type} over a value of unknown type")
        return found

    protos = [told(n, t) for n, t in zip(node.input, types, strict=False)]
    if schema.has_context_dependent_function:
        text = schema.get_context_dependent_function_with_opset_version(
            opset, node.SerializeToString(), [p.SerializeToString() for p in protos]
        )
    else:
        text = schema.get_function_with_opset_version(opset)
    function = onnx.FunctionProto.FromString(text)
    function.domain = "irprune.body"
    model = onnx.ModelProto(ir_version=max(outer.source.model.ir_version, 8))
    model.opset_import.extend(outer.source.model.opset_import)
    model.opset_import.add(domain=function.domain, version=1)
    model.functions.append(function)
    given = {
        n: (p, t) for n, p, t in zip(node.input, protos, types, strict=False) if n and t is not None
    }
    model.graph.name = node.op_type
    model.graph.input.extend(onnx.ValueInfoProto(name=n, type=p) for n, (p, _) in given.items())
    call = model.graph.node.add()
    call.CopyFrom(node)
    call.domain, call.op_type = function.domain, function.name
    said = {a.name for a in node.attribute}
    call.attribute.extend(
        a.default_value
        for name, a in schema.attributes.items()
        if a.default_value.name and name not in said
    )
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in node.output if n)
    try:
        done = onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the inliner raises what C++ throws
        raise UnsupportedUse(
            f"the function of {node.op_type} does not apply: {first_line(error)}"
        ) from error
    return Body(read_body(outer, done.graph, [t for _, t in given.values()]).graph, tuple(given))
