"""An If whose branches stand in the graph itself: a node that chooses between their results.

Its operands are the condition, the results of the one branch, then those of the other. What only
one branch needs runs only where that branch is taken, as in the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from irprune.ir.graph import Node, Value

__all__ = ["CHOICE", "OPENED", "Guards", "guards", "is_choice", "shared_start", "sides"]

CHOICE = "choice"  # the entry of the table
OPENED = "irprune::If"  # its name in messages of ONNX that are read and never written

T = TypeVar("T")
Guards = tuple[tuple[Node, bool], ...]


def is_choice(node: Node) -> bool:
    """Whether ``node`` chooses between the results of two branches that stand in its graph."""
    return node.op == CHOICE


def sides(node: Node) -> tuple[list[Value], list[Value]]:
    """The results of the branch for true and of that for false, one of each for each result of
    the If."""
    half = len(node.inputs) // 2
    values = [node.operand(i) for i in range(1, len(node.inputs))]
    return values[:half], values[half:]


def guards(nodes: Sequence[Node], wanted: Iterable[Value]) -> dict[Node, Guards]:
    """Under which conditions the ordered ``nodes`` run, the outermost first: the choices, and the
    truth that each of them must find, through which alone a node leads to ``wanted`` values.

    Nodes that always run are left out, and those that lead to none of them."""
    if not any(map(is_choice, nodes)):
        return {}
    paths: dict[int, Guards] = {id(v): () for v in wanted}
    found: dict[Node, Guards] = {}

    def use(value: Value | None, path: Guards) -> None:
        if value is not None:
            paths[id(value)] = shared_start(paths.get(id(value), path), path)

    for node in reversed(nodes):
        read = [paths[id(v)] for v in node.outputs if id(v) in paths]
        if not read:
            continue
        path = read[0]
        for other in read[1:]:
            path = shared_start(path, other)
        if path:
            found[node] = path
        if is_choice(node):
            use(node.operand(0), path)
            for truth, results in zip((True, False), sides(node), strict=True):
                for result in results:
                    use(result, (*path, (node, truth)))
        else:
            for value in node.inputs:
                use(value, path)
    return found


def shared_start(a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    """What two tuples begin with alike."""
    n = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    return a[: min(len(a), len(b)) if n is None else n]
