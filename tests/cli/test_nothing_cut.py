"""A prune that cuts nothing is no success: a warning that says why, and exit code 1; not where
nothing was asked for."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import info, model_of, node, tensor

import irprune
import irprune.cli


def looped() -> onnx.ModelProto:
    """A net that stands in the body of a loop."""
    nodes = [
        node("Conv", "s w", "a", kernel_shape=[9], pads=[4, 4]),
        node("Relu", "a", "b"),
        node("Conv", "b v", "s1", kernel_shape=[1]),
        node("Identity", "on", "off"),
    ]
    boolean, one = TensorProto.BOOL, [info("k", kind=TensorProto.INT64)]
    body = helper.make_graph(
        nodes,
        "body",
        [*one, info("on", kind=boolean), info("s", 1, 1, 64)],
        [info("off", kind=boolean), info("s1", 1, 1, 64)],
        [tensor("w", 32, 1, 9), tensor("v", 1, 32, 1)],
    )
    loop = helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)
    inputs = [info("x", 1, 1, 64), info("rounds", kind=TensorProto.INT64)]
    return model_of([loop], inputs, [info("y", 1, 1, 64)], [])


def test_nothing_cut_is_a_warning_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(looped(), path)
    assert irprune.cli.run(["prune", str(path), "-o", str(out)]) == 1
    said = capsys.readouterr()
    assert "warning: nothing was cut: read inside the body of a Loop" in said.err
    assert "note        nothing was cut" in said.out and out.exists()
    for spared in (["--ratio", "0"], ["--macs", "1"]):
        assert irprune.cli.run(["prune", str(path), *spared]) == 0
        assert "nothing was cut" not in capsys.readouterr().err


def test_what_cuts_nothing_on_purpose_is_not_told_to_be_no_faster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No channel is dead, so that nothing is cut: as it should be."""
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    first, second = tensor("w1", 64, 8), tensor("w2", 4, 64)
    nodes = [
        node("Gemm", "x w1", "a", transB=1),
        node("Relu", "a", "b"),
        node("Gemm", "b w2", "y", transB=1),
    ]
    model = model_of(nodes, [info("x", 1, 8)], [info("y", 1, 4)], [first, second])
    onnx.save(model, path)
    assert irprune.cli.run(["prune", str(path), "-o", str(out), "--dead"]) == 0
    said = capsys.readouterr()
    assert "0 groups cut" in said.out and "none of its channels is dead" in said.out
    assert "warning" not in said.err


def test_the_report_says_so_too() -> None:
    notes = irprune.prune(looped()).report.notes
    assert notes[0].startswith("nothing was cut: read inside")


def test_the_reason_is_that_of_the_widths_and_not_of_an_input() -> None:
    """Each stands for one group."""
    nodes = [
        node("Gemm", "x w1", "a", transB=1),
        node("Relu", "a", "b"),
        node("Gemm", "b w2", "y", transB=1),
    ]
    tensors = [tensor("w1", 64, 8), tensor("w2", 4, 64)]
    model = model_of(nodes, [info("x", 1, 8)], [info("b", 1, 64), info("y", 1, 4)], tensors)
    assert irprune.prune(model).report.notes[0] == "nothing was cut: graph output 'b'"
