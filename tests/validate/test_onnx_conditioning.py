"""A badly conditioned file: float64 tells rounding from a fault."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import irprune
from irprune.emit.onnx.emitter import Emitter
from irprune.errors import CheckFailed

FLOAT = TensorProto.FLOAT


def cancelling() -> onnx.ModelProto:
    """The same sum by two ways, of which the difference is small: digits of float32 cancel."""
    draw = np.random.default_rng(0).standard_normal
    v = draw((4096, 10)) / 60
    upper = np.where(np.arange(4096)[:, None] < 1700, v, 0)
    arrays = {"w": draw((64, 4096)) / 8, "v": v, "upper": upper, "lower": v - upper, "s": 1e-4}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("MatMul", ["b", "upper"], ["d"]),
        helper.make_node("MatMul", ["b", "lower"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["f"]),
        helper.make_node("Sub", ["c", "f"], ["g"]),
        helper.make_node("Mul", ["c", "s"], ["h"]),
        helper.make_node("Add", ["g", "h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [64, 64])],
        [helper.make_tensor_value_info("y", FLOAT, [64, 10])],
        [numpy_helper.from_array(np.asarray(a, "f4"), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_float64_decides_where_float32_rounds_as_much() -> None:
    proof = irprune.prune(cancelling(), ratio=0.5).report.proof
    assert proof is not None and proof.passed
    assert proof.dtype == "float64" and proof.float32_error is not None
    assert proof.float32_error > 1e-4 and proof.max_error < 1e-9
    assert any(note.startswith("badly conditioned: float32 rounds") for note in proof.notes)


def test_a_fault_still_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    emit = Emitter.emit

    def faulty(self: Emitter) -> onnx.ModelProto:
        model = emit(self)
        relu = next(n for n in model.graph.node if n.op_type == "Relu")
        relu.output[0] = "unscaled"
        model.graph.initializer.append(numpy_helper.from_array(np.float32([1.001]), "scale"))
        made = helper.make_node("Mul", ["unscaled", "scale"], ["b"])
        model.graph.node.insert(list(model.graph.node).index(relu) + 1, made)
        return model

    monkeypatch.setattr(Emitter, "emit", faulty)
    with pytest.raises(CheckFailed):
        irprune.prune(cancelling(), ratio=0.5)
