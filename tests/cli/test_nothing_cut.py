"""A prune that cuts nothing is no success: a warning that says why, and exit code 1; not where
nothing was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import info, model_of, node, tensor

import irprune
import irprune.cli


def branch(name: str) -> onnx.GraphProto:
    nodes = [
        node("Conv", f"x {name}1", f"{name}a", kernel_shape=[9], pads=[4, 4]),
        node("Relu", f"{name}a", f"{name}b"),
        node("Conv", f"{name}b {name}2", f"{name}y", kernel_shape=[1]),
    ]
    tensors = [tensor(f"{name}1", 32, 1, 9), tensor(f"{name}2", 4, 32, 1)]
    return helper.make_graph(nodes, name, [], [info(f"{name}y", 1, 4, 64)], tensors)


def two_nets() -> onnx.ModelProto:
    """A net for each sampling rate, in the branches of an If."""
    nodes = [
        node("Equal", "rate known", "q"),
        node("If", "q", "y", then_branch=branch("t"), else_branch=branch("e")),
    ]
    inputs = [info("x", 1, 1, 64), info("rate", kind=TensorProto.INT64)]
    known = numpy_helper.from_array(np.array(16000), "known")
    return model_of(nodes, inputs, [info("y", 1, 4, 64)], [known])


def test_nothing_cut_is_a_warning_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(two_nets(), path)
    assert irprune.cli.run(["prune", str(path), "-o", str(out)]) == 1
    said = capsys.readouterr()
    assert "warning: nothing was cut: read inside the branches of an If" in said.err
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
    notes = irprune.prune(two_nets()).report.notes
    assert notes[0].startswith("nothing was cut: read inside")
