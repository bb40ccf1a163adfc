"""The message of an ONNX model: which opset it is of, what its nodes read, and its nodes in an
order that can run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from irprune.errors import IrpruneError

__all__ = [
    "captured",
    "check_opset",
    "opset_of",
    "outer_names",
    "reads",
    "renamed",
    "sort_nodes",
    "subgraphs",
    "target_of",
]

OLDEST = 6


def target_of(node: onnx.NodeProto) -> str:
    """``Conv``, or ``com.microsoft::Gelu`` where the domain is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model imports; 0 where it imports none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that the attributes of ``node`` hold: branches, bodies of loops."""
    for a in node.attribute:
        yield from [a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs


def check_opset(model: onnx.ModelProto, where: str) -> None:
    """Raises IrpruneError where the model says no opset of ONNX, or one that is not served."""
    newest = onnx.defs.onnx_opset_version()
    own = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if not own and not all(n.domain for n in model.graph.node):
        raise IrpruneError("the model does not say which ONNX opset it uses", where)
    for version in own:
        if version > newest:
            raise IrpruneError(
                f"opset {version} is newer than the installed onnx knows ({newest})",
                where,
                "install a newer onnx",
            )
        if version < OLDEST:
            raise IrpruneError(
                f"opset {version} is not served",
                where,
                f"convert it to opset {OLDEST} or newer with onnx.version_converter",
            )


def sort_nodes(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """``model`` with its nodes in an order that can run. Raises IrpruneError for a cycle or an
    unknown name."""
    graph = model.graph
    made = (
        {v.name for v in graph.input}
        | {t.name for t in graph.initializer}
        | {t.values.name for t in graph.sparse_initializer}
        | {""}
    )
    known = set(made)
    in_order = True
    read = [reads(node) for node in graph.node]
    for node, names in zip(graph.node, read, strict=True):
        in_order = in_order and all(name in known for name in names)
        again = next((name for name in node.output if name and name in known), None)
        if again is not None:
            raise IrpruneError(
                f"node '{node.name or node.output[0]}' ({target_of(node)}) makes '{again}', which is there already",
                where,
            )
        known.update(node.output)
    for node, names in zip(graph.node, read, strict=True):
        lost = next((name for name in names if name not in known), None)
        if lost is not None:
            raise IrpruneError(
                f"node '{node.name or node.output[0]}' ({target_of(node)}) reads '{lost}', which nothing makes",
                where,
            )
    for out in graph.output:
        if out.name not in known:
            raise IrpruneError(f"the output '{out.name}' is made by no node", where)
    if in_order:
        return model
    left, order = list(graph.node), []
    while left:
        ready = [n for n in left if all(name in made for name in reads(n))]
        if not ready:
            raise IrpruneError(
                f"the graph has a cycle through node '{left[0].name or left[0].output[0]}' ({target_of(left[0])})",
                where,
            )
        order += ready
        for n in ready:
            made.update(n.output)
        chosen = {id(n) for n in ready}
        left = [n for n in left if id(n) not in chosen]
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:]
    twin.graph.node.extend(order)
    return twin


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that ``node`` reads from its own graph: its inputs, then what its subgraphs
    capture."""
    return [*node.input, *captured(node)]


def captured(node: onnx.NodeProto) -> list[str]:
    """The outer names that the subgraphs of ``node`` read, in order."""
    out: dict[str, None] = {}
    for body in subgraphs(node):
        out.update(dict.fromkeys(outer_names(body)))
    return list(out)


def outer_names(body: onnx.GraphProto) -> list[str]:
    """The names that a subgraph reads and does not make, in order."""
    out: dict[str, None] = {}
    own = {v.name for v in body.input} | {t.name for t in body.initializer} | {""}
    for inner in body.node:
        out.update((name, None) for name in reads(inner) if name not in own)
        own.update(inner.output)
    out.update((v.name, None) for v in body.output if v.name not in own)
    return list(out)


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """``node`` with other ``names`` for what it reads and makes, and for what its subgraphs
    capture; itself where none of them occurs."""
    if not any(name in names for name in (*reads(node), *node.output)):
        return node
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.input[:] = [names.get(name, name) for name in node.input]
    made.output[:] = [names.get(name, name) for name in node.output]
    for body in subgraphs(made):
        _rename_captured(body, names)
    return made


def _rename_captured(body: onnx.GraphProto, names: Mapping[str, str]) -> None:
    own = {v.name for v in body.input} | {t.name for t in body.initializer}
    own.update(name for inner in body.node for name in inner.output)
    outside = {old: new for old, new in names.items() if old not in own}
    inside = [renamed(inner, outside) for inner in body.node]
    del body.node[:]
    body.node.extend(inside)
    for out in body.output:
        out.name = outside.get(out.name, out.name)
