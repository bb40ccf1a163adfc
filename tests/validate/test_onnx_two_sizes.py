"""The proof of a file with open sizes is made at two of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import irprune
from irprune.emit.onnx.emitter import Emitter
from irprune.errors import CheckFailed

FLOAT = TensorProto.FLOAT


def net(
    shape: list[Any], middle: list[onnx.NodeProto] | None = None, **more: np.ndarray
) -> onnx.ModelProto:
    """Two convolutions with ``middle`` (from "b" to "c") between them."""
    draw = np.random.default_rng(0).standard_normal
    arrays = {"w": draw((16, 3, 3, 3)), "v": draw((4, 16, 1, 1))}
    held = [numpy_helper.from_array(a.astype("f4"), n) for n, a in arrays.items()]
    held += [numpy_helper.from_array(a, n) for n, a in more.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        *(middle or [helper.make_node("Identity", ["b"], ["c"])]),
        helper.make_node("Conv", ["c", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, [None] * 4)],
        held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_two_sizes_are_proven_and_shown() -> None:
    pruned = irprune.prune(net(["n", 3, "h", "w"]), ratio=0.5)
    proof = pruned.report.proof
    assert proof is not None and proof.passed and proof.second_pass is not None
    assert proof.other_sizes == "x: 3x3x3x3" and "3x3x3x3" in str(proof.as_dict())
    given = irprune.prune(net(["n", 3, "h", "w"]), np.zeros((1, 3, 64, 96), "f4"), ratio=0.5)
    assert given.report.proof is not None
    assert given.report.proof.other_sizes == "x: 2x3x16x24"


def test_a_file_of_fixed_sizes_has_one() -> None:
    proof = irprune.prune(net([1, 3, 8, 8]), ratio=0.5).report.proof
    assert proof is not None and proof.passed and proof.other_sizes == ""


def test_where_no_other_size_runs_the_report_says_so() -> None:
    """A table that is added fits images of one size."""
    middle = [helper.make_node("Add", ["b", "table"], ["c"])]
    table = np.ones((1, 1, 6, 8), "f4")
    model = net(["n", 3, "h", "w"], middle, table=table)
    pruned = irprune.prune(model, np.zeros((1, 3, 6, 8), "f4"), ratio=0.5)
    proof = pruned.report.proof
    assert proof is not None and proof.passed
    assert proof.other_sizes == "x: 2x3x6x8"  # the batch alone
    alone = net([1, 3, "h", "w"], middle, table=table)
    proof = irprune.prune(alone, np.zeros((1, 3, 6, 8), "f4"), ratio=0.5).report.proof
    assert proof is not None and proof.passed and proof.other_sizes == ""
    assert any("proven at one size, x: 1x3x6x8" in note for note in proof.notes)


def test_what_is_right_at_one_size_alone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault is planted: the file that goes out pads for the size of the first pass."""
    emit = Emitter.emit

    def faulty(self: Emitter) -> onnx.ModelProto:
        model = emit(self)
        node = next(n for n in model.graph.node if n.op_type == "Identity")
        at = list(model.graph.node).index(node)
        shape = numpy_helper.from_array(np.array([2, 8, 6, 8], "i8"), "held")
        model.graph.initializer.append(shape)
        made = helper.make_node("Expand", ["b", "held"], ["c"])
        model.graph.node.remove(node)
        model.graph.node.insert(at, made)
        return model

    monkeypatch.setattr(Emitter, "emit", faulty)
    x = np.zeros((2, 3, 6, 8), "f4")
    with pytest.raises(CheckFailed):
        irprune.prune(net(["n", 3, "h", "w"]), x, ratio=0.5)
