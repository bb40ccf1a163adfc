"""A file for the values that some of its inputs always have: branches that these decide are taken
for good.

Models that are served at two sampling rates stand whole in the branches of an ``If`` that asks an
input which rate it is. For one rate the file is the branch, and all of it can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from irprune.frontend.onnx.opened_branches import branch_of
from irprune.frontend.onnx.order import reads
from irprune.ops.onnx.fold import is_choice

__all__ = ["with_branches_taken"]

Array = NDArray[Any]
_SMALL = 4096  # elements of what is computed here: conditions are no tensors of any size


def with_branches_taken(
    model: onnx.ModelProto, values: Mapping[str, Array]
) -> tuple[onnx.ModelProto, int]:
    """A copy of ``model`` in which every ``If`` whose condition follows from ``values`` of inputs
    has the branch that is taken in its place, and how many there were; ``model`` itself where there
    is none. Inputs stay, so that the file is called as before."""
    if not values or not any(is_choice(node.op_type) for node in model.graph.node):
        return model, 0
    known = dict(values)
    for tensor in model.graph.initializer:
        if 0 < np.prod(tensor.dims, dtype=np.int64) <= _SMALL and not tensor.external_data:
            known[tensor.name] = numpy_helper.to_array(tensor)
    todo, done, taken = list(model.graph.node), [], 0
    fresh: list[onnx.TensorProto] = []
    todo.reverse()
    while todo:
        node = todo.pop()
        if is_choice(node.op_type) and node.input[0] in known:
            taken += 1
            branch = branch_of(node, bool(known[node.input[0]].reshape(-1)[0]))
            fresh += branch.initializer
            known |= {
                t.name: numpy_helper.to_array(t)
                for t in branch.initializer
                if np.prod(t.dims, dtype=np.int64) <= _SMALL
            }
            ends = [
                onnx.helper.make_node("Identity", [inside.name], [outside])
                for inside, outside in zip(branch.output, node.output, strict=True)
                if outside
            ]
            todo += [*reversed([*branch.node, *ends])]
            continue
        done.append(node)
        if all(name in known for name in node.input if name) and not any(
            a.HasField("g") or a.graphs for a in node.attribute
        ):
            known |= _computed(node, known, model)
    if not taken:
        return model, 0
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:]
    twin.graph.node.extend(_needed(done, {v.name for v in model.graph.output}))
    twin.graph.initializer.extend(fresh)
    return twin, taken


def _computed(
    node: onnx.NodeProto, known: Mapping[str, Array], model: onnx.ModelProto
) -> dict[str, Array]:
    """The results of ``node`` on known operands; none where they are large or nothing says how."""
    if node.domain not in ("", "ai.onnx") or any(known[n].size > _SMALL for n in node.input if n):
        return {}
    names = list(dict.fromkeys(n for n in node.input if n))
    inputs = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(known[n].dtype), known[n].shape
        )
        for n in names
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.output if n]
    graph = onnx.helper.make_graph([node], "one", inputs, outputs)
    single = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    try:
        made = ReferenceEvaluator(single).run(None, {n: known[n] for n in names})
    except Exception:  # the reference has not every operator, and raises what it likes
        return {}
    return {
        v.name: np.asarray(a) for v, a in zip(outputs, made, strict=True) if np.size(a) <= _SMALL
    }


def _needed(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """Those of the ordered ``nodes`` that ``wanted`` depend on: conditions are read no more."""
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted |= set(reads(node))
            kept.append(node)
    return kept[::-1]
