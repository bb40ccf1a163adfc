"""A graph whose Ifs stand in it with their branches, as one of nodes that hold their branches: what
a program can be written of, in which a branch that is not taken does not run."""

from __future__ import annotations

from collections.abc import Sequence

from irprune.ir.body import Body
from irprune.ir.graph import Graph, Node, Value
from irprune.ops.choice import guards, is_choice, sides

__all__ = ["put_into_bodies"]


def put_into_bodies(graph: Graph) -> None:
    """Let nodes of ``graph`` that only one branch of an If needs stand in a body of it."""
    guarded = guards(graph.nodes, graph.outputs)
    outermost = [n for n in graph.nodes if is_choice(n) and n not in guarded]
    for choice in outermost:
        _put(
            graph,
            choice,
            [
                [n for n in graph.nodes if guarded.get(n, ())[:1] == ((choice, truth),)]
                for truth in (True, False)
            ],
        )


def _put(graph: Graph, choice: Node, branches: Sequence[list[Node]]) -> None:
    operands: list[Value] = [choice.operand(0)]
    bodies = [
        _body(nodes, results, operands)
        for nodes, results in zip(branches, sides(choice), strict=True)
    ]
    attrs = {**choice.attrs, "own": 1, "then": bodies[0], "other": bodies[1]}
    types = [(v.name, v.type) for v in choice.outputs]
    made = graph.add("branch", operands, attrs, types, choice.origin, before=choice)
    for old, new in zip(choice.outputs, made.outputs, strict=True):
        graph.replace(old, new)
    graph.remove_all([*branches[0], *branches[1], choice])


def _body(nodes: Sequence[Node], results: Sequence[Value], operands: list[Value]) -> Body:
    """The body of ``nodes`` that gives ``results``; what it reads from outside joins the
    ``operands``."""
    inner = Graph("branch")
    held: dict[Value, Value] = {}
    outer: list[int] = []

    def inside(value: Value) -> Value:
        if value not in held:
            held[value] = inner.add_input(value.name, value.type)
            if value not in operands:
                operands.append(value)
            outer.append(operands.index(value))
        return held[value]

    for node in nodes:
        read = [None if v is None else inside(v) for v in node.inputs]
        types = [(v.name, v.type) for v in node.outputs]
        made = inner.add(node.op, read, node.attrs, types, node.origin)
        held.update(zip(node.outputs, made.outputs, strict=True))
    inner.outputs = [inside(v) for v in results]
    put_into_bodies(inner)
    return Body(inner, tuple(outer))
