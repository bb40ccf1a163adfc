"""What onnxruntime says to the standard error stays there only for those who call it themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MARK = "onnxruntime"


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file about which onnxruntime warns: a tensor that nothing reads, a node whose result nobody
    reads, and a declared shape that is not the one it finds."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((16, 3, 3, 3)),
        "b": rng.standard_normal((8, 16, 3, 3)),
        "unused": rng.standard_normal((4, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], "one"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "b"], ["y"], "two"),
    ]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "loud",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, "h", "w"])],
            [numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tmp_path_factory.mktemp("loud") / "loud.onnx"
    onnx.save(made, str(path))
    return path


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Another process, whose standard error is a file descriptor that C++ writes to."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=environment
    )


def test_onnxruntime_itself_warns_about_the_file(loud: Path, tmp_path: Path) -> None:
    """Without this the test below could not fail."""
    code = f"import onnxruntime; onnxruntime.InferenceSession({str(loud)!r})"
    said = run("-c", code, cwd=tmp_path).stderr
    assert "[W:onnxruntime" in said and "unused" in said


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "{file}", "-o", "small.onnx", "--ratio", "0.5"],
        ["prune", "{file}", "-o", "eight.onnx", "--calibration", "data", "--quantize", "int8"],
        ["prune", "{file}", "-o", "folder/"],
        ["validate", "{file}", "{file}"],
        ["bench", "{file}", "--seconds", "0.1"],
        ["inspect", "{file}"],
    ],
    ids=lambda words: " ".join(words[:4]).replace("{file}", ""),
)
def test_no_line_of_it_leaks(loud: Path, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "data").mkdir()
    for k in range(8):
        array = np.random.default_rng(k).standard_normal((1, 3, 12, 12)).astype(np.float32)
        np.save(tmp_path / "data" / f"{k}.npy", array)
    ran = run("-m", "irprune", *(w.format(file=loud) for w in words), cwd=tmp_path)
    assert ran.returncode in (0, 1), ran.stderr
    leaked = [line for line in ran.stderr.splitlines() if f":{MARK}:" in line or "[W:" in line]
    assert leaked == []
    assert not [line for line in ran.stdout.splitlines() if f":{MARK}:" in line]
