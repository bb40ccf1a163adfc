"""Layers: whatever an operator is called and however its weight is stored, what a layer reads times
what it holds is what the node gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx_models import info, model_of, node, numbers, tensor
from shared import analysed, analysed_file, cut_file
from torch import Tensor, nn
from torch.nn import functional as F

from irprune.analysis.layers import Layer, layers
from irprune.ir.graph import Graph
from irprune.run.inputs import random_inputs
from irprune.run.interpret import evaluate


def integers(name: str, *shape: int, kind: type = np.int8, low: int = -99, high: int = 99) -> Any:
    return numpy_helper.from_array(numbers(name).integers(low, high, shape).astype(kind), name)


def scales(name: str, *shape: int, low: float = 0.01, high: float = 0.02) -> onnx.TensorProto:
    return numpy_helper.from_array(numbers(name).uniform(low, high, shape).astype(np.float32), name)


def one(name: str, value: float, kind: type) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, kind), name)


X, Y = info("x", 2, 6, 9, 9), info("y", None, None, None, None)
ROWS = info("x", 5, 6)
KERNEL = {"kernel_shape": [3, 3]}
BYTES = info("x", 2, 6, 9, 9, kind=TensorProto.UINT8)


def file_of(nodes: list[Any], x: Any, tensors: list[Any], y: int = TensorProto.FLOAT) -> Any:
    rank = len(x.type.tensor_type.shape.dim)
    return model_of(nodes, [x], [info("y", *[None] * rank, kind=y)], tensors)


UNIT = [one("sx", 0.05, np.float32), one("zx", 120, np.uint8)]
OUT = [one("sy", 0.2, np.float32), one("zy", 128, np.uint8)]
FILES = {
    "Conv": file_of(
        [node("Conv", "x w b", "y", **KERNEL)], X, [tensor("w", 4, 6, 3, 3), tensor("b", 4)]
    ),
    "Conv, unequal pads": file_of(
        [node("Conv", "x w b", "y", pads=[0, 1, 2, 0], strides=[2, 1], group=2, **KERNEL)],
        X,
        [tensor("w", 4, 3, 3, 3), tensor("b", 4)],
    ),
    "ConvTranspose, unequal pads": file_of(
        [node("ConvTranspose", "x w b", "y", pads=[0, 1, 1, 0], strides=[2, 2], group=2, **KERNEL)],
        X,
        [tensor("w", 6, 2, 3, 3), tensor("b", 4)],
    ),
    "FusedConv without an activation": file_of(
        [node("FusedConv", "x w b", "y", domain="com.microsoft", pads=[1, 0, 0, 1], **KERNEL)],
        X,
        [tensor("w", 4, 6, 3, 3), tensor("b", 4)],
    ),
    "Conv of dequantised weights": file_of(
        [
            node("DequantizeLinear", "w s z", "wf", axis=0),
            node("DequantizeLinear", "b t", "bf"),
            node("Conv", "x wf bf", "y", pads=[1, 0, 0, 1], **KERNEL),
        ],
        X,
        [
            integers("w", 4, 6, 3, 3),
            scales("s", 4),
            integers("z", 4, low=-3, high=4),
            integers("b", 4, kind=np.int32),
            one("t", 0.01, np.float32),
        ],
    ),
    "MatMul of dequantised weights": file_of(
        [node("DequantizeLinear", "w s z", "wf", axis=1), node("MatMul", "x wf", "y")],
        ROWS,
        [integers("w", 6, 4), scales("s", 4), integers("z", 4, low=-3, high=4)],
    ),
    "ConvInteger": file_of(
        [node("ConvInteger", "x w zx z", "y", pads=[1, 0, 0, 1], **KERNEL)],
        BYTES,
        [integers("w", 4, 6, 3, 3, kind=np.uint8, low=0), one("z", 40, np.uint8), UNIT[1]],
        TensorProto.INT32,
    ),
    "QLinearConv": file_of(
        [node("QLinearConv", "x sx zx w s z sy zy b", "y", pads=[1, 0, 0, 1], group=2, **KERNEL)],
        BYTES,
        [
            *UNIT,
            *OUT,
            integers("w", 4, 3, 3, 3),
            scales("s", 4),
            integers("z", 4, low=0, high=1),
            integers("b", 4, kind=np.int32),
        ],
        TensorProto.UINT8,
    ),
    "MatMulInteger": file_of(
        [node("MatMulInteger", "x w zx", "y")],
        info("x", 5, 6, kind=TensorProto.UINT8),
        [integers("w", 6, 4), UNIT[1]],
        TensorProto.INT32,
    ),
    "QLinearMatMul": file_of(
        [node("QLinearMatMul", "x sx zx w s z sy zy", "y")],
        info("x", 5, 6, kind=TensorProto.UINT8),
        [*UNIT, *OUT, integers("w", 6, 4), scales("s", 4), integers("z", 4, low=-3, high=4)],
        TensorProto.UINT8,
    ),
    "QGemm": file_of(
        [node("QGemm", "x sx zx w s z b sy zy", "y", domain="com.microsoft", transB=1)],
        info("x", 5, 6, kind=TensorProto.UINT8),
        [
            *UNIT,
            *OUT,
            integers("w", 4, 6),
            scales("s", 4),
            integers("z", 4, low=-3, high=4),
            integers("b", 4, kind=np.int32),
        ],
        TensorProto.UINT8,
    ),
    "MatMulIntegerToFloat": file_of(
        [node("MatMulIntegerToFloat", "x w sx s zx z b", "y", domain="com.microsoft")],
        info("x", 5, 6, kind=TensorProto.UINT8),
        [
            *UNIT,
            integers("w", 6, 4),
            scales("s", 4),
            integers("z", 4, low=-3, high=4),
            tensor("b", 4),
        ],
    ),
}


class Call(nn.Module):
    """A call with a weight and a bias."""

    def __init__(self, call: Any, *shape: int) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.call(x, self.weight, self.bias)
        return made


IMAGE, TABLE = torch.randn(2, 6, 9, 9), torch.randn(5, 6)
MODULES = {
    "padding same, even kernel": (
        Call(lambda x, w, b: F.conv2d(x, w, b, padding="same", dilation=(1, 2)), 4, 6, 4, 3),
        IMAGE,
    ),
    "pad, then convolution": (
        Call(lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 1, 0)), w, b, stride=2), 4, 6, 3, 3),
        IMAGE,
    ),
    "aten.convolution": (
        Call(
            lambda x, w, b: torch.convolution(x, w, b, [2, 1], [1, 0], [1, 1], False, [0, 0], 2),
            *(4, 3, 3, 3),
        ),
        IMAGE,
    ),
    "aten.convolution, transposed": (
        Call(
            lambda x, w, b: torch.convolution(x, w, b, [2, 2], [1, 0], [1, 1], True, [1, 0], 2),
            *(6, 2, 3, 3),
        ),
        IMAGE,
    ),
    "linear": (Call(F.linear, 4, 6), TABLE),
    "addmm": (Call(lambda x, w, b: torch.addmm(b, x, w), 6, 4), TABLE),
}


def _run(graph: Graph, inputs: list[Tensor]) -> tuple[Layer, list[Any], Tensor]:
    """The one layer of ``graph``, what it ran on and what it gave."""
    (layer,) = layers(graph)
    seen: list[Any] = []

    def hook(node: Any, operands: list[Any], run: Any) -> Any:
        made = run(*operands)
        if node is layer.node:
            seen.append((list(operands), made))
        return made

    evaluate(graph, inputs, hook=hook)
    ((operands, made),) = seen
    return layer, operands, made


def _agrees(graph: Graph, inputs: list[Tensor], step: float) -> Layer:
    """Whether the product of what the layer reads and holds is what it gives, to half a ``step``
    of a quantised result."""
    layer, operands, made = _run(graph, inputs)
    y = layer.input_rows(operands).transpose(0, 1).double() @ layer.load_matrix()
    offset = layer.offset(operands)
    y = y if offset is None else y + offset.double().reshape(y.shape[0], 1, -1)
    given = layer.output_rows(made, operands).transpose(0, 1).double()
    scale = float(given.abs().max())
    inside = (given > given.min()) & (given < given.max()) if step else torch.ones_like(y) > 0
    assert float((y - given).abs()[inside].max()) <= step / 2 + 1e-5 * scale
    assert scale > 10 * step
    return layer


@pytest.mark.parametrize("name", FILES)
def test_a_layer_of_a_file_is_a_linear_map(name: str) -> None:
    graph = analysed_file(FILES[name])
    given = random_inputs(graph)
    if "x" in given and given["x"].dtype == np.uint8:
        given["x"] = numbers(name).integers(0, 255, given["x"].shape).astype(np.uint8)
    quantised = graph.outputs[0].dtype == "u8"
    layer = _agrees(graph, [torch.from_numpy(x) for x in given.values()], 0.2 if quantised else 0)
    before = np.array(layer.weight.load())
    layer.store_matrix(layer.load_matrix())
    assert np.array_equal(layer.weight.load(), before)


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_of_a_module_is_a_linear_map(name: str) -> None:
    model, x = MODULES[name]
    _agrees(analysed(model.eval(), x), [x], 0)


def test_what_a_quantised_layer_is_told_to_hold_is_rounded_to_its_steps() -> None:
    (layer,) = layers(analysed_file(FILES["MatMul of dequantised weights"]))
    scale = layer.stored.load().abs().max() / 100
    wanted = (layer.load_matrix() + 0.3 * scale).clamp(-100 * scale, 100 * scale)
    layer.store_matrix(wanted)
    assert layer.weight.load().dtype == np.int8
    steps = torch.tensor(numpy_helper.to_array(scales("s", 4)).tolist())
    assert bool(((layer.load_matrix() - wanted).abs() <= steps / 2 + 1e-9).all())


@pytest.mark.parametrize("kind", ["Relu", "Sigmoid"])
def test_a_product_with_an_activation_is_no_linear_map(kind: str) -> None:
    fused = {"domain": "com.microsoft", "activation": kind}
    conv = file_of([node("FusedConv", "x w", "y", **fused, **KERNEL)], X, [tensor("w", 4, 6, 3, 3)])
    gemm = file_of([node("FusedGemm", "x w", "y", **fused)], ROWS, [tensor("w", 6, 4)])
    for model in (conv, gemm):
        for layer in layers(analysed_file(model)):
            assert layer.node.outputs[0].name != "y"


def test_a_distance_is_no_linear_map() -> None:
    model = Call(lambda x, w, b: torch.cdist(x, w) + b, 4, 6)
    assert not list(layers(analysed(model.eval(), TABLE)))


@pytest.mark.parametrize("name", ["unequal pads", "dequantised"])
def test_layers_of_files_are_refitted(name: str) -> None:
    """The repair finds them, and what it makes is nearer to the original."""
    import irprune

    pads = {"pads": [0, 0, 1, 1], "strides": [2, 2], **KERNEL}
    stored = [tensor("w1", 16, 3, 3, 3), tensor("w2", 16, 16, 3, 3)]
    begin: list[Any] = []
    first, second = "x w1", "r w2"
    if name == "dequantised":
        stored = [integers("w1", 16, 3, 3, 3), integers("w2", 16, 16, 3, 3)]
        stored += [scales("s1", 16), scales("s2", 16), integers("z", 16, low=0, high=1)]
        begin = [node("DequantizeLinear", f"w{k} s{k} z", f"f{k}", axis=0) for k in (1, 2)]
        first, second = "x f1", "r f2"
    model = model_of(
        [
            *begin,
            node("Conv", first, "a", **pads),
            node("Relu", "a", "r"),
            node("Conv", second, "c", **pads),
            node("Relu", "c", "q"),
            node("GlobalAveragePool", "q", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f w3", "y", transB=1),
        ],
        [info("x", 4, 3, 16, 16)],
        [info("y", 4, 5)],
        [*stored, tensor("w3", 5, 16)],
    )
    data = [
        numbers(f"{name}{k}").standard_normal((4, 3, 16, 16)).astype(np.float32) for k in range(8)
    ]
    found = [layer.weight.name for layer in layers(analysed_file(model))]
    assert found == ["w1", "w2", "w3"]
    pruned = irprune.prune(model, ratio=0.5, calibration=data, repair="least_squares", proof=False)
    repair = pruned.report.repair
    assert not repair.notes and repair.after < 0.7 * repair.before


def test_integers_of_a_cut_layer_stay_integers() -> None:
    graph = cut_file(analysed_file(FILES["QLinearConv"]), 0.5)
    (layer,) = layers(graph)
    layer.store_matrix(layer.load_matrix() * 0.5)
    assert layer.weight.load().dtype == np.int8
