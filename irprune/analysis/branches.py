"""Residual branches that can go as a whole: attention and feed-forward parts of a transformer, the
branches of residual networks.

A branch is found in any graph by its shape alone: a sum of a value and of what is computed from
that value, where nothing inside is read from outside. Without it the sum is the value itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from irprune.ir.axis import Axis, leaves
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.symbols import backward_slice
from irprune.ops.registry import does_nothing, is_sum

__all__ = ["Branch", "block_ends", "branches_of", "take_out"]

_ALIKE = 2  # branches of the same operators, at least: what stands alone is no repeated part
_LONGEST = 4096  # nodes between a value and the sum


@dataclass(frozen=True)
class Branch:
    """What ``join`` adds to its operand ``stream``.

    Args:
        join: The sum.
        stream: Which of its two operands goes past the branch.
        nodes: The nodes that only the branch needs, in order.
        leaf: A free leaf that the last layer of the branch sums over and that stands nowhere else:
            with nothing of it left the branch gives nothing. None where there is no such leaf.
    """

    join: Node
    stream: int
    nodes: tuple[Node, ...]
    leaf: Axis | None

    @property
    def name(self) -> str:
        """Where its last layer stands in the model: a module path, or the name of its result."""
        made = self.join.operand(1 - self.stream).producer
        inner = [n.origin.scope for n in self.nodes if n.origin.scope]
        outside = self.join.origin.scope
        path = made.origin.scope if made is not None else ""
        path = path or (inner[-1] if inner else "")
        while "." in path:
            parent = path.rpartition(".")[0]
            if outside == parent or outside.startswith(f"{parent}."):
                break
            path = parent
        return path or self.join.outputs[0].name


def branches_of(graph: Graph) -> list[Branch]:
    """The residual branches of an analysed ``graph`` that repeat, in its order."""
    at = {node: i for i, node in enumerate(graph.nodes)}
    outputs = {id(v) for v in graph.outputs}
    found = []
    for node in graph.nodes:
        if is_sum(node) and not any(isinstance(v, Weight) for v in node.inputs):
            for stream in (0, 1):
                inner = _between(node, stream, at, outputs)
                if inner:
                    found.append(Branch(node, stream, inner, _closing(node, stream, inner)))
                    break
    kinds = Counter(_kind(b) for b in found)
    return [b for b in found if kinds[_kind(b)] >= _ALIKE]


def block_ends(graph: Graph) -> set[int]:
    """The numbers of the nodes behind each residual branch, where few values are needed further on;
    in a graph without any, behind each node that reads a weight."""
    joins = {branch.join for branch in branches_of(graph)}
    return {
        number
        for number, node in enumerate(graph.nodes, 1)
        if node in joins or (not joins and any(isinstance(v, Weight) for v in node.inputs))
    }


def take_out(graph: Graph, dropped: Mapping[str, int]) -> Graph:
    """Let what reads a sum read the operand that stays (``dropped`` gives it by the name of the
    sum's result), and remove what nobody needs then; returns ``graph``."""
    for node in list(graph.nodes):
        stays = dropped.get(node.outputs[0].name) if node.outputs else None
        if stays is not None:
            graph.replace(node.out, node.operand(stays))
            graph.remove(node)
    if dropped:
        alive = dict.fromkeys(backward_slice(graph, graph.outputs))
        graph.remove_all([node for node in graph.nodes if node not in alive])
        returned = {id(v) for v in graph.outputs}
        for weight in list(graph.weights.values()):
            if not weight.users and id(weight) not in returned:
                del graph.weights[weight.name]
                graph.removed.update(dict.fromkeys((weight.name, *weight.aliases)))
    return graph


def _kind(branch: Branch) -> tuple[str, ...]:
    return tuple(n.op for n in branch.nodes)


def _between(join: Node, stream: int, at: dict[Node, int], outputs: set[int]) -> tuple[Node, ...]:
    """The nodes from operand ``stream`` of ``join`` to its other operand; none where the other does
    not come from it, or where something outside reads one of them."""
    start, end = join.operand(stream), join.operand(1 - stream)
    first = -1 if start.producer is None else at[start.producer]
    if start.type.shape is None or start.shape != end.shape or end.producer is None:
        return ()
    inside: dict[Node, None] = {}
    waiting = [end.producer]
    reached = False
    while waiting:
        node = waiting.pop()
        if node in inside:
            continue
        if at[node] <= first or len(inside) > _LONGEST:
            continue  # older than the value: masks and tables, which others read as well
        inside[node] = None
        for v in node.inputs:
            if v is start:
                reached = True
            elif v is not None and v.producer is not None:
                waiting.append(v.producer)
    own = _of_stream(start, inside, at)
    if not reached or end.producer not in own:
        return ()
    for node in own:
        for v in node.outputs:
            if id(v) in outputs or any(user not in own and user is not join for user in v.users):
                return ()
    return tuple(sorted(own, key=at.__getitem__))


def _of_stream(start: Value, inside: dict[Node, None], at: dict[Node, int]) -> dict[Node, None]:
    """Those of ``inside`` that depend on ``start``."""
    own: dict[Node, None] = {}
    for node in sorted(inside, key=at.__getitem__):
        if any(v is start or (v is not None and v.producer in own) for v in node.inputs):
            own[node] = None
    return own


def _closing(join: Node, stream: int, inner: tuple[Node, ...]) -> Axis | None:
    """The free leaf that the last layer sums over, all of whose places are in weights that the
    branch alone reads."""
    from irprune.analysis.layers import layer_of

    node = join.operand(1 - stream).producer
    while node is not None and does_nothing(node):
        node = node.operand(0).producer
    layer = layer_of(node) if node is not None else None
    if layer is None or layer.weight.axes is None:
        return None
    summed = [x for d in layer.inputs for x in leaves(layer.weight.axes[d])]
    free = [x for x in summed if x.reason is None and x.size != 1]
    own = dict.fromkeys(inner)
    graph = join.graph
    assert graph is not None
    for leaf in free:
        holders = [
            w
            for w in graph.weights.values()
            if any(leaf in leaves(a) for a in w.axes or ()) and w.kind != "constant"
        ]
        if all(user in own for w in holders for user in w.users):
            return leaf
    return None
