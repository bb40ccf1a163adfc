"""An If that an input decides: with the input's value the file is the branch that is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import irprune
import irprune.cli


def branch(name: str, width: int, seed: int, inner: list[Any] | None = None) -> onnx.GraphProto:
    draw = np.random.default_rng(seed).standard_normal
    weights = [
        numpy_helper.from_array(draw((width, 1, 9)).astype("f4"), f"{name}_w"),
        numpy_helper.from_array(draw((4, width, 1)).astype("f4"), f"{name}_v"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", f"{name}_w"], [f"{name}_a"], kernel_shape=[9], pads=[4, 4]),
        helper.make_node("Relu", [f"{name}_a"], [f"{name}_b"]),
        helper.make_node("Conv", [f"{name}_b", f"{name}_v"], [f"{name}_y"], kernel_shape=[1]),
    ]
    y = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, 4, 64])
    return helper.make_graph(inner or nodes, name, [], [y], [] if inner else weights)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three nets, told apart by two nested questions for ``rate``."""
    ask = [
        helper.make_node("Constant", [], ["low"], value_int=8000),
        helper.make_node("Equal", ["rate", "low"], ["is_low"]),
        helper.make_node(
            "If",
            ["is_low"],
            ["rest_y"],
            then_branch=branch("low8", 16, 1),
            else_branch=branch("other", 8, 2),
        ),
    ]
    nodes = [
        helper.make_node("Equal", ["rate", "high"], ["is_high"]),
        helper.make_node(
            "If",
            ["is_high"],
            ["y"],
            then_branch=branch("high16", 32, 0),
            else_branch=branch("rest", 0, 0, ask),
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "speech",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 64]),
            helper.make_tensor_value_info("rate", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 64])],
        [numpy_helper.from_array(np.array(16000), "high")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def run(path: Path, rate: int) -> Any:
    x = np.random.default_rng(5).standard_normal((1, 1, 64)).astype("f4")
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {"x": x, "rate": np.array(rate)})[0]


@pytest.mark.parametrize(("rate", "width"), [(16000, 32), (8000, 16), (44100, 8)])
def test_the_branch_is_the_file(file: Path, tmp_path: Path, rate: int, width: int) -> None:
    whole = irprune.prune(file, (), {"rate": np.array(rate)}, ratio=0)
    np.testing.assert_array_equal(run(whole.onnx(tmp_path / "whole.onnx"), rate), run(file, rate))
    half = irprune.prune(file, (), {"rate": np.array(rate)}, ratio=0.5)
    assert [(g.size, g.kept) for g in half.report.groups] == [(width, width // 2)]
    assert half.report.proof.passed  # type: ignore[union-attr]
    assert any(f"for rate={rate} alone" in note for note in half.report.notes)
    assert {n.op_type for n in onnx.load(half.onnx(tmp_path / "half.onnx")).graph.node} <= {
        "Conv",
        "Relu",
        "Identity",
    }


def test_the_command_line_takes_a_value(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "small.onnx")
    assert irprune.cli.run(["prune", str(file), "--input", "rate=16000", "-o", out]) == 0
    assert "for rate=16000 alone" in " ".join(capsys.readouterr().out.split())
    assert run(Path(out), 16000).shape == (1, 4, 64)
    assert irprune.cli.run(["prune", str(file), "-o", out]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 groups cut" in said and "(50.0%)" in said
    assert [run(Path(out), rate).shape for rate in (16000, 8000, 44100)] == [(1, 4, 64)] * 3


def test_what_says_unknown_makes_no_sizes_the_same(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["?", 3, "?", "?"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["?", 4, "?", "?"])
    draw = np.random.default_rng(0).standard_normal
    weights = [
        numpy_helper.from_array(draw((16, 3, 3, 3)).astype("f4"), "a"),
        numpy_helper.from_array(draw((4, 16, 1, 1)).astype("f4"), "b"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Conv", ["h", "b"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    report = irprune.prune(model, (), {"x": np.zeros((1, 3, 48, 192), "f4")}).report
    assert report.sizes == "x: 1x3x48x192"
