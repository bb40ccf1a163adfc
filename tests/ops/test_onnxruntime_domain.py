"""Operators of onnxruntime's own domain: ruled, or kept as they are with the reason, and listed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import irprune
from irprune.ops.onnx.contrib import FREEZES
from irprune.ops.onnx.importer import SPELLINGS
from irprune.ops.registry import load_table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.docs_hooks import GENERATED

FLOAT = TensorProto.FLOAT


def net(kind: str, inputs: list[str], arrays: dict[str, np.ndarray], **attrs: Any) -> Any:
    """Layers that make ``a``, ``kind`` over ``inputs``, and two layers behind it."""
    draw = np.random.default_rng(0).standard_normal
    made = {"w1": (8, 16), "w4": (12, 4), **dict.fromkeys(arrays, ())}
    held = [
        numpy_helper.from_array(arrays.get(n, draw(s).astype("f4") / 3), n) for n, s in made.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node(kind, inputs, ["c"], domain="com.microsoft", **attrs),
        helper.make_node("MatMul", ["c", "w3"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w4"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [2, 5, 8])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        held,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def array(*shape: int) -> np.ndarray:
    made = np.random.default_rng(len(shape)).standard_normal(shape) / 3
    return made.astype("f4")


def test_the_page_lists_every_operator_once_and_says_what_becomes_of_it() -> None:
    load_table()
    text = GENERATED["onnxruntime"]()
    ruled, frozen = (
        re.findall(r"^\| `(\w+)` \|", part, re.M) for part in text.split("## Kept as they are")
    )
    ours = {t.removeprefix("com.microsoft::") for t in SPELLINGS if t.startswith("com.microsoft")}
    assert set(ruled) == ours - FREEZES.keys() & ours
    assert FREEZES.keys() <= set(frozen) and not set(ruled) & set(frozen)
    assert len(ruled) == len(set(ruled)) > 30 and len(frozen) == len(set(frozen)) > 90
    assert text.startswith(f"{len(ruled)} operators are ruled, {len(frozen)} freeze.")


def test_what_has_no_kernel_here_freezes_by_name_and_what_is_behind_it_is_cut() -> None:
    model = net("BiasSplitGelu", ["a", "b"], {"b": array(16), "w3": array(8, 12)})
    report = irprune.prune(model, ratio=0.5, proof=False).report
    assert [str(g.size) for g in report.groups if not g.frozen] == ["12"]
    reasons = " ".join(str(f.reason) for f in report.frozen)
    assert "com.microsoft::BiasSplitGelu is not cut: onnxruntime has no kernel" in reasons
    with pytest.raises(irprune.errors.IrpruneError, match="no proof is possible"):
        irprune.prune(model, ratio=0.5)


def test_an_operator_of_unknown_shape_freezes_and_costs_nothing() -> None:
    model = net("EngramGate", ["a", "a", "b"], {"b": array(16), "w3": array(16, 12)})
    report = irprune.prune(model, ratio=0.5, proof=False).report
    assert "com.microsoft::EngramGate" in " ".join(str(f.reason) for f in report.frozen)


def test_experts_are_pruned_where_their_input_is_computed() -> None:
    """The hidden channels of all experts, in the middle of a model."""
    arrays = {
        "router": array(10, 3),
        "up": array(3, 20, 16),
        "upb": array(3, 20),
        "down": array(3, 16, 20),
        "w3": array(16, 12),
    }
    names = ["a", "router", "up", "upb", "down"]
    pruned = irprune.prune(net("MoE", names, arrays, k=2), ratio=0.5)
    proof = pruned.report.proof
    assert proof is not None and proof.passed
    kept = pruned.kept
    assert len(kept["up"][1]) == len(kept["down"][2]) == 10  # type: ignore[arg-type]
    assert kept["up"][2] is None and len(kept["w3"][1]) == 6  # type: ignore[arg-type]


def test_places_in_a_table_are_pruned_row_by_row() -> None:
    packed = np.random.default_rng(0).integers(0, 256, 24 * 16 // 2).astype("u1")
    arrays = {"m": packed, "largest": np.abs(array(24)) + 0.5, "w3": array(24, 12)}
    model = net(
        "MatMulBnb4", ["a", "m", "largest"], arrays, N=24, K=16, block_size=16, quant_type=1
    )
    pruned = irprune.prune(model, ratio=0.5)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    assert pruned.report.params.left < 0.75


def test_attention_over_integers_is_pruned_with_its_heads() -> None:
    whole = np.random.default_rng(0).integers(-90, 90, (16, 48)).astype("i1")
    arrays = {
        "m": whole,
        "bias": array(48),
        "scale": np.array(0.02, "f4"),
        "zero": np.array(0, "i1"),
        "w3": array(16, 12),
    }
    model = net(
        "QAttention", ["q", "m", "bias", "s", "scale", "", "z", "zero"], arrays, num_heads=4
    )
    node = helper.make_node("DynamicQuantizeLinear", ["a"], ["q", "s", "z"])
    model.graph.node.insert(1, node)
    pruned = irprune.prune(model, ratio=0.5)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    assert len(pruned.kept["m"][1]) == 24  # type: ignore[arg-type]
