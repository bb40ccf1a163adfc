"""Outputs in the tail of a sigmoid: float64 decides where rounding is all that onnxruntime
leaves, and a wrong cut still fails."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import info, model_of, node

import irprune
from irprune.emit.onnx.emitter import Emitter
from irprune.errors import CheckFailed
from irprune.validate.onnx_proof import _compared, prove_onnx
from irprune.validate.proof_result import Proof


def steep() -> onnx.ModelProto:
    """A sigmoid that all channels together lift out of its tail, and half of them do not."""
    draw = np.random.default_rng(0).standard_normal
    second = draw((2048, 1)) * 0.1 + 0.0625
    weights = [
        numpy_helper.from_array(draw((8, 2048)).astype("f4"), "a"),
        numpy_helper.from_array(second.astype("f4"), "b"),
        numpy_helper.from_array(np.array([-44.0], "f4"), "c"),
    ]
    nodes = [
        node("MatMul", "x a", "h"),
        node("Sigmoid", "h", "r"),
        node("MatMul", "r b", "s"),
        node("Add", "s c", "t"),
        node("Sigmoid", "t", "y"),
    ]
    return model_of(nodes, [info("x", 4, 8)], [info("y", 4, 1)], weights)


def compared(change: bool = False) -> Proof:
    pruned = irprune.prune(steep(), ratio=0.5, importance="magnitude", proof=False)
    if change:
        weight = pruned.cut.weights["a"]
        load = weight.load
        weight.load = lambda: np.roll(np.asarray(load()), 1, axis=0)
    return _compared(pruned.graph, pruned.cut, 0)[0]


def test_float64_decides() -> None:
    proof = compared()
    assert proof.max_error <= proof.tolerance
    assert proof.dtype == "float64"
    assert proof.float32_error is not None
    assert proof.float32_error > 1e-4
    assert any("all but vanish" in note for note in proof.notes)


def test_a_wrong_cut_fails() -> None:
    proof = compared(change=True)
    assert not proof.max_error <= proof.tolerance


def tail() -> onnx.ModelProto:
    """A map that lies in the tail of a sigmoid, whatever is cut. onnxruntime has no transposed
    convolution in float64, and its sigmoid is right to 1e-8."""
    draw = np.random.default_rng(0).standard_normal
    weights = [
        numpy_helper.from_array((draw((3, 512, 3, 3)) / 5).astype("f4"), "a"),
        numpy_helper.from_array((draw((4, 512, 1, 1)) / 8).astype("f4"), "b"),
        numpy_helper.from_array(np.full(4, -16.0, "f4"), "c"),
    ]
    nodes = [
        node("ConvTranspose", "x a", "h", kernel_shape=[3, 3], pads=[2, 2, 2, 2]),
        node("Relu", "h", "r"),
        node("Conv", "r b c", "s", kernel_shape=[1, 1]),
        node("Sigmoid", "s", "y"),
    ]
    return model_of(nodes, [info("x", 1, 3, 12, 12)], [info("y", 1, 4, 10, 10)], weights)


def test_float64_of_the_graphs_decides_where_onnxruntime_has_none() -> None:
    proof = irprune.prune(tail(), ratio=0.5).report.proof
    assert proof is not None and proof.passed and proof.of_graphs
    assert proof.float32_error is not None and proof.float32_error > 1e-4
    assert proof.second_pass is not None and proof.second_pass.error < 1e-4


def test_the_files_must_agree_too() -> None:
    """Where the second pass cannot be made nothing says that the file is what the graph is."""
    pruned = irprune.prune(tail(), ratio=0.5, proof=False)
    assert not prove_onnx(pruned.graph, pruned.cut, None).passed


def test_a_wrong_file_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    emit = Emitter.emit

    def faulty(self: Emitter) -> onnx.ModelProto:
        model = emit(self)
        relu = next(n for n in model.graph.node if n.op_type == "Relu")
        relu.op_type = "Identity"
        return model

    monkeypatch.setattr(Emitter, "emit", faulty)
    with pytest.raises(CheckFailed):
        irprune.prune(tail(), ratio=0.5)
