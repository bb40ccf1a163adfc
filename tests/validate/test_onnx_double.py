"""ONNX models in float64: what stands for an operator computes the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from irprune.validate.onnx_double import doubled
from irprune.validate.onnx_run import run_model


@pytest.mark.parametrize("seed", range(24))
def test_a_convolution_is_products_of_matrices(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rank, groups = int(draw.integers(1, 4)), int(draw.integers(1, 4))
    sides = range(rank)
    inputs, outputs = int(draw.choice([1, 2, 4])), groups * int(draw.integers(1, 4))
    kernel = [int(draw.choice([1, 2, 3, 5])) for _ in sides]
    attrs = {
        "group": groups,
        "strides": [int(draw.integers(1, 4)) for _ in sides],
        "dilations": [int(draw.integers(1, 3)) for _ in sides],
        "pads": [int(draw.integers(0, 3)) for _ in (*sides, *sides)],
    }
    x = draw.standard_normal(
        [int(draw.choice([1, 3])), groups * inputs, *(int(draw.integers(11, 16)) for _ in sides)]
    )
    weights = {"w": draw.standard_normal([outputs, inputs, *kernel])}
    if seed % 2:
        weights["b"] = draw.standard_normal(outputs)
    # Of the batch and the sizes of the image nothing is known
    shape = ["n", groups * inputs, *(f"s{d}" for d in sides)]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", *weights], ["y"], **attrs)],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    opset = helper.make_opsetid("", int(draw.choice([12, 13, 17])))
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    expected = run_model(model, {"x": x.astype(np.float32)})[0]
    made = doubled(model, {})
    assert made is not None
    inside = x.astype(np.float32).astype(np.float64)
    found = run_model(made[0], {"x": inside}, optimise=False, data=made[1])[0]
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()
