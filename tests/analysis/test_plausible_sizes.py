"""Sizes that are known only at run time: what costs are counted at, what a proof is made at, and
what is said of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import info, int64, model_of, node, tensor

import irprune
import irprune.cli
from irprune.errors import IrpruneError


def image(size: int | str) -> onnx.ModelProto:
    """Convolutions, whose cost depends on the image, before matrices, whose cost does not."""
    nodes = [
        node("Conv", "x w1", "a", kernel_shape=[3, 3], pads=[1] * 4),
        node("Relu", "a", "b"),
        node("Conv", "b w2", "c", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        node("GlobalAveragePool", "c", "d"),
        node("Flatten", "d", "f"),
        node("Gemm", "f w3", "g", transB=1),
        node("Relu", "g", "h"),
        node("Gemm", "h w4", "y", transB=1),
    ]
    tensors = [tensor("w1", 8, 3, 3, 3), tensor("w2", 16, 8, 3, 3)]
    tensors += [tensor("w3", 512, 16), tensor("w4", 10, 512)]
    return model_of(nodes, [info("x", 1, 3, size, size)], [info("y", 1, 10)], tensors)


def long_kernel() -> onnx.ModelProto:
    """No padding: shorter than the kernel there is nothing to compute."""
    nodes = [
        node("Conv", "x w1", "a", kernel_shape=[64], strides=[16]),
        node("Relu", "a", "b"),
        node("Conv", "b w2", "y", kernel_shape=[1]),
    ]
    tensors = [tensor("w1", 32, 1, 64), tensor("w2", 4, 32, 1)]
    return model_of(nodes, [info("x", "b", 1, "t")], [info("y", "b", 4, "u")], tensors)


def reflected() -> onnx.ModelProto:
    """Padding by reflection takes no fewer than 33 steps."""
    nodes = [
        node("Pad", "x p", "padded", mode="reflect"),
        node("Conv", "padded w1", "a", kernel_shape=[9]),
        node("Relu", "a", "b"),
        node("Conv", "b w2", "y", kernel_shape=[1]),
    ]
    tensors = [tensor("w1", 32, 1, 9), tensor("w2", 4, 32, 1), int64("p", 0, 0, 32, 0, 0, 32)]
    return model_of(nodes, [info("x", "b", 1, "t")], [info("y", "b", 4, "u")], tensors)


def neck() -> onnx.ModelProto:
    """A branch of half the size, doubled again: both agree where the size is a multiple of 4."""
    nodes = [
        node("Conv", "x w1", "a", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        node("Relu", "a", "b"),
        node("Conv", "b w2", "c", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        node("Relu", "c", "d"),
        onnx.helper.make_node("Resize", ["d", "", "twice"], ["e"], mode="nearest"),
        node("Concat", "e b", "f", axis=1),
        node("Conv", "f w3", "y", kernel_shape=[1, 1]),
    ]
    twice = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice")
    tensors = [tensor("w1", 16, 3, 3, 3), tensor("w2", 32, 16, 3, 3), tensor("w3", 8, 48, 1, 1)]
    given, made = info("x", "n", 3, "height", "width"), info("y", "n", 8, "oh", "ow")
    return model_of(nodes, [given], [made], [*tensors, twice])


def numbers_of(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, object]:
    assert irprune.cli.run([*command, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_budget_is_met_at_the_sizes_that_were_given(tmp_path: Path) -> None:
    x = np.zeros((1, 3, 24, 24), np.float32)
    fixed = irprune.prune(image(24), budget={"macs": 0.5})
    opened = irprune.prune(image("s"), kwargs={"x": x}, budget={"macs": 0.5})
    assert opened.report.sizes == "x: 1x3x24x24" and fixed.report.sizes == ""
    assert opened.report.macs == fixed.report.macs and opened.report.macs.left <= 0.5
    assert [g.kept for g in opened.report.groups] == [g.kept for g in fixed.report.groups]


def test_all_commands_count_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(image("s"), path)
    for sizes in ([], ["--input", "x=1x3x40x40"]):
        seen = numbers_of(capsys, "inspect", str(path), *sizes)
        pruned = numbers_of(capsys, "prune", str(path), *sizes)
        assert seen["macs"] == pruned["macs"]["before"]  # type: ignore[index]
        assert seen["sizes"] == pruned["sizes"] == f"x: 1x3x{'40x40' if sizes else '224x224'}"
    timed = numbers_of(capsys, "bench", str(path), *sizes, "--seconds", "0")
    assert timed["macs"] == seen["macs"]


@pytest.mark.parametrize("build", [long_kernel, reflected, neck])
def test_what_does_not_run_at_two_is_counted_and_proven_elsewhere(
    build: Callable[[], onnx.ModelProto],
) -> None:
    pruned = irprune.prune(build(), ratio=0.5)
    report = pruned.report
    assert report.proof is not None and report.proof.passed and not report.proof.vacuous
    assert 0 < report.macs.after < report.macs.before and report.activation.after > 0
    assert report.sizes.startswith("x: 1x") and f"MACs at     {report.sizes}" in str(report)


def test_the_right_number_of_products_of_a_long_kernel() -> None:
    """(512 - 64) // 16 + 1 = 29 positions of 32 * 64 + 4 * 32 products."""
    pruned = irprune.prune(long_kernel(), kwargs={"x": np.zeros((1, 1, 512), np.float32)})
    assert pruned.report.macs.before == 29 * (32 * 64 + 4 * 32)


def test_a_proof_at_a_size_that_the_file_does_not_take_says_so() -> None:
    with pytest.raises(IrpruneError, match=r"at x: 1x1x20.*give example inputs \(args\) of sizes"):
        irprune.prune(reflected(), kwargs={"x": np.zeros((1, 1, 20), np.float32)})


def test_sizes_that_contradict_the_file_are_refused() -> None:
    with pytest.raises(IrpruneError, match="'s' is 24 in another place"):
        irprune.prune(image("s"), kwargs={"x": np.zeros((1, 3, 24, 32), np.float32)})
    with pytest.raises(IrpruneError, match="no input is called 'z'"):
        irprune.prune(image("s"), kwargs={"z": np.zeros((1, 3, 24, 32), np.float32)})
