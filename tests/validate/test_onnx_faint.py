"""Outputs in the tail of a sigmoid: float64 decides where rounding is all that onnxruntime
leaves, and a wrong cut still fails."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from onnx_models import info, model_of, node

import irprune
from irprune.validate.onnx_proof import _compared
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
