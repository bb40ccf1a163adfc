"""Quantised operators as floating-point ones: the same weights, scales, zero points and bounds,
without rounding to integers.

``RULES`` says how an operator is written so. A value that was an integer becomes the number that
would have been rounded, still in the integer's scale, and sums of products are sums of floats: no
kernel saturates there, and no number jumps by a step because a sum was taken in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

__all__ = ["BOUNDS", "INT32", "PRODUCTS", "RULES", "Result", "Uncovered", "Writer"]

# The numbers of onnx.TensorProto
UINT8, INT8, UINT16, INT16, INT32, UINT4, INT4 = (
    2,
    3,
    4,
    5,
    6,
    21,
    22,
)
BOUNDS = {
    UINT8: (0, 255),
    INT8: (-128, 127),
    UINT16: (0, 65535),
    INT16: (-32768, 32767),
    UINT4: (0, 15),
    INT4: (-8, 7),
}


class Result(NamedTuple):
    """A result's name, the integer type that it stands for (0: it is floating-point anyway), and
    its shape where that counts."""

    name: str
    kind: int = 0
    dims: tuple[int, ...] | None = None


Made = list[Result]


class Uncovered(Exception):
    """Raised by a rule for a use that it does not cover: the node stays as it is."""


class Writer(Protocol):
    """One node of a file, and nodes to be written in its place."""

    opset: int
    attrs: Mapping[str, Any]

    def has(self, i: int) -> bool:
        """Whether input ``i`` is given."""

    def count(self) -> int:
        """How many inputs there are."""

    def kind(self, i: int) -> int:
        """The integer type that input ``i`` has or stands for; 0 where it is not known."""

    def unrounded(self, i: int) -> bool:
        """Whether input ``i`` stands for integers and is floating-point."""

    def dims(self, i: int) -> tuple[int, ...]:
        """The shape of a scale or a zero point. Raises Uncovered where it is not known."""

    def number(self, i: int) -> str:
        """Input ``i`` as a float32."""

    def name(self, i: int) -> str:
        """Input ``i`` as it is in the file; "" where it is not given."""

    def constant(self, value: Any) -> str:
        """An array of float32, or of int64 where it holds integers."""

    def put(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """The first result of a new node of ONNX's own domain."""

    def put_all(
        self, kind: str, inputs: list[str], attrs: Mapping[str, Any], results: int
    ) -> list[str]:
        """All results of a new node."""


def _single(w: Writer, i: int) -> bool:
    return all(s == 1 for s in w.dims(i))


def _along(w: Writer, i: int, x: str, axis: int) -> str:
    """Input ``i``, one number or one for each index of ``axis`` of ``x``, so that it broadcasts
    against ``x`` of whatever rank."""
    held = w.number(i)
    if _single(w, i):
        return w.put("Reshape", held, w.constant([1])) if len(w.dims(i)) > 1 else held
    if len(w.dims(i)) != 1:
        raise Uncovered("blocks of values")
    if axis < 0:
        return w.put("Reshape", held, w.constant([-1] + [1] * (-1 - axis)))
    behind = w.put("Slice", w.put("Shape", x), w.constant([axis + 1]), w.constant([2**31 - 1]))
    ones = w.put("Expand", w.constant([1]), w.put("Shape", behind))
    return w.put("Reshape", held, w.put("Concat", w.constant([-1]), ones, axis=0))


def _rows(w: Writer, i: int) -> str:
    """Input ``i`` of a matrix product, one number for all or one for each row of the left
    matrix."""
    held = w.number(i)
    return (
        w.put("Reshape", held, w.constant([-1, 1]))
        if len(w.dims(i)) == 1 and not _single(w, i)
        else held
    )


def _moved(w: Writer, x: str, zero: str | None, scale: str | None) -> str:
    """(x - zero) * scale."""
    x = x if zero is None else w.put("Sub", x, zero)
    return x if scale is None else w.put("Mul", x, scale)


def _bounded(w: Writer, x: str, scale: str, zero: str | None, kind: int) -> Made:
    """What would be rounded to integers of ``kind``: x / scale + zero within the type's bounds."""
    if kind not in BOUNDS:
        raise Uncovered("results of an unusual type")
    x = w.put("Div", x, scale)
    x = x if zero is None else w.put("Add", x, zero)
    low, high = BOUNDS[kind]
    return [
        Result(w.put("Min", w.put("Max", x, w.constant(float(low))), w.constant(float(high))), kind)
    ]


def _scalar(w: Writer, x: int, scale: int, zero: int) -> str:
    """What integers with one scale stand for."""
    return _moved(w, w.number(x), w.number(zero) if w.has(zero) else None, w.number(scale))


def _result(w: Writer, y: str, scale: int, zero: int, like: int = 0) -> Made:
    kind = w.kind(zero) if w.has(zero) else w.kind(like)
    return _bounded(w, y, w.number(scale), w.number(zero) if w.has(zero) else None, kind)


# -- to integers and back --------------------------------------------------------------------------


def _quantize(w: Writer) -> Made:
    if w.attrs.get("block_size", 0):
        raise Uncovered("blocks of values")
    x, axis = w.number(0), w.attrs.get("axis", 1)
    kind = w.kind(2) if w.has(2) else w.attrs.get("output_dtype", 0) or UINT8
    return _bounded(w, x, _along(w, 1, x, axis), _along(w, 2, x, axis) if w.has(2) else None, kind)


def _dequantize(w: Writer) -> Made:
    if not w.unrounded(0) or w.attrs.get("block_size", 0):
        raise Uncovered("stored integers, which are exact")
    x, axis = w.number(0), w.attrs.get("axis", 1)
    return [
        Result(_moved(w, x, _along(w, 2, x, axis) if w.has(2) else None, _along(w, 1, x, axis)))
    ]


def _dynamic_quantize(w: Writer) -> Made:
    """The zero point is not rounded either, so that nothing passes the bounds. Constant zeros have
    a scale that does not matter."""
    x, none = w.number(0), w.constant(0.0)
    low = w.put("Min", w.put("ReduceMin", x, keepdims=0), none)
    high = w.put("Max", w.put("ReduceMax", x, keepdims=0), none)
    scale = w.put(
        "Max", w.put("Div", w.put("Sub", high, low), w.constant(255.0)), w.constant(1e-30)
    )
    zero = w.put("Div", w.put("Neg", low), scale)
    return [
        Result(w.put("Add", w.put("Div", x, scale), zero), UINT8),
        Result(scale, 0, ()),
        Result(zero, UINT8, ()),
    ]


# -- products --------------------------------------------------------------------------------------


def _matmul_integer(w: Writer) -> Made:
    a = _moved(w, w.number(0), _rows(w, 2) if w.has(2) else None, None)
    b = _moved(w, w.number(1), w.number(3) if w.has(3) else None, None)
    return [Result(w.put("MatMul", a, b), INT32)]


def _qlinear_matmul(w: Writer) -> Made:
    a = _moved(w, w.number(0), _rows(w, 2), _rows(w, 1))
    b = _moved(w, w.number(3), w.number(5), w.number(4))
    return _bounded(w, w.put("MatMul", a, b), _rows(w, 6), _rows(w, 7), w.kind(7))


def _conv_integer(w: Writer) -> Made:
    x = _moved(w, w.number(0), w.number(2) if w.has(2) else None, None)
    k = w.number(1)
    k = _moved(w, k, _along(w, 3, k, 0) if w.has(3) else None, None)
    return [Result(w.put("Conv", x, k, **w.attrs), INT32)]


def _qlinear_conv(w: Writer) -> Made:
    if w.attrs.get("channels_last", 0):
        raise Uncovered("channels last")
    k = w.number(3)
    operands = [_scalar(w, 0, 1, 2), _moved(w, k, _along(w, 5, k, 0), _along(w, 4, k, 0))]
    if w.has(8):
        operands.append(w.put("Mul", w.number(8), w.put("Mul", w.number(1), w.number(4))))
    attrs = {k: v for k, v in w.attrs.items() if k != "channels_last"}
    return _result(w, w.put("Conv", *operands, **attrs), 6, 7)


def _gemm(w: Writer) -> Made:
    """The bias is an integer in the product's scale."""
    b, axis = w.number(3), 0 if w.attrs.get("transB", 0) else 1
    attrs = {k: v for k, v in w.attrs.items() if k in ("alpha", "transA", "transB")}
    y = w.put(
        "Gemm",
        _scalar(w, 0, 1, 2),
        _moved(w, b, _along(w, 5, b, axis), _along(w, 4, b, axis)),
        w.constant([0.0]),
        **attrs,
    )
    if w.has(6):
        scale = w.put(
            "Mul",
            w.put("Mul", w.number(1), w.number(4)),
            w.constant(float(w.attrs.get("alpha", 1.0))),
        )
        y = w.put("Add", y, w.put("Mul", w.number(6), scale))
    return _result(w, y, 7, 8) if w.has(7) else [Result(y)]


def _float_product(w: Writer, a: str, b: int, scale: int, zero: int, bias: int) -> Made:
    k = _moved(w, w.number(b), w.number(zero) if w.has(zero) else None, w.number(scale))
    y = w.put("MatMul", a, k)
    return [Result(w.put("Add", y, w.number(bias)) if w.has(bias) else y)]


def _dynamic_matmul(w: Writer) -> Made:
    return _float_product(w, w.number(0), 1, 2, 3, 4)


def _matmul_to_float(w: Writer) -> Made:
    return _float_product(w, _scalar(w, 0, 2, 4), 1, 3, 5, 6)


def _dynamic_lstm(w: Writer) -> Made:
    """Scales and zero points are one for each direction, or one for each direction and row of the
    gates."""

    def matrix(i: int, scale: int, zero: int) -> str:
        shape = w.constant([0, 1, -1])
        k = _moved(
            w,
            w.number(i),
            w.put("Reshape", w.number(zero), shape),
            w.put("Reshape", w.number(scale), shape),
        )
        return w.put("Transpose", k, perm=[0, 2, 1])

    given = [w.number(0), matrix(1, 8, 9), matrix(2, 10, 11)]
    given += [w.name(i) if i == 4 else w.number(i) if w.has(i) else "" for i in range(3, 8)]
    while not given[-1]:
        given.pop()
    return [Result(name) for name in w.put_all("LSTM", given, w.attrs, 3)]


# -- each element for itself, and along a dimension ------------------------------------------------


def _binary(kind: str) -> Callable[[Writer], Made]:
    return lambda w: _result(w, w.put(kind, _scalar(w, 0, 1, 2), _scalar(w, 3, 4, 5)), 6, 7)


def _unary(kind: str) -> Callable[[Writer], Made]:
    return lambda w: _result(w, w.put(kind, _scalar(w, 0, 1, 2), **w.attrs), 3, 4)


def _softmax(w: Writer) -> Made:
    since = w.attrs.get("opset", 13)
    if (since >= 13) != (w.opset >= 13):
        raise Uncovered("a softmax of another opset")
    return _result(
        w,
        w.put("Softmax", _scalar(w, 0, 1, 2), axis=w.attrs.get("axis", -1 if since >= 13 else 1)),
        3,
        4,
    )


def _pool(w: Writer) -> Made:
    if w.attrs.get("channels_last", 0):
        raise Uncovered("channels last")
    return _result(w, w.put("GlobalAveragePool", _scalar(w, 0, 1, 2)), 3, 4)


def _concat(w: Writer) -> Made:
    many = [_scalar(w, i, i + 1, i + 2) for i in range(2, w.count(), 3)]
    return _result(w, w.put("Concat", *many, axis=w.attrs["axis"]), 0, 1)


_OWN = "com.microsoft::"
RULES: dict[str, Callable[[Writer], Made]] = {
    "QuantizeLinear": _quantize,
    f"{_OWN}QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    f"{_OWN}DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "QLinearMatMul": _qlinear_matmul,
    "ConvInteger": _conv_integer,
    "QLinearConv": _qlinear_conv,
    f"{_OWN}QLinearConv": _qlinear_conv,
    f"{_OWN}QGemm": _gemm,
    f"{_OWN}DynamicQuantizeMatMul": _dynamic_matmul,
    f"{_OWN}MatMulIntegerToFloat": _matmul_to_float,
    f"{_OWN}DynamicQuantizeLSTM": _dynamic_lstm,
    f"{_OWN}QLinearAdd": _binary("Add"),
    f"{_OWN}QLinearMul": _binary("Mul"),
    f"{_OWN}QLinearSigmoid": _unary("Sigmoid"),
    f"{_OWN}QLinearLeakyRelu": _unary("LeakyRelu"),
    f"{_OWN}QLinearSoftmax": _softmax,
    f"{_OWN}QLinearGlobalAveragePool": _pool,
    f"{_OWN}QLinearConcat": _concat,
}

# Products of integers: which input is the zero point of the left operand (None: the operator
# quantises it itself, to u8), which are
# matrices on the right.
PRODUCTS: dict[str, tuple[int | None, tuple[int, ...]]] = {
    "MatMulInteger": (2, (1,)),
    "ConvInteger": (2, (1,)),
    "QLinearMatMul": (2, (3,)),
    "QLinearConv": (2, (3,)),
    f"{_OWN}QLinearConv": (2, (3,)),
    f"{_OWN}QGemm": (2, (3,)),
    f"{_OWN}MatMulIntegerToFloat": (4, (1,)),
    f"{_OWN}DynamicQuantizeMatMul": (None, (1,)),
    f"{_OWN}DynamicQuantizeLSTM": (None, (1, 2)),
}
