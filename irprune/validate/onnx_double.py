"""ONNX models in float64, where onnxruntime has kernels for it: what is left of a difference there
is no rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.order import opset_of, target_of
from irprune.ops.onnx.float64_forms import DOUBLED, FLOAT_INPUTS, ROUNDS_TO, SINGLE
from irprune.ops.onnx.float_forms import Uncovered
from irprune.validate.onnx_rule_node import RuleNode
from irprune.validate.onnx_widen import widen

__all__ = ["doubled"]

_OLDEST = 12  # the opset that Einsum came with


def doubled(
    model: onnx.ModelProto, data: Mapping[str, Loader]
) -> tuple[onnx.ModelProto, dict[str, Loader]] | None:
    """``model`` and its ``data`` in float64; None for models before opset 12, and where an operator
    is used in a way that is not covered. Whether onnxruntime runs it shows when it is loaded."""
    opset = opset_of(model)
    if opset < _OLDEST:
        return None
    made = onnx.ModelProto()
    made.CopyFrom(model)
    wide = widen(made, data, TensorProto.DOUBLE)
    walk = _Walk(made, opset)
    try:
        walk.write()
    except Uncovered:
        return None
    return made, wide


class _Walk:
    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self.model, self.opset = model, opset
        self.sizes = {t.name: tuple(t.dims) for t in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.count = 0

    def write(self) -> None:
        for node in self.model.graph.node:
            if target_of(node) in SINGLE:
                raise Uncovered("an attribute in float32 that the cut adds")
            for a in node.attribute:
                if a.name == "value" and a.HasField("t"):
                    self.sizes[node.output[0]] = tuple(a.t.dims)
            rule = DOUBLED.get(target_of(node))
            if rule is not None:
                made = rule(_Node(self, node))
                self.nodes.append(helper.make_node("Identity", [made], [node.output[0]]))
                continue
            twin = onnx.NodeProto()
            twin.CopyFrom(node)
            _widen_inside(twin)
            for i in FLOAT_INPUTS.get(target_of(node), ()):
                if i < len(node.input) and node.input[i]:
                    twin.input[i] = self.put("Cast", [node.input[i]], {"to": TensorProto.FLOAT})
            self.nodes.append(twin)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)

    def put(self, kind: str, inputs: list[str], attrs: Mapping[str, Any]) -> str:
        self.count += 1
        name = f"doubled.{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attrs))
        return name


def _widen_inside(node: onnx.NodeProto) -> None:
    """Let an operator that rounds inside to a type of its own use float64 there."""
    name = ROUNDS_TO.get(target_of(node))
    if name is None:
        return
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, TensorProto.DOUBLE)])


class _Node(RuleNode):
    """One node for a rule of ``irprune.ops.onnx.float64_forms``."""

    def __init__(self, walk: _Walk, node: onnx.NodeProto) -> None:
        super().__init__(node, walk.opset, walk.sizes)
        self.walk = walk

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float64)
        return self.walk.put("Constant", [], {"value": numpy_helper.from_array(array)})

    def put(self, kind: str, *inputs: str, **attrs: Any) -> str:
        return self.walk.put(kind, list(inputs), attrs)
