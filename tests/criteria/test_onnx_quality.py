"""Criteria and repairs on an ONNX file: convolutions of all kinds and an attention, with nothing
but arrays as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

import irprune
from irprune.criteria import criteria
from irprune.passes.repair_batch_norm import RepairBatchNorm
from irprune.run.calibration import Calibration
from irprune.run.interpret import evaluate

Array = np.ndarray[Any, Any]
WEAK = 5  # this channel of the first convolution is small wherever it is made and read


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolution, batch norm, grouped, depthwise and transposed convolution, attention of three
    heads, a classifier."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    held: dict[str, Array] = {}

    def weight(name: str, *shape: int, gain: float = 1.5) -> Array:
        held[name] = (draw.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))).astype(
            np.float32
        )
        return held[name]

    x = torch.from_numpy(samples(2, 512))

    def convolved(
        name: str, x: torch.Tensor, *shape: int, norm: str = "", groups: int = 1, faint: Any = None
    ) -> torch.Tensor:
        kernel = weight(name, *shape)
        if faint is not None:
            kernel[faint] *= 0.01
        y = F.conv2d(x, torch.from_numpy(kernel), padding=1, groups=groups)
        if norm:
            mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3))
            held.update(
                {
                    f"{norm}.mean": mean.numpy(),
                    f"{norm}.variance": variance.numpy(),
                    f"{norm}.scale": np.ones(16, np.float32),
                    f"{norm}.offset": np.full(16, 0.2, np.float32),
                }
            )
            if faint is not None:
                held[f"{norm}.scale"][WEAK], held[f"{norm}.offset"][WEAK] = 0.01, 0.0
            gains = (
                torch.from_numpy(held[f"{norm}.{k}"])
                for k in ("mean", "variance", "scale", "offset")
            )
            y = F.batch_norm(y, *gains)
        return y.relu()

    x = convolved("c1", x, 16, 3, 3, 3, norm="n1", faint=WEAK)
    x = convolved("c2", x, 16, 4, 3, 3, groups=4, faint=(slice(4, 8), WEAK - 4))
    x = convolved("depth", x, 16, 1, 3, 3, norm="n2", groups=16)
    weight("turned", 16, 12, 2, 2, gain=6.0)
    for name in ("q", "k", "v", "o"):
        weight(name, 12, 12)
    weight("head", 12, 5, gain=3.0)
    for name, shape in (("seq", (0, 12, -1)), ("split", (0, 0, 3, 4)), ("joined", (0, 0, 12))):
        held[name] = np.array(shape)
    held["half"] = np.array(0.5, np.float32)

    for name, size in (("c2", 16), ("head", 5)):
        held[f"{name}.bias"] = np.zeros(size, np.float32)

    def norms(name: str) -> list[str]:
        return [f"{name}.{k}" for k in ("scale", "offset", "mean", "variance")]

    node, same = helper.make_node, [1, 1, 1, 1]
    nodes = [
        node("Conv", ["x", "c1"], ["a0"], pads=same),
        node("BatchNormalization", ["a0", *norms("n1")], ["a1"]),
        node("Relu", ["a1"], ["a"]),
        node("Conv", ["a", "c2", "c2.bias"], ["b0"], pads=same, group=4),
        node("Relu", ["b0"], ["b"]),
        node("Conv", ["b", "depth"], ["d0"], pads=same, group=16),
        node("BatchNormalization", ["d0", *norms("n2")], ["d1"]),
        node("Relu", ["d1"], ["d"]),
        node("ConvTranspose", ["d", "turned"], ["t0"], strides=[2, 2]),
        node("Relu", ["t0"], ["t"]),
        node("Reshape", ["t", "seq"], ["s0"]),
        node("Transpose", ["s0"], ["s"], perm=[0, 2, 1]),
    ]
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["s", name], [f"{name}0"]),
            node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [f"{name}2"], perm=order),
        ]
    nodes += [
        node("MatMul", ["q2", "k2"], ["m0"]),
        node("Mul", ["m0", "half"], ["m1"]),
        node("Softmax", ["m1"], ["m2"], axis=-1),
        node("MatMul", ["m2", "v2"], ["m3"]),
        node("Transpose", ["m3"], ["m4"], perm=[0, 2, 1, 3]),
        node("Reshape", ["m4", "joined"], ["m5"]),
        node("MatMul", ["m5", "o"], ["o0"]),
        node("Add", ["s", "o0"], ["r"]),
        node("ReduceMean", ["r"], ["p"], axes=[1], keepdims=0),
        node("Gemm", ["p", "head", "head.bias"], ["y"]),
    ]
    inputs, outputs = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", ["n", 3, 4, 4]), ("y", ["n", 5]))
    )
    graph = helper.make_graph(
        nodes,
        "small",
        [inputs],
        [outputs],
        [numpy_helper.from_array(a, n) for n, a in held.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    file = tmp_path_factory.mktemp("onnx") / "small.onnx"
    onnx.save(made, file)
    return file


def samples(seed: int, count: int = 96) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 4, 4)).astype(np.float32)


def outputs(file: Path, x: Array) -> Array:
    y: Array = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]
    return y


@pytest.mark.parametrize("name", sorted(set(criteria()) - {"random", "uniform", "fpgm"}))
def test_a_weak_channel_of_a_file_goes_first(model: Path, name: str, tmp_path: Path) -> None:
    pruned = irprune.prune(model, importance=name, ratio=0.25, calibration=samples(0), repair=False)
    kept = pruned.kept["c1"][0]
    assert kept is not None and len(kept) == 12 and WEAK not in kept
    assert pruned.report.proof is not None and pruned.report.proof.passed
    assert outputs(pruned.onnx(tmp_path / "small.onnx"), samples(1)).shape == (96, 5)


@pytest.mark.parametrize(
    ("name", "least"), [("least_squares", 0.7), ("bias", 0.8), ("affine", 0.8), ("fold", 0.95)]
)
def test_a_repaired_file_is_nearer_to_the_original_on_fresh_data(
    model: Path, name: str, least: float, tmp_path: Path
) -> None:
    x = samples(1, 256)
    whole, error = outputs(model, x), []
    for repair in (False, name):
        pruned = irprune.prune(
            model, importance="wanda", ratio=0.3, calibration=samples(0, 256), repair=repair
        )
        error.append(
            float(np.square(outputs(pruned.onnx(tmp_path / "small.onnx"), x) - whole).mean() ** 0.5)
        )
    assert pruned.report.repair is not None and pruned.report.repair.methods == (name,)
    assert error[1] < least * error[0]


def test_a_file_is_repaired_without_data_and_a_warning_says_when_not_to_trust_it(
    model: Path,
) -> None:
    with pytest.warns(UserWarning, match="repair on noise is unreliable"):
        pruned = irprune.prune(model, ratio=0.6, repair=True, calibration=False)
    assert (
        pruned.report.repair is not None
        and pruned.report.repair.after < pruned.report.repair.before
    )


def test_batch_norms_of_a_file_are_measured_again(model: Path) -> None:
    pruned = irprune.prune(model, ratio=0.3, calibration=samples(0), repair=False)
    norms = [n for n in pruned.cut.nodes if n.op == "batch_norm"]
    assert len(norms) == 2 and RepairBatchNorm(
        pruned.graph, Calibration(samples(0), pruned.graph)
    ).run(pruned.cut)
    for node, x in zip(
        norms,
        evaluate(pruned.cut, [torch.from_numpy(samples(0))], wanted=[n.operand(0) for n in norms]),
        strict=True,
    ):
        assert torch.allclose(x.mean((0, 2, 3)), torch.from_numpy(node.inputs[3].load()), atol=1e-4)
        assert torch.allclose(x.var((0, 2, 3)), torch.from_numpy(node.inputs[4].load()), rtol=1e-3)
