"""ONNX's own inference over a whole model, without its weights: what it says of a model that cannot
be right."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod

import onnx

from irprune.errors import IrpruneError
from irprune.ops.onnx.fold import LIMIT

__all__ = ["check_types", "without_data", "without_notes"]

_LAST = re.compile(
    r"\(op_type:(?P<kind>[^,)]*)(?:, node name: (?P<name>[^)]*))?\):\s*(?P<why>.*)", re.S
)


def check_types(model: onnx.ModelProto, where: str) -> None:
    """Raises IrpruneError where an operator cannot take what it is given: types, ranks, sizes that
    do not fit.

    What the file declares of results is left aside: onnxruntime does not insist on it either.
    """
    light = without_data(model)
    for out in light.graph.output:
        if out.type.HasField("tensor_type"):
            out.type.tensor_type.ClearField("shape")
    try:
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        RuntimeError,
        ValueError,
    ) as refused:
        text = " ".join(
            str(refused)
            .replace("[ShapeInferenceError]", "")
            .replace("[TypeInferenceError]", "")
            .split()
        )
        found = _LAST.search(text)
        node = f"node '{found['name'] or ''}' ({found['kind']})" if found else "the model"
        why = found["why"] if found else text
        if found and found["kind"] != "Constant" and "(op_type:Constant)" in why:
            # inside ONNX's own function of the operator, which wants an attribute that has a
            # default
            return
        raise IrpruneError(
            f"shape inference fails at {node}: {why.strip()[:200]}",
            where,
            "onnx.checker.check_model may say more",
        ) from refused


def without_notes(nodes: Iterable[onnx.NodeProto]) -> None:
    """Take out what exporters note about ``nodes``, which no check reads: stack traces are most of
    a message without weights, and it is written out and read for each check."""
    for node in nodes:
        node.ClearField("metadata_props")


def without_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which large initializers are inputs: enough for inference, and
    small."""
    light = onnx.ModelProto()
    light.ir_version = max(model.ir_version, 4)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    without_notes(light.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    have = {v.name for v in model.graph.input}
    for t in model.graph.initializer:
        if prod(t.dims) <= LIMIT and t.data_location != onnx.TensorProto.EXTERNAL:
            light.graph.initializer.add().CopyFrom(t)
        elif t.name not in have:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
            )
    return light
