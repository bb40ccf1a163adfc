"""Outputs in the tail of a sigmoid: float64 decides where rounding is all that onnxruntime
leaves, and a wrong cut still fails."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import info, model_of, node

import irprune
from irprune.errors import CheckFailed
from irprune.ir.graph import Graph


def steep() -> onnx.ModelProto:
    """A sigmoid that all channels together lift out of its tail, and half of them do not."""
    draw = np.random.default_rng(0).standard_normal
    second = draw((2048, 1)) * 0.1 + 0.0625
    weights = [
        numpy_helper.from_array(draw((8, 2048)).astype("f4"), "a"),
        numpy_helper.from_array(second.astype("f4"), "b"),
        numpy_helper.from_array(np.array([-42.0], "f4"), "c"),
    ]
    nodes = [
        node("MatMul", "x a", "h"),
        node("Sigmoid", "h", "r"),
        node("MatMul", "r b", "s"),
        node("Add", "s c", "t"),
        node("Sigmoid", "t", "y"),
    ]
    return model_of(nodes, [info("x", 4, 8)], [info("y", 4, 1)], weights)


def test_float64_decides() -> None:
    proof = irprune.prune(steep(), ratio=0.5, importance="magnitude").report.proof
    assert proof is not None
    assert proof.passed
    assert proof.dtype == "float64"
    assert proof.float32_error is not None
    assert proof.float32_error > 1e-4
    assert any("all but vanish" in note for note in proof.notes)


def test_a_wrong_cut_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from irprune.api import calls

    right = calls.cut_graph

    def wrong(graph: Graph) -> Graph:
        made = right(graph)
        weight = made.weights["a"]
        load = weight.load
        weight.load = lambda: np.roll(np.asarray(load()), 1, axis=0)
        return made

    monkeypatch.setattr(calls, "cut_graph", wrong)
    with pytest.raises(CheckFailed):
        irprune.prune(steep(), ratio=0.5, importance="magnitude")
