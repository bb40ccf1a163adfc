"""Operators of onnxruntime over integers with one scale each (``com.microsoft::QLinear...``): taken
apart, computed, quantised again."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType
from irprune.ops.aten.contraction import Letters, product_letters
from irprune.ops.aten.elementwise import broadcast as broadcast_rule
from irprune.ops.onnx.importer import OnnxNode, Step, UnsupportedUse, runs, sampled, spell, use
from irprune.ops.onnx.norm import nothing
from irprune.ops.onnx.quant import _along, quiet
from irprune.ops.onnx.types import broadcast, like, position
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare
from irprune.ops.traits import Quantised, Role

op = partial(declare, family="qlinear")

__all__: list[str] = []

_SCALE, _ZERO = Arg((), low=0.05, high=0.1), Arg((), "u8", 120, 130)


def _single(node: OnnxNode, *places: int) -> None:
    """Raises UnsupportedUse where a scale or zero point is no single number."""
    for i in places:
        if node.has(i) and any(s != 1 for s in node.shape(i)):
            raise UnsupportedUse(f"a {node.target} with several scales")


# -- each element for itself -----------------------------------------------------------------------


def _binary(kind: str) -> Any:
    def read(node: OnnxNode) -> Step:
        _single(node, 1, 2, 4, 5, 6, 7)
        made = like(node, shape=broadcast((node.shape(0), node.shape(3))))
        return Step("qlinear_binary", (0, 3, 1, 2, 4, 5, 6, 7), {"kind": kind}, [made])

    return read


def _unary(kind: str) -> Any:
    def read(node: OnnxNode) -> Step:
        _single(node, 1, 2, 3, 4)
        return Step(
            "qlinear_unary",
            (0, 1, 2, 3, 4),
            {"kind": kind, "alpha": node.attrs.get("alpha", 0.01)},
            [like(node)],
        )

    return read


_BYTES = Arg((2, 6, 5), "u8", 0, 255)
op(
    "qlinear_binary",
    broadcast_rule,
    run=runs("qlinear_binary"),
    samples=(
        Sample((_BYTES, Arg((6, 5), "u8", 0, 255), *[_SCALE, _ZERO] * 3), {"kind": "add"}, free=3),
    ),
    quantised_as=lambda node: {0: Quantised(2, 3), 1: Quantised(4, 5)},
    rounds=True,
)
op(
    "qlinear_unary",
    broadcast_rule,
    run=runs("qlinear_unary"),
    samples=(Sample((_BYTES, *[_SCALE, _ZERO] * 2), {"kind": "sigmoid", "alpha": 0.01}, free=3),),
    rounds=True,
)
for _kind in ("Add", "Mul"):
    spell("qlinear_binary", f"com.microsoft::QLinear{_kind}", read=_binary(_kind.lower()))
for _onnx, _kind in (("Sigmoid", "sigmoid"), ("LeakyRelu", "leaky_relu")):
    spell("qlinear_unary", f"com.microsoft::QLinear{_onnx}", read=_unary(_kind))

# -- along a dimension -----------------------------------------------------------------------------


def _whole_dims(axes: Axes, node: Node) -> None:
    """``dims`` stay; those that ``gone`` names have one index in the result."""
    own = axes.of(node.operand(0))
    for d in node.attrs["dims"]:
        axes.freeze(own[d], f"looked at as a whole by {node.op}")
    node.out.axes = tuple(axes.one if k in node.attrs["gone"] else a for k, a in enumerate(own))


def _softmax(node: OnnxNode) -> Step:
    _single(node, 1, 2, 3, 4)
    rank, since = node.rank(), node.attrs.get("opset", 13)
    d = position(node.attrs.get("axis", -1 if since >= 13 else 1), rank)
    dims = [d] if since >= 13 else list(range(d, rank))
    return Step(
        "qlinear_along",
        (0, 1, 2, 3, 4),
        {"kind": "softmax", "dims": dims, "gone": []},
        [like(node)],
    )


def _pool(node: OnnxNode) -> Step:
    _single(node, 1, 2, 3, 4)
    if node.attrs.get("channels_last", 0):
        raise UnsupportedUse("a QLinearGlobalAveragePool with channels last")
    dims = list(range(2, node.rank()))
    shape = (*node.shape()[:2], *[1] * len(dims))
    return Step(
        "qlinear_along",
        (0, 1, 2, 3, 4),
        {"kind": "mean", "dims": dims, "gone": dims},
        [like(node, shape=shape)],
    )


op(
    "qlinear_along",
    _whole_dims,
    run=runs("qlinear_along"),
    samples=(
        Sample((_BYTES, *[_SCALE, _ZERO] * 2), {"kind": "mean", "dims": [2], "gone": [2]}, free=2),
        Sample(
            (_BYTES, *[_SCALE, _ZERO] * 2), {"kind": "softmax", "dims": [1], "gone": []}, free=2
        ),
    ),
    rounds=True,
)
spell("qlinear_along", "com.microsoft::QLinearSoftmax", read=_softmax, write=nothing)
spell("qlinear_along", "com.microsoft::QLinearGlobalAveragePool", read=_pool, write=nothing)


def _joined(axes: Axes, node: Node) -> None:
    """Inputs stand one after the other along ``dim``, each before its scale and zero point."""
    d, many = node.attrs["dim"], [axes.of(v) for v in node.inputs[2::3] if v is not None]
    for other in many[1:]:
        for k, (a, b) in enumerate(zip(many[0], other, strict=True)):
            if k != d:
                axes.unify(a, b)
    node.out.axes = tuple(
        axes.sum([m[k] for m in many]) if k == d else a for k, a in enumerate(many[0])
    )


def _concat(node: OnnxNode) -> Step:
    _single(node, *(i for i in range(len(node.types)) if i < 2 or i % 3 != 2))
    d = position(node.attrs["axis"], node.rank(2))
    total: Any = 0
    for i in range(2, len(node.types), 3):
        total = total + node.shape(i)[d]
    shape = list(node.shape(2))
    shape[d] = total
    return Step("qlinear_concat", None, {"dim": d}, [like(node, 2, shape=shape)])


op("qlinear_concat", _joined, run=runs("qlinear_concat"), rounds=True)
spell("qlinear_concat", "com.microsoft::QLinearConcat", read=_concat)

# -- products --------------------------------------------------------------------------------------


def _gemm(axes: Axes, node: Node) -> None:
    a, b = axes.of(node.operand(0)), axes.of(node.operand(3))
    (m, k), (j, n) = (
        (a[::-1] if node.attrs["trans_a"] else a),
        (b[::-1] if node.attrs["trans_b"] else b),
    )
    axes.unify(k, j)
    for i in (4, 5):
        _along(axes, (j, n), node.inputs[i] if node.has(i) else None, 1)
    if node.has(6):
        for own, held in zip(
            (m, n)[2 - node.operand(6).rank :], axes.of(node.operand(6)), strict=True
        ):
            if held.size != 1:
                axes.unify(own, held)
    node.out.axes = (m, n)


def _gemm_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    made, a = list(operands), node.attrs
    rows, columns = 0 if a["trans_a"] else 1, 1 if a["trans_b"] else 0
    made[0] = quiet(torch, made[0], made[2], present(node.operand(0), [rows]), 1 - rows)
    made[3] = quiet(torch, made[3], made[5], present(node.operand(3), [columns]), 1 - columns)
    return run(*made)


def _gemm_macs(node: Node) -> tuple[Any, ...]:
    a = node.operand(0).axes or ()
    return ((*(node.out.axes or ()), a[0 if node.attrs["trans_a"] else 1]),)


def _gemm_integers(node: Node) -> dict[int, Quantised]:
    made = {0: Quantised(1, 2), 3: Quantised(4, 5, 0 if node.attrs["trans_b"] else 1)}
    if node.has(6):
        made[6] = Quantised(1, None, 0, more=(4,))
    return {**made, -1: Quantised(7, 8)} if node.has(7) else made


def _gemm_letters(node: Node) -> Letters:
    a = ["k", "m"] if node.attrs["trans_a"] else ["m", "k"]
    b = ["n", "k"] if node.attrs["trans_b"] else ["k", "n"]
    bias = ["m", "n"][2 - node.operand(6).rank :] if node.has(6) else []
    return a, [], [], b, [], [], bias, [], [], ["m", "n"]


def _read_gemm(node: OnnxNode) -> Step:
    _single(node, 1, 2, 7, 8)
    attrs = {
        "trans_a": node.attrs.get("transA", 0),
        "trans_b": node.attrs.get("transB", 0),
        "alpha": node.attrs.get("alpha", 1.0),
    }
    a, b = node.shape(0), node.shape(3)
    shape = (a[1 if attrs["trans_a"] else 0], b[0 if attrs["trans_b"] else 1])
    return Step(
        "qlinear_gemm",
        None,
        attrs,
        [TensorType(node.type(0).dtype if node.has(7) else "f32", shape)],
    )


op(
    "qlinear_gemm",
    _gemm,
    run=runs("qlinear_gemm"),
    silence=_gemm_silence,
    macs=_gemm_macs,
    operands=("data", "", "", "weight", "", "", "bias"),
    quantised_as=_gemm_integers,
    rounds=True,
    letters=_gemm_letters,
)
spell("qlinear_gemm", "com.microsoft::QGemm", read=_read_gemm, write=nothing)

# -- products of integers with results that are none -----------------------------------------------


def _float_product(axes: Axes, node: Node) -> None:
    """``a`` may be integers or floats; scale, zero point and bias run along the columns of
    ``b``."""
    a, b = axes.of(node.operand(0)), axes.of(node.operand(1))
    axes.unify(a[-1], b[0])
    node.out.axes = (*a[:-1], b[1])
    for i in node.attrs["columns"]:
        _along(axes, b, node.inputs[i] if node.has(i) else None, 1)


def _float_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """Floats that are quantised here are zeroed wherever they are dropped: their extremes make the
    scale."""
    made, zeros = list(operands), node.attrs["zeros"]
    a, b = node.operand(0), node.operand(1)
    dims = list(range(a.rank)) if node.attrs["dynamic"] else [a.rank - 1]
    given = [made[i] if i is not None and i < len(made) else None for i in zeros]
    made[0] = quiet(torch, made[0], given[0], present(a, dims), a.rank - 1)
    made[1] = quiet(torch, made[1], given[1], present(b, [0]), 1)
    return run(*made)


def _float_macs(node: Node) -> tuple[Any, ...]:
    return ((*(node.operand(0).axes or ()), (node.operand(1).axes or ())[1]),)


def _float_letters(node: Node) -> Letters:
    left, right, out = product_letters(node.operand(0).rank, 2)
    terms: list[list[str]] = [left, right, *([] for _ in node.inputs[2:])]
    bias = node.attrs["columns"][-1]
    if node.has(bias):
        terms[bias] = ["n"]
    return *terms, out


def _float_roles(node: Node) -> tuple[Role, ...]:
    between: list[Role] = [""] * (node.attrs["columns"][-1] - 2)
    return ("data", "weight", *between, "bias")


def _float_integers(node: Node) -> dict[int, Quantised]:
    zeros = node.attrs["zeros"]
    made = {1: Quantised(node.attrs["columns"][0], zeros[1], 1)}
    return made if node.attrs["dynamic"] else {0: Quantised(2, zeros[0]), **made}


def _read_float(dynamic: bool) -> Any:
    attrs = {
        "dynamic": dynamic,
        "columns": (2, 3, 4) if dynamic else (3, 5, 6),
        "zeros": (None, 3) if dynamic else (4, 5),
    }

    def read(node: OnnxNode) -> Step:
        if node.rank(1) != 2:
            raise UnsupportedUse(f"a {node.target} of several matrices")
        if not dynamic:
            _single(node, 2, 4)
        return Step(
            "integer_matmul",
            None,
            attrs,
            [TensorType("f32", (*node.shape(0)[:-1], node.shape(1)[1]))],
        )

    return read


op(
    "integer_matmul",
    _float_product,
    run=runs("integer_matmul"),
    silence=_float_silence,
    macs=_float_macs,
    samples=(
        Sample(
            (
                Arg((2, 3, 6)),
                Arg((6, 5), "i8", -9, 9),
                Arg((5,), low=0.1, high=0.2),
                Arg((5,), "i8", -2, 2),
                Arg((5,)),
            ),
            {"dynamic": True, "columns": (2, 3, 4), "zeros": (None, 3)},
            free=4,
        ),
        Sample(
            (
                Arg((2, 3, 6), "u8", 0, 9),
                Arg((6, 5), "i8", -9, 9),
                _SCALE,
                _SCALE,
                _ZERO,
                None,
                Arg((5,)),
            ),
            {"dynamic": False, "columns": (3, 5, 6), "zeros": (4, 5)},
            free=4,
        ),
    ),
    operands=_float_roles,
    quantised_as=_float_integers,
    rounds=True,
    letters=_float_letters,
)
spell("integer_matmul", "com.microsoft::DynamicQuantizeMatMul", read=_read_float(True))
spell("integer_matmul", "com.microsoft::MatMulIntegerToFloat", read=_read_float(False))

# -- samples ---------------------------------------------------------------------------------------

_THREE = [_SCALE, _ZERO] * 3
for _kind in ("Add", "Mul"):
    sampled(
        f"com.microsoft::QLinear{_kind}",
        use(_BYTES, _SCALE, _ZERO, Arg((6, 5), "u8", 0, 255), *_THREE[2:], free=3),
    )
for _kind in ("Sigmoid", "LeakyRelu"):
    sampled(f"com.microsoft::QLinear{_kind}", use(_BYTES, *_THREE[2:], free=3))
sampled(
    "com.microsoft::QLinearSoftmax",
    Sample((_BYTES, *_THREE[2:]), {"axis": 2, "opset": 13}, free=2),
)
sampled(
    "com.microsoft::QLinearGlobalAveragePool",
    use(Arg((2, 6, 3, 3), "u8", 0, 255), *_THREE[2:], free=2, channels_last=0),
)
sampled(
    "com.microsoft::QLinearConcat",
    use(
        _SCALE,
        _ZERO,
        _BYTES,
        _SCALE,
        _ZERO,
        Arg((2, 4, 5), "u8", 0, 255),
        _SCALE,
        _ZERO,
        free=4,
        axis=1,
    ),
)
_ROWS, _MATRIX = Arg((4, 6), "u8", 0, 9), Arg((5, 6), "i8", -5, 5)
_PER_ROW = Arg((5,), low=0.1, high=0.2), Arg((5,), "i8", -2, 2)
sampled(
    "com.microsoft::QGemm",
    use(_ROWS, _SCALE, _ZERO, _MATRIX, *_PER_ROW, Arg((5,), "i32", -99, 99), free=3, transB=1),
    use(_ROWS, _SCALE, _ZERO, _MATRIX, *_PER_ROW, None, _SCALE, _ZERO, free=3, transB=1),
)
_FLOATS, _COLUMNS = Arg((2, 3, 6)), Arg((6, 5), "i8", -9, 9)
_PER_COLUMN = Arg((5,), low=0.1, high=0.2), Arg((5,), "i8", -2, 2)
sampled(
    "com.microsoft::DynamicQuantizeMatMul",
    use(_FLOATS, _COLUMNS, *_PER_COLUMN, Arg((5,)), free=4),
)
sampled(
    "com.microsoft::MatMulIntegerToFloat",
    use(Arg((2, 3, 6), "u8", 0, 9), _COLUMNS, _SCALE, _PER_COLUMN[0], _ZERO, free=4),
)
