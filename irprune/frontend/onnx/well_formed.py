"""Whether the message of a model is sound: what no runtime could give a meaning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto

from irprune.errors import IrpruneError, first_line
from irprune.frontend.onnx.order import target_of
from irprune.frontend.onnx.types import without_notes

__all__ = ["check_message"]

# What onnx.checker asks for and a file can do without: shapes of outputs, the name of a graph;
# operators that onnxruntime alone has, and those that onnx defines no more and onnxruntime runs
_NEEDLESS = (
    "Field 'shape' of 'type'",
    "Field 'name' of 'graph'",
    "No Op registered",
    "is deprecated in domain_version",
)


def check_message(model: onnx.ModelProto, where: str) -> None:
    """Raises IrpruneError where ``model`` is no model: by ``onnx.checker``, without looking at the
    data of its tensors, and where an input that an operator needs is left out or two initializers
    have one name."""
    names = [t.name for t in model.graph.initializer]
    again = (
        next((n for n in names if names.count(n) > 1), None)
        if len(names) > len(set(names))
        else None
    )
    if again is not None:
        raise IrpruneError(f"two initializers are called '{again}'", where)
    _check_needed(model, where)
    _check_calls(model, where)
    try:
        onnx.checker.check_model(_light(model))
    except UnicodeDecodeError as refused:  # its own message has a name that is no text
        raise IrpruneError("not a valid ONNX model: a name is no UTF-8", where) from refused
    except onnx.checker.ValidationError as refused:
        said = first_line(refused)
        if not any(text in said for text in _NEEDLESS):
            raise IrpruneError(f"not a valid ONNX model: {said}", where) from refused


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """What the checker looks at: ``model`` with empty tensors for those that it stores, and with
    some type for results that have none, which a file can do without."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, whole = light.graph, model.graph
    graph.name = whole.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(whole, field))
    without_notes(graph.node)
    for result in (*graph.output, *graph.value_info):
        if not result.HasField("type"):
            result.type.tensor_type.elem_type = TensorProto.FLOAT
            result.type.tensor_type.shape.SetInParent()
    for t in (*whole.initializer, *(s.values for s in whole.sparse_initializer)):
        graph.initializer.append(_empty(t))
    for body in (g for n in _below(graph.node) for a in n.attribute for g in (a.g, *a.graphs)):
        for t in body.initializer:
            if t.data_location == TensorProto.EXTERNAL:
                t.CopyFrom(_empty(t))
    return light


def _empty(t: TensorProto) -> TensorProto:
    return TensorProto(name=t.name, data_type=TensorProto.FLOAT, dims=[0])


def _check_needed(model: onnx.ModelProto, where: str) -> None:
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    needed: dict[tuple[str, str], list[int]] = {}
    for node in _nodes(model.graph):
        key = (node.domain, node.op_type)
        if not all(isinstance(text, str) for text in (*key, *node.input, *node.output)):
            raise IrpruneError("not a valid ONNX model: a name is no UTF-8", where)
        if key not in needed:
            needed[key] = _needed(node, opsets.get(node.domain or "ai.onnx", 0))
        for i in needed[key]:
            if i < len(node.input) and not node.input[i]:
                raise IrpruneError(
                    f"{target_of(node)} needs its input {i}, which is left out",
                    f"node '{node.name or ', '.join(node.output)}' of {where}",
                )


def _check_calls(model: onnx.ModelProto, where: str) -> None:
    """Raises IrpruneError where a local function calls itself, if by others."""
    held = {(f.domain, f.name): f for f in model.functions}
    calls = {
        key: {(n.domain, n.op_type) for n in _below(f.node)} & held.keys()
        for key, f in held.items()
    }
    while free := [key for key, called in calls.items() if not called]:
        calls = {k: called - set(free) for k, called in calls.items() if k not in free}
    if calls:
        raise IrpruneError(f"the local function '{min(calls)[1]}' calls itself", where)


def _needed(node: onnx.NodeProto, version: int) -> list[int]:
    """The inputs that the operator of ``node`` does not go without."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return []
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return [i for i, formal in enumerate(schema.inputs) if formal.option == single]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of ``graph`` and of the bodies in it."""
    yield from _below(graph.node)


def _below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                waiting += attribute.g.node
            for body in attribute.graphs:
                waiting += body.node
