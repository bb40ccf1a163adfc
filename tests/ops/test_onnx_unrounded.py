"""Quantised operators in floating point: each is its integers before they are rounded, on any
processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from irprune.ops.onnx.float_forms import PRODUCTS, RULES
from irprune.ops.onnx.importer import SPELLINGS
from irprune.ops.registry import load_table
from irprune.run.error import relative_error
from irprune.validate.onnx_run import run_model
from irprune.validate.onnx_unrounded import unrounded

FLOAT, U8, I8, I32 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32
Array = np.ndarray
RANDOM = np.random.default_rng(0)
# Of stored integers nothing is to be changed
DIRECT = {
    "DequantizeLinear",
    "com.microsoft::DequantizeLinear",
}


def u8(*shape: int) -> Array:
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def s8(*shape: int, most: int = 63) -> Array:
    """Within 63 no processor saturates."""
    return RANDOM.integers(-most, most + 1, shape).astype(np.int8)


def s32(*shape: int) -> Array:
    return RANDOM.integers(-9999, 9999, shape).astype(np.int32)


def f32(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def scales(*shape: int, most: float = 0.02) -> Array:
    return RANDOM.uniform(most / 2, most, shape).astype(np.float32)


def info(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
    )


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Array],
    stored: dict[str, Array],
    outputs: dict[str, int],
    opset: int = 17,
) -> onnx.ModelProto:
    results = [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs.items()]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()]
    graph = helper.make_graph(nodes, "g", [info(n, a) for n, a in inputs.items()], results, tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def one(
    target: str,
    operands: Sequence[Array | None],
    kinds: Sequence[int],
    given: Sequence[int] = (0,),
    **attrs: Any,
) -> Any:
    """A model of one node: operands at ``given`` are inputs, the others stored."""
    domain, name = target.split("::") if "::" in target else ("", target)
    names = ["" if a is None else f"i{k}" for k, a in enumerate(operands)]
    held = {n: np.asarray(a) for n, a in zip(names, operands, strict=True) if a is not None}
    inputs = {f"i{k}": held.pop(f"i{k}") for k in given}
    outputs = {f"o{k}": kind for k, kind in enumerate(kinds)}
    return model_of(
        [helper.make_node(name, names, list(outputs), domain=domain, **attrs)],
        inputs,
        held,
        outputs,
    ), inputs


Z, SMALL, WIDE = np.uint8(120), np.float32(0.01), np.float32(0.2)
LSTM = (s8(2, 4, 20), s8(2, 5, 20), f32(2, 40))
NONE = np.zeros((2, 20), np.int8)  # onnxruntime takes no other zero points there
CASES: dict[str, tuple[Any, dict[str, Array]]] = {
    "quantise": one("QuantizeLinear", [f32(2, 6, 5), WIDE, Z], [U8]),
    "quantise each channel": one("QuantizeLinear", [f32(2, 6, 5), scales(6), s8(6)], [I8], axis=1),
    "quantise each of the last": one(
        "QuantizeLinear", [f32(2, 6, 5), scales(5), s8(5)], [I8], axis=-1
    ),
    "quantise onnxruntime's way": one(
        "com.microsoft::QuantizeLinear",
        [f32(2, 6, 5), WIDE, np.uint16(30000)],
        [TensorProto.UINT16],
    ),
    "product": one("MatMulInteger", [u8(3, 4, 64), s8(64, 8), Z, s8(8)], [I32]),
    "convolution": one(
        "ConvInteger",
        [u8(2, 4, 6, 6), u8(8, 2, 3, 3), Z, np.uint8(7)],
        [I32],
        group=2,
        pads=[1, 1, 1, 1],
    ),
    "scaled product": one(
        "QLinearMatMul",
        [u8(4, 64), SMALL, Z, s8(64, 8), scales(8), s8(8), WIDE, np.uint8(99)],
        [U8],
    ),
    "scaled convolution": one(
        "QLinearConv",
        [
            u8(2, 4, 6, 6),
            SMALL,
            Z,
            s8(8, 4, 3, 3),
            scales(8),
            np.zeros(8, np.int8),
            WIDE,
            Z,
            s32(8),
        ],
        [U8],
        pads=[1, 1, 1, 1],
        strides=[2, 2],
    ),
    "gemm": one(
        "com.microsoft::QGemm",
        [u8(64, 4), SMALL, Z, s8(8, 64), scales(8), s8(8), s32(8), WIDE, Z],
        [U8],
        transA=1,
        transB=1,
        alpha=0.5,
    ),
    "gemm to floats": one(
        "com.microsoft::QGemm", [u8(4, 64), SMALL, Z, s8(64, 8), SMALL, np.int8(3)], [FLOAT]
    ),
    "dynamic product": one(
        "com.microsoft::DynamicQuantizeMatMul",
        [f32(4, 64), s8(64, 8), scales(8), s8(8), f32(8)],
        [FLOAT],
    ),
    "product to floats": one(
        "com.microsoft::MatMulIntegerToFloat",
        [u8(4, 64), s8(64, 8), SMALL, scales(8), Z, s8(8), f32(8)],
        [FLOAT],
    ),
    "LSTM": one(
        "com.microsoft::DynamicQuantizeLSTM",
        [f32(3, 2, 4), *LSTM, None, None, None, None, scales(2, 20), NONE, scales(2, 20), NONE],
        [FLOAT, FLOAT, FLOAT],
        direction="bidirectional",
        hidden_size=5,
    ),
    "LSTM of lengths": one(
        "com.microsoft::DynamicQuantizeLSTM",
        [
            f32(3, 2, 4),
            *LSTM,
            np.array([3, 1], np.int32),
            f32(2, 2, 5),
            None,
            None,
            scales(2),
            NONE[:, 0],
            scales(2),
            NONE[:, 0],
        ],
        [FLOAT, FLOAT, FLOAT],
        direction="bidirectional",
        hidden_size=5,
    ),
    "add": one("com.microsoft::QLinearAdd", [u8(2, 6), SMALL, Z, u8(6), WIDE, Z, WIDE, Z], [U8]),
    "mul": one("com.microsoft::QLinearMul", [u8(2, 6), SMALL, Z, u8(6), WIDE, Z, WIDE, Z], [U8]),
    "sigmoid": one(
        "com.microsoft::QLinearSigmoid",
        [u8(2, 6), SMALL, Z, np.float32(1 / 255), np.uint8(0)],
        [U8],
    ),
    "leaky relu": one(
        "com.microsoft::QLinearLeakyRelu", [u8(2, 6), SMALL, Z, SMALL, Z], [U8], alpha=0.3
    ),
    "softmax": one(
        "com.microsoft::QLinearSoftmax",
        [u8(2, 6), np.float32(0.03), Z, np.float32(1 / 255), np.uint8(0)],
        [U8],
        opset=17,
        axis=-1,
    ),
    "pool": one(
        "com.microsoft::QLinearGlobalAveragePool",
        [u8(2, 6, 4, 4), SMALL, Z, SMALL, Z],
        [U8],
        channels_last=0,
    ),
    "concat": one(
        "com.microsoft::QLinearConcat",
        [WIDE, Z, u8(2, 6), SMALL, Z, u8(2, 3), WIDE, np.uint8(9)],
        [U8],
        (2, 5),
        axis=1,
    ),
}
# Below, or as the one of ONNX itself
ONES = {
    "DynamicQuantizeLinear",
    *DIRECT,
    "com.microsoft::QLinearConv",
}


def target(model: onnx.ModelProto) -> str:
    node = model.graph.node[0]
    return f"{node.domain}::{node.op_type}" if node.domain else str(node.op_type)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_what_it_rounds(name: str) -> None:
    """Integers are within half a step of the floats; floats that were quantised on the way differ
    by a hundredth."""
    model, inputs = CASES[name]
    floating = unrounded(model)
    assert floating is not None and target(model) not in {
        target(model_of([n], {}, {}, {})) for n in floating.graph.node
    }
    for ours, theirs in zip(
        run_model(floating, inputs, optimise=False),
        run_model(model, inputs, optimise=False),
        strict=True,
    ):
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        if theirs.dtype == np.float32:
            assert relative_error([ours], [theirs]) < 0.02
        else:
            # Which onnxruntime adds up from rounded exponentials
            loose = {"softmax": 1.5}.get(name, 1e-3)
            assert np.abs(ours - theirs.astype(np.float32)).max() <= 0.5 + loose
            assert len(np.unique(theirs)) > 5


def test_the_operators_of_the_table_are_covered() -> None:
    load_table()
    quantised = {
        t
        for t, s in SPELLINGS.items()
        if any(
            e.startswith(
                (
                    "qlinear_",
                    "dynamic_lstm",
                    "integer_matmul",
                    "matmul_integer",
                    "conv_integer",
                    "quantize_",
                    "dequantize_",
                    "dynamic_quantize",
                )
            )
            for e in s.entries
        )
    }
    assert len(quantised) >= 19 and quantised - set(RULES) == set()
    assert set(RULES) - {target(m) for m, _ in CASES.values()} == ONES
    assert set(PRODUCTS) <= set(RULES)


@pytest.mark.parametrize("left", [Z, u8(4)], ids=["one zero", "a zero for each row"])
@pytest.mark.parametrize("right", [np.int8(-5), s8(8)], ids=["one zero", "a zero for each column"])
def test_full_range_products_are_those_of_the_integers(left: Array, right: Array) -> None:
    """What processors without VNNI saturate: u8 with s8, both up to their bounds."""
    a, b = u8(4, 64), s8(64, 8, most=127)
    model, inputs = one("MatMulInteger", [a, b, left, right], [I32])
    wanted = (a.astype(np.int64) - left.astype(np.int64).reshape(-1, 1)) @ (
        b.astype(np.int64) - right.astype(np.int64)
    )
    (ours,) = run_model(unrounded(model), inputs, optimise=False)
    assert np.abs(wanted).max() > 5e4 and np.array_equal(ours, wanted)


def test_full_range_convolutions_are_those_of_the_integers() -> None:
    x, w = u8(1, 8, 5, 5), s8(3, 8, 3, 3, most=127)
    model, inputs = one("ConvInteger", [x, w, Z, s8(3)], [I32], pads=[1, 1, 1, 1])
    zero = numpy_helper.to_array(model.graph.initializer[-1]).astype(np.int64)
    padded = np.pad(x.astype(np.int64) - int(Z), ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    wanted = np.einsum("nchwij,ocij->nohw", patches, w.astype(np.int64) - zero[:, None, None, None])
    (ours,) = run_model(unrounded(model), inputs, optimise=False)
    assert np.abs(wanted).max() > 5e4 and np.array_equal(ours, wanted)


def test_onnxruntime_is_asked_for_products_that_do_not_saturate() -> None:
    a, b = u8(4, 64), s8(64, 8, most=127)
    model, inputs = one("MatMulInteger", [a, b], [I32])
    wanted = a.astype(np.int64) @ b.astype(np.int64)
    (precise,) = run_model(model, inputs, precise=True)
    assert np.array_equal(precise, wanted)


def test_dynamic_quantisation_leaves_the_numbers() -> None:
    x = f32(3, 7)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = model_of(nodes, {"x": x}, {}, {"y": FLOAT, "s": FLOAT, "z": U8})
    y, scale, zero = run_model(unrounded(model), {"x": x}, optimise=False)
    _, scale_of_old, zero_of_old = run_model(model, {"x": x}, optimise=False)
    assert (
        relative_error([y], [x]) < 1e-6
        and scale == pytest.approx(scale_of_old, rel=1e-6)
        and abs(zero - zero_of_old) < 0.501
    )
    nothing = run_model(unrounded(model), {"x": 0 * x}, optimise=False)[0]
    assert (nothing == 0).all()


def between(
    nodes: Sequence[onnx.NodeProto], stored: dict[str, Array]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """``nodes`` from the integers ``q`` to the integers ``r``, quantised before and back after."""
    held = {"s": WIDE, "z": Z, **stored}
    ends = (
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"]),
    )
    inputs = {"x": f32(2, 6, 4, 4)}
    return model_of([ends[0], *nodes, ends[1]], inputs, held, {"y": FLOAT}), inputs


PASSING = {
    "moved": (
        [
            helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2]),
            helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", ["t", "shape"], ["r"]),
        ],
        {"shape": np.array([2, -1])},
    ),
    "beside stored integers": (
        [
            helper.make_node("Concat", ["q", "more"], ["c"], axis=1),
            helper.make_node("Where", ["mask", "c", "one"], ["r"]),
        ],
        {
            "more": u8(2, 2, 4, 4),
            "mask": RANDOM.integers(0, 2, (8, 1, 1)).astype(bool),
            "one": np.uint8(1),
        },
    ),
    "cast and back": (
        [
            helper.make_node("Cast", ["q"], ["w"], to=I32),
            helper.make_node("Add", ["w", "three"], ["v"]),
            helper.make_node("Cast", ["v"], ["f"], to=FLOAT),
            helper.make_node("QuantizeLinear", ["f", "unit", "z0"], ["r"]),
        ],
        {"three": np.int32(3), "unit": np.float32(1), "z0": np.uint8(0)},
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_integers_pass_through_as_floats(name: str) -> None:
    model, inputs = between(*PASSING[name])
    floating = unrounded(model)
    assert floating is not None and not any(n.op_type == "Round" for n in floating.graph.node)
    ours, theirs = (
        run_model(floating, inputs, optimise=False)[0],
        run_model(model, inputs, optimise=False)[0],
    )
    assert 1e-3 < np.abs(ours - theirs).max() <= 0.501 * WIDE


ROUNDED = {
    "no floats": (
        [helper.make_node("BitShift", ["q", "two"], ["r"], direction="RIGHT")],
        {"two": np.uint8(2)},
    ),
    "a sequence": (
        [
            helper.make_node("SequenceConstruct", ["q"], ["l"]),
            helper.make_node("ConcatFromSequence", ["l"], ["r"], axis=0),
        ],
        {},
    ),
    "another domain": (
        [
            helper.make_node(
                "NhwcMaxPool", ["q"], ["r"], domain="com.microsoft", kernel_shape=[2, 2]
            )
        ],
        {},
    ),
    "a body": (
        [
            helper.make_node(
                "If",
                ["yes"],
                ["r"],
                **{
                    f"{k}_branch": helper.make_graph(
                        [helper.make_node(op, ["q"], ["b"])],
                        k,
                        [],
                        [helper.make_tensor_value_info("b", U8, None)],
                    )
                    for k, op in (("then", "Identity"), ("else", "Sign"))
                },
            )
        ],
        {"yes": np.array(True)},
    ),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_takes_no_floats_gets_integers(name: str) -> None:
    model, inputs = between(*ROUNDED[name])
    floating = unrounded(model)
    assert floating is not None and sum(n.op_type == "Round" for n in floating.graph.node) == 1
    ours, theirs = (
        run_model(floating, inputs, optimise=False)[0],
        run_model(model, inputs, optimise=False)[0],
    )
    assert np.array_equal(ours, theirs)


def test_integers_that_go_out_are_floats() -> None:
    model, inputs = one("QuantizeLinear", [f32(2, 6), WIDE, Z], [U8])
    floating = unrounded(model)
    assert floating is not None and [
        o.type.tensor_type.elem_type for o in floating.graph.output
    ] == [FLOAT]
    assert 0.1 < np.abs(run_model(floating, inputs)[0] - run_model(model, inputs)[0]).max() <= 0.501


def test_a_model_that_rounds_nothing_stays() -> None:
    """Stored integers are exact, and an opset before 10 has no quantisation."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    stored = {"w": s8(6, 4), "s": scales(4), "z": s8(4)}
    assert unrounded(model_of(nodes, {"x": f32(2, 6)}, stored, {"y": FLOAT})) is None
    assert (
        unrounded(
            model_of(
                [helper.make_node("Relu", ["x"], ["y"])], {"x": f32(2)}, {}, {"y": FLOAT}, opset=9
            )
        )
        is None
    )
