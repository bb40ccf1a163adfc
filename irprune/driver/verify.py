"""The verifier: whether a graph is what it claims to be.

Structure first (single assignment, order, use-def, names), then what the analysis left (axes and
choice against types), then the types themselves, worked out again by the rules of the operator
table and, on request, by torch's meta kernels."""

from __future__ import annotations

from collections.abc import Iterator

from irprune.base.moved import renamed
from irprune.ir.axis import Axis, find, leaves
from irprune.ir.graph import Graph, GraphError, Node, Value, Weight
from irprune.ir.size import same
from irprune.ir.text import excerpt
from irprune.passes.infer_axes import InferAxes

__all__ = ["Fault", "InvalidGraph", "faults", "verify"]

__getattr__ = renamed(__name__, {"Broken": "InvalidGraph"})

Fault = tuple[Node | Value | None, str]
_SHOWN = 5  # faults that an error shows in place


class InvalidGraph(GraphError):
    """A graph that is not sound. ``faults`` says what is wrong with which node or value; the text
    shows the lines about them."""

    def __init__(self, graph: Graph, found: list[Fault]) -> None:
        self.faults = found
        self.first = _message(*found[0])
        marks: dict[Node | Value, str] = {}
        for about, text in found[:_SHOWN]:
            place = about if isinstance(about, Node) or about is None else about.producer or about
            if place is not None:
                marks[place] = f"{marks[place]}; {text}" if place in marks else text
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        self.excerpt = excerpt(graph, marks)
        super().__init__(f"{self.first}{more}\n{self.excerpt}".rstrip())


def _message(about: Node | Value | None, text: str) -> str:
    if about is None:
        return text
    name = (
        f"%{about.name}"
        if isinstance(about, Value)
        else f"%{about.out.name}"
        if about.outputs
        else about.op
    )
    where = (
        f" at {about.where}"
        if isinstance(about, Node) and about.where not in (name[1:], about.op)
        else ""
    )
    return f"{name}{where}: {text}"


def verify(graph: Graph, deep: bool = False) -> None:
    """Raise Broken where ``graph`` is not sound. ``deep`` asks torch's meta kernels for every
    result's type as well (imports torch)."""
    found = list(faults(graph))
    if not found and deep:
        from irprune.run.meta import type_faults

        found = list(type_faults(graph))
    if found:
        raise InvalidGraph(graph, found)


def faults(graph: Graph) -> list[Fault]:
    """What is wrong, in the order of the graph; types are looked at only where the structure is
    sound."""
    return list(_structure(graph)) or [*_analysis(graph), *_types(graph)]


def _structure(graph: Graph) -> Iterator[Fault]:
    names: dict[str, Value] = {}
    uses: dict[Value, dict[Node, int]] = {}
    known: dict[Value, None] = {}
    for value in (*graph.inputs, *graph.weights.values()):
        yield from _named(value, names)
        known[value] = None
        if value.producer is not None:
            yield value, f"an input or a weight is made by {value.producer.op}"
    for key, weight in graph.weights.items():
        if not isinstance(weight, Weight) or weight.name != key:
            yield weight, f"the weight stands under the name {key!r}"
    for node in graph.nodes:
        if node.graph is not graph:
            yield node, "the node belongs to another graph"
        for operand in node.inputs:
            if operand is None:
                continue
            uses.setdefault(operand, {})[node] = uses.get(operand, {}).get(node, 0) + 1
            if operand not in known:
                made = operand.producer is not None and operand.producer in graph.nodes
                yield (
                    node,
                    f"%{operand.name} is read before it is made"
                    if made
                    else f"%{operand.name} is not of this graph",
                )
        for i, value in enumerate(node.outputs):
            yield from _named(value, names)
            if value.producer is not node or value.index != i:
                yield node, f"result {i} says that another node makes it"
            known[value] = None
    for value in known:
        if value.users != uses.get(value, {}):
            yield (
                value,
                f"{sum(value.users.values())} uses are recorded, {sum(uses.get(value, {}).values())} found",
            )
    for value in graph.outputs:
        if value not in known:
            yield None, f"the graph returns %{value.name}, which is not of this graph"


def _named(value: Value, names: dict[str, Value]) -> Iterator[Fault]:
    if not value.name:
        yield value, "a value without a name"
    elif value.name in names:
        yield value, "two values have this name"
    names[value.name] = value


def _analysis(graph: Graph) -> Iterator[Fault]:
    """Axes against types, the choice against axes."""
    if graph.axes is None:
        if graph.kept is not None or graph.scores:
            yield None, "there is a choice or a score, but no axes"
        return
    for value in graph.values():
        shape = value.type.shape
        if value.axes is None or shape is None:
            continue
        if len(value.axes) != len(shape):
            yield value, f"{len(value.axes)} axes for {len(shape)} dimensions"
            continue
        for d, (a, s) in enumerate(zip(value.axes, shape, strict=True)):
            if not same(find(a).size, s):
                yield value, f"dimension {d} has size {s}, its axis {find(a).size}"
    if graph.kept is not None:
        standing: dict[Axis, Value] = {}
        for value in graph.values():
            for a in value.axes or ():
                standing.update((x, value) for x in leaves(a) if x not in standing)
        for x in graph.kept.choice:
            if x not in standing:
                yield None, f"the choice names {x!r}, which is no axis of this graph"
            elif x.reason is not None:
                yield (
                    standing[x],
                    f"something is dropped of an axis that may not change: {x.reason}",
                )


def _types(graph: Graph) -> Iterator[Fault]:
    """The rules run on a copy: each result's type against the sizes of the axes they give it."""
    twin = graph.copy()
    InferAxes().run(twin)
    assert twin.axes is not None
    clashes = twin.axes.clashes
    for node, copied in zip(graph.nodes, twin.nodes, strict=True):
        if copied in clashes:
            yield node, clashes[copied]
        for value, other in zip(node.outputs, copied.outputs, strict=True):
            shape, axes = value.type.shape, other.axes
            if shape is None or axes is None:
                continue
            if len(shape) != len(axes) or not all(
                same(s, find(a).size) for s, a in zip(shape, axes, strict=True)
            ):
                yield (
                    value,
                    f"the type is {value.type}, the rule of {node.op} gives [{', '.join(str(find(a).size) for a in axes)}]",
                )
