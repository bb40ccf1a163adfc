"""An ONNX model whose Ifs are opened: the nodes and weights of both branches stand in the graph
itself, before a node that chooses between their results, so that they are analysed and cut as all
others are.

Such a message is never written, and never run as it is (``irprune.frontend.onnx.closed_branches``):
a branch that is not taken need not be able to run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import onnx

from irprune.frontend.onnx.order import renamed
from irprune.ir.graph import Graph, Node
from irprune.ops.choice import OPENED, guards, is_choice
from irprune.ops.onnx.fold import is_choice as runs_a_body
from irprune.ops.onnx.importer import multiplies
from irprune.ops.registry import is_product, is_unread, lookup

__all__ = [
    "OpenedBranch",
    "OpenedBranches",
    "OpenedIf",
    "Part",
    "branch_of",
    "open_branches",
    "products_unread",
]


M = TypeVar("M", onnx.TensorProto, onnx.ValueInfoProto)


@dataclass(frozen=True)
class OpenedBranch:
    """A branch as it stands in the file, the parts that took its place in order, its weights there,
    and what names that are others there are in the branch."""

    graph: onnx.GraphProto
    parts: tuple[Part, ...]
    weights: tuple[str, ...]
    names: Mapping[str, str]


@dataclass(frozen=True)
class OpenedIf:
    """An If as it stands in the file, its branches for true and for false, and the index of the
    node that chooses between their results."""

    node: onnx.NodeProto
    branches: tuple[OpenedBranch, OpenedBranch]
    index: int


EXTERNAL = onnx.TensorProto.EXTERNAL
Part = int | OpenedIf  # the index of a node in the opened model, or an If


@dataclass(frozen=True)
class OpenedBranches:
    """``model`` without the Ifs that are worth it, and the ``given`` one as a list of parts."""

    model: onnx.ModelProto
    given: onnx.ModelProto
    parts: tuple[Part, ...]

    def inside(self) -> Iterator[int]:
        """The indices of nodes that stand in a branch, which may never run."""
        waiting = [b for part in self.parts if isinstance(part, OpenedIf) for b in part.branches]
        while waiting:
            for part in waiting.pop().parts:
                if isinstance(part, int):
                    yield part
                else:
                    yield part.index
                    waiting += part.branches


def open_branches(model: onnx.ModelProto, closed: Collection[str] = ()) -> OpenedBranches | None:
    """``model`` with each If opened that has a product of tensors in a branch; None where there is
    none. Others choose between shapes, and stay as they are, and so do those that are ``closed``,
    by the first result in the opened model."""
    walk = _Walk(model, closed)
    if not any(map(walk.opens, model.graph.node)):
        return None
    parts = tuple(walk.parts(model.graph.node, {}))
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend(walk.nodes)
    made.graph.initializer.extend(walk.weights)
    made.graph.value_info.extend(walk.infos)
    return OpenedBranches(made, model, parts)


def branch_of(node: onnx.NodeProto, truth: bool) -> onnx.GraphProto:
    """The branch that an If takes where its condition is ``truth``."""
    name = "then_branch" if truth else "else_branch"
    found: onnx.GraphProto = next(a.g for a in node.attribute if a.name == name)
    return found


def products_unread(graph: Graph) -> set[str]:
    """The first results of the opened Ifs in ``graph`` that were opened for nothing: no product of
    tensors in a branch could be read."""
    useful: set[Node] = set()
    for node, path in guards(graph.nodes, graph.outputs).items():
        entry = lookup(node)
        if entry is not None and is_product(entry) and not is_unread(node):
            useful.update(choice for choice, _ in path)
    return {n.out.name for n in graph.nodes if is_choice(n) and n not in useful}


def _is_worth_it(node: onnx.NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx") or not runs_a_body(node.op_type):
        return False
    branches = [branch_of(node, truth) for truth in (True, False)]
    return not any(b.sparse_initializer for b in branches) and any(
        map(_multiplies, (n for b in branches for n in b.node))
    )


def _multiplies(node: onnx.NodeProto) -> bool:
    """Whether ``node``, or one in a body of it, is a product of tensors."""
    return multiplies(node.op_type) or any(
        map(_multiplies, (n for a in node.attribute for g in (a.g, *a.graphs) for n in g.node))
    )


class _Walk:
    """Writes the nodes of the opened model in order."""

    def __init__(self, model: onnx.ModelProto, closed: Collection[str]) -> None:
        self.closed = closed
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.infos: list[onnx.ValueInfoProto] = []
        graph = model.graph
        self.taken = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        self.taken |= {t.values.name for t in graph.sparse_initializer} | {""}
        self.taken.update(name for n in graph.node for name in n.output)

    def parts(self, nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> Iterator[Part]:
        """What takes the place of ``nodes``, which stand where ``names`` are others."""
        for node in nodes:
            if self.opens(node, names):
                yield self._opened(node, names)
            else:
                self.nodes.append(renamed(node, names))
                yield len(self.nodes) - 1

    def opens(self, node: onnx.NodeProto, names: Mapping[str, str] | None = None) -> bool:
        """Whether ``node`` is an If to open."""
        if not _is_worth_it(node):
            return False
        return (names or {}).get(node.output[0], node.output[0]) not in self.closed

    def _opened(self, node: onnx.NodeProto, names: Mapping[str, str]) -> OpenedIf:
        branches, results = [], []
        for truth in (True, False):
            graph = branch_of(node, truth)
            own = self._own_names(graph)
            inner = {**names, **own}
            for t in graph.initializer:
                self.weights.append(_under(t, own))
            for v in (*graph.value_info, *graph.output):
                if v.name in own:
                    self.infos.append(_under(v, own))
            parts = tuple(self.parts(graph.node, inner))
            back = {new: old for old, new in own.items() if new != old}
            held = tuple(own[t.name] for t in graph.initializer)
            branches.append(OpenedBranch(graph, parts, held, back))
            results += [inner.get(v.name, v.name) for v in graph.output]
        domain, kind = OPENED.split("::")
        made = onnx.NodeProto(name=node.name, op_type=kind, domain=domain)
        made.input.extend([names.get(node.input[0], node.input[0]), *results])
        made.output.extend(names.get(name, name) for name in node.output)
        self.nodes.append(made)
        return OpenedIf(node, (branches[0], branches[1]), len(self.nodes) - 1)

    def _own_names(self, graph: onnx.GraphProto) -> dict[str, str]:
        """What the names that a branch makes are in the opened model: both branches may make the
        same. A weight in another file has a name that no branch has: it will stay in the graph,
        which alone may have such."""
        apart = {t.name for t in graph.initializer if t.data_location == EXTERNAL}
        made = [t.name for t in graph.initializer]
        made += [name for n in graph.node for name in n.output if name]
        own: dict[str, str] = {}
        for name in made:
            fresh, k = name, 1
            while fresh in self.taken or (k == 1 and name in apart):
                k += 1
                fresh = f"{graph.name or 'branch'}/{name}" + (f".{k}" if k > 2 else "")
            self.taken.add(fresh)
            own[name] = fresh
        return own


def _under(message: M, names: Mapping[str, str]) -> M:
    """A copy of ``message`` under its other name."""
    made = type(message)()
    made.CopyFrom(message)
    made.name = names[made.name]
    return made
