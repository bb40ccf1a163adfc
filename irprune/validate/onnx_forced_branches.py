"""The proof of a file whose Ifs were opened: each of its branches that something was cut in is
taken, whatever the inputs decide, in the original and in the cut model alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from irprune.emit.onnx.emitter import Emitter
from irprune.frontend.onnx.closed_branches import is_opened
from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.opened_branches import open_branches
from irprune.ir.axis import leaves
from irprune.ir.graph import Graph, Node, TensorType, Value, Weight
from irprune.ir.selection import Selection
from irprune.ops.choice import guards, is_choice

__all__ = ["Drive", "drive", "drives", "emitted", "take_branches"]

Drive = Mapping[str, bool]  # the branches that are taken, by the first result of the If
_NAMES = {True: "irprune.taken", False: "irprune.not_taken"}


def drives(graph: Graph) -> list[Drive]:
    """Branches to take, one set of them after the other, so that every node that ``graph.kept``
    cuts runs in one of them; none where no If was opened, or nothing in a branch was cut."""
    assert graph.kept is not None
    made: list[dict[str, bool]] = []
    for node, path in guards(graph.nodes, graph.outputs).items():
        if not _is_cut(node, graph.kept):
            continue
        wanted = {choice.out.name: truth for choice, truth in path}
        fit = (m for m in made if all(m.get(k, t) == t for k, t in wanted.items()))
        own = next(fit, None)
        if own is None:
            made.append(wanted)
        else:
            own |= wanted
    return list(made)


def _is_cut(node: Node, kept: Selection) -> bool:
    if any(v.name in kept.dropped for v in node.outputs):
        return True
    return any(
        kept.changes(x)
        for v in node.inputs
        if isinstance(v, Weight)
        for a in v.axes or ()
        for x in leaves(a)
    )


def drive(graph: Graph, taken: Drive) -> Graph:
    """A copy of ``graph`` in which these branches are always taken; itself where there are none."""
    if not taken:
        return graph
    made = graph.copy()
    for node in made.nodes:
        if is_choice(node) and node.out.name in taken:
            node.set_input(0, _constant(made, taken[node.out.name]))
    return made


def _constant(graph: Graph, truth: bool) -> Value:
    name = _NAMES[truth]
    if name not in graph.weights:
        array = np.array(truth)
        weight = Weight(name, TensorType("bool", ()), lambda: array, "constant")
        weight.axes = ()
        graph.add_weight(weight)
    return graph.weights[name]


def take_branches(model: onnx.ModelProto, graph: Graph) -> None:
    """Let ``model``, the opened message behind ``graph``, take the branches that the graph does."""
    names = {name: truth for truth, name in _NAMES.items()}
    taken = {
        node.out.name: node.operand(0).name
        for node in graph.nodes
        if is_choice(node) and node.operand(0).name in names
    }
    for node in model.graph.node:
        if is_opened(node) and node.output[0] in taken:
            node.input[0] = taken[node.output[0]]
    held = {t.name for t in model.graph.initializer}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(names[name]), name)
        for name in dict.fromkeys(taken.values())
        if name not in held
    )


def emitted(cut: Graph) -> tuple[onnx.ModelProto, dict[str, Loader]]:
    """The model of a ``cut`` graph, with the arrays that lie apart from it; its Ifs are opened
    again, so that whoever looks at its nodes sees them all."""
    emitter = Emitter(cut)
    model = emitter.emit()
    opened = open_branches(model)
    return (model if opened is None else opened.model), emitter.data
