"""Element-wise operators as ONNX spells them."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.dtype import computed_type, is_integer
from irprune.ir.graph import TensorType
from irprune.ops.aten.elementwise import broadcast as broadcast_rule
from irprune.ops.onnx.importer import (
    PREVIOUS,
    OnnxNode,
    Step,
    UnsupportedUse,
    runs,
    sampled,
    spell,
    use,
)
from irprune.ops.onnx.steps import hard_sigmoid, swish
from irprune.ops.onnx.types import broadcast, like
from irprune.ops.registry import Arg, amend
from irprune.ops.registry import op as declare

__all__ = ["elementwise", "plain"]

op = partial(declare, family="elementwise")


def plain(name: str, dtype: str | None = None, **attrs: Any) -> Any:
    """A reader: same operands, the result broadcast, fixed attributes."""

    def read(node: OnnxNode) -> Step:
        if node.opset < 7 and node.attrs.get("broadcast"):
            raise UnsupportedUse("the old way of broadcasting")
        if dtype is None:
            return Step(name, None, attrs)
        if any(t is not None and t.shape is None for t in node.types):
            return Step(name, None, attrs, [TensorType(dtype, None)])
        shapes = [t.known for t in (node.type(i) for i in range(len(node.types)) if node.has(i))]
        return Step(name, None, attrs, [TensorType(dtype, broadcast(shapes))])

    return read


def elementwise(name: str, function: str = "", **traits: Any) -> None:
    """An entry over any number of operands that broadcast, run by
    ``irprune.ops.onnx.functions``."""
    op(name, broadcast_rule, run=runs(function or name), **traits)


for _onnx, _name in {
    "Abs": "abs",
    "Acos": "acos",
    "Acosh": "acosh",
    "Add": "add",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atanh": "atanh",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "HardSwish": "hardswish",
    "Log": "log",
    "Mish": "mish",
    "Mul": "mul",
    "Neg": "neg",
    "Reciprocal": "reciprocal",
    "Relu": "relu",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Sqrt": "sqrt",
    "Sub": "sub",
    "Tan": "tan",
    "Tanh": "tanh",
    "BitwiseNot": "bitwise_not",
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}.items():
    spell(_name, _onnx, read=plain(_name))
for _onnx, _name in {
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
    "Not": "logical_not",
    "Equal": "eq",
    "Greater": "gt",
    "Less": "lt",
    "GreaterOrEqual": "ge",
    "LessOrEqual": "le",
    "IsNaN": "isnan",
}.items():
    spell(_name, _onnx, read=plain(_name, "bool"))


def _identity(node: OnnxNode) -> Step:
    """Of a tensor; lists are passed on by a function."""
    return Step("identity", None, {}, [like(node)])


spell("identity", "Identity", read=_identity)


def _where(node: OnnxNode) -> Step:
    return Step(
        "where",
        None,
        {},
        [TensorType(node.type(1).dtype, broadcast(node.shape(i) for i in range(3)))],
    )


spell("where", "Where", read=_where)


def _div(node: OnnxNode) -> Step:
    """Integers are divided towards zero."""
    kind = node.types[0]
    if kind is not None and is_integer(kind.dtype):
        return Step("div_mode", None, {"rounding_mode": "trunc"})
    return Step("div")


spell(("div", "div_mode"), "Div", read=_div)


def _mod(node: OnnxNode) -> Step:
    return Step("fmod" if node.attrs.get("fmod", 0) else "remainder")


spell(("remainder", "fmod"), "Mod", read=_mod)


def _pow(node: OnnxNode) -> list[Step]:
    """The result has the type of the base, whatever the exponent's is."""
    base, exponent = node.type(0).dtype, node.type(1).dtype
    shape = broadcast((node.shape(0), node.shape(1)))
    wide = exponent if is_integer(base) and not is_integer(exponent) else base
    steps = [Step("pow", (0, 1), {}, [TensorType(wide, shape)])]
    if base != exponent:
        steps.append(Step("cast", (PREVIOUS,), {"dtype": base}, [TensorType(base, shape)]))
    return steps


amend(
    "pow",
    call=lambda node: f"aten.pow.Tensor_{'Tensor' if node.has(1) else 'Scalar'}",
    learned=False,
)
spell(("pow", "cast"), "Pow", read=_pow)


def _shift(node: OnnxNode) -> Step:
    way = "left" if node.attrs["direction"] == "LEFT" else "right"
    return Step(f"bitwise_{way}_shift")


spell(("bitwise_left_shift", "bitwise_right_shift"), "BitShift", read=_shift)


def _all(name: str, mean: bool = False) -> Any:
    """A reader of an operator of two, over any number of operands: one step after the other."""

    def read(node: OnnxNode) -> list[Step]:
        steps = [Step(name, (PREVIOUS if i > 1 else 0, i)) for i in range(1, len(node.types))]
        if mean and steps:
            steps.append(Step("div", (PREVIOUS,), {"other": float(len(node.types))}))
        return steps or [Step("identity", (0,))]

    return read


for _onnx, _name in {"Sum": "add", "Max": "maximum", "Min": "minimum"}.items():
    spell((_name, "identity"), _onnx, read=_all(_name))
spell(("add", "div", "identity"), "Mean", read=_all("add", mean=True))
for _name in ("maximum", "minimum"):
    amend(_name, learned=False)


def _with(name: str, **defaults: tuple[str, Any]) -> Any:
    """A reader whose attributes are ONNX's under other names: ``canonical=(onnx, default)``."""

    def read(node: OnnxNode) -> Step:
        return Step(name, (0,), {k: node.attrs.get(o, d) for k, (o, d) in defaults.items()})

    return read


spell("leaky_relu", "LeakyRelu", read=_with("leaky_relu", negative_slope=("alpha", 0.01)))
spell("elu", "Elu", read=_with("elu", alpha=("alpha", 1.0)))
spell("celu", "Celu", read=_with("celu", alpha=("alpha", 1.0)))
spell("softplus", "Softplus", read=_with("softplus"))
spell("gelu", "Gelu", read=_with("gelu", approximate=("approximate", "none")))
spell("gelu", "com.microsoft::Gelu", read=_with("gelu"))
spell(
    "elu",
    "Selu",
    read=_with(
        "elu", alpha=("alpha", 1.67326319217681884765625), scale=("gamma", 1.0507009873554805)
    ),
)
spell(
    "threshold",
    "ThresholdedRelu",
    read=_with("threshold", threshold=("alpha", 1.0), value=("", 0.0)),
)
elementwise("shrink")
spell("shrink", "Shrink", read=_with("shrink", bias=("bias", 0.0), lambd=("lambd", 0.5)))
spell(
    ("mul", "add", "clamp", "hardsigmoid"),
    "HardSigmoid",
    read=lambda node: hard_sigmoid(node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)),
)
spell(
    ("abs", "add", "div"),
    "Softsign",
    read=lambda node: [
        Step("abs", (0,)),
        Step("add", (PREVIOUS,), {"other": 1.0}),
        Step("div", (0, PREVIOUS)),
    ],
)


def _swish(alpha: float) -> Any:
    return lambda node: swish(node.attrs.get("alpha", alpha))


for _onnx, _alpha in (("Swish", 1.0), ("com.microsoft::QuickGelu", 1.702)):
    spell(("mul", "sigmoid", "silu"), _onnx, read=_swish(_alpha))
spell(
    ("mul", "sigmoid", "silu"),
    "SwiGLU",
    read=lambda node: [
        *swish(node.attrs.get("alpha", 1.0)),
        Step("mul", (PREVIOUS, 1)),
    ],
)


def _isinf(node: OnnxNode) -> Step:
    kind = [like(node, dtype="bool")]
    ways = node.attrs.get("detect_negative", 1), node.attrs.get("detect_positive", 1)
    if not any(ways):
        return Step("lt", (0, 0), {}, kind)  # false for every number
    return Step("isinf" if all(ways) else "isneginf" if ways[0] else "isposinf", (0,), {}, kind)


spell(("isinf", "isneginf", "isposinf", "lt"), "IsInf", read=_isinf)


def _added_gelu(approximate: str) -> Any:
    def read(node: OnnxNode) -> list[Step]:
        gelu = {"approximate": approximate}
        if not node.has(1):
            return [Step("gelu", (0,), gelu)]
        return [
            Step("add", (0, 1)),
            Step("gelu", (PREVIOUS,), gelu),
        ]

    return read


spell(("add", "gelu"), "com.microsoft::BiasGelu", read=_added_gelu("none"))
spell(("add", "gelu"), "com.microsoft::FastGelu", read=_added_gelu("tanh"))


def _prelu(node: OnnxNode) -> Step:
    if node.opset < 7 and node.rank(1) == 1:  # one slope per channel, before operands broadcast
        return Step("prelu", None, {}, [like(node)])
    return Step(
        "prelu_kernel",
        None,
        {},
        [TensorType(node.type(0).dtype, broadcast((node.shape(0), node.shape(1))))],
    )


spell(("prelu_kernel", "prelu"), "PRelu", read=_prelu)


def _clip(node: OnnxNode) -> Step:
    if node.opset < 11:
        return Step(
            "clamp",
            (0,),
            {k: node.attrs[k] for k in ("min", "max") if k in node.attrs},
            [like(node)],
        )
    bounds = {}
    for i, name in ((1, "min"), (2, "max")):
        if node.has(i) and (value := node.constant(i)) is None:
            return Step("clamp", (0, 1, 2))
        elif node.has(i):
            bounds[name] = value.item()  # type: ignore[union-attr]
    return Step("clamp", (0,), bounds) if bounds else Step("identity", (0,))


amend(
    "clamp",
    call=lambda node: f"aten.clamp.{'Tensor' if node.has(1) or node.has(2) else 'default'}",
    learned=False,
)
spell(("clamp", "identity"), "Clip", read=_clip)


def _cast(node: OnnxNode) -> Step:
    dtype = computed_type(node.attrs["to"])
    if not dtype or node.type(0).dtype == "str":
        raise UnsupportedUse("a cast to or from strings or an unusual type")
    return Step("cast", (0,), {"dtype": dtype}, [like(node, dtype=dtype)])


spell("cast", "Cast", read=_cast)
spell(
    "cast_like",
    "CastLike",
    read=lambda node: Step("cast_like", None, {}, [like(node, dtype=node.type(1).dtype)]),
)


def _dropout(node: OnnxNode) -> Step:
    """Outside training a dropout does nothing; its second result is then all true."""
    ratio = node.attrs.get("ratio", 0.5)
    if node.opset >= 12:
        given, training = node.given(1), node.given(2)
        ratio = 0.5 if given is None else float(given)
        if training is not None and bool(training):
            raise UnsupportedUse("a Dropout in training mode")
    if any(node.outputs[1:]):
        kinds = [like(node), like(node, dtype="bool" if node.opset >= 10 else None)]
        return Step("native_dropout", (0,), {"p": ratio, "train": False}, kinds)
    return Step("dropout", (0,), {"p": ratio, "train": False}, [like(node)])


spell(("dropout", "native_dropout"), "Dropout", read=_dropout)

# -- samples ---------------------------------------------------------------------------------------

_X, _COLUMN = Arg((2, 6, 5), low=-4.0, high=4.0), Arg((6, 1), low=-4.0, high=4.0)
_FLAGS, _FLAG, _UPTO = Arg((2, 6, 5), "bool"), Arg((6, 1), "bool"), Arg((2, 6, 5), low=0.1, high=2)
_INTEGERS, _INTEGER = Arg((2, 6, 5), "i32", 1, 9), Arg((6, 1), "i32", 1, 9)
for _arg, _names in (
    (
        _X,
        "Abs Asinh Atan Ceil Cos Cosh Erf Exp Floor HardSwish Neg Relu Round Sigmoid Sign Sin Sinh",
    ),
    (
        _X,
        "Tanh IsNaN Identity Softplus com.microsoft::Gelu Softsign IsInf",
    ),
    (Arg((2, 6, 5), low=-0.9, high=0.9), "Acos Asin Atanh Tan"),
    (Arg((2, 6, 5), low=1.1, high=2.0), "Acosh"),
    (_UPTO, "Log Sqrt Reciprocal"),
    (_FLAGS, "Not"),
):
    sampled(_names, use(_arg, free=3))
sampled("Mish", use(_X, free=3, opset=18))
sampled("BitwiseNot", use(_INTEGERS, free=3, opset=18))
sampled("Add Sub Mul Div Greater Less GreaterOrEqual LessOrEqual", use(_X, _COLUMN, free=3))
sampled("Div Mod", use(_INTEGERS, _INTEGER, free=3))
sampled("Equal", use(_INTEGERS, _INTEGER, free=1), use(_X, _COLUMN, free=3))
sampled("BitwiseAnd BitwiseOr BitwiseXor", use(_INTEGERS, _INTEGER, free=3, opset=18))
sampled("And Or Xor", use(_FLAGS, _FLAG, free=3))
sampled("Where", use(_FLAG, _X, Arg((2, 1, 5)), free=3))
sampled("Mod", use(_UPTO, Arg((6, 1), low=0.3, high=0.9), free=3, fmod=1))
sampled("Pow", use(_UPTO, _COLUMN, free=3), use(_UPTO, Arg((), "i64", 2, 3), free=3))
sampled("Pow", use(_INTEGERS, Arg((6, 1), low=0.5, high=2.0), free=3))
for _way in ("LEFT", "RIGHT"):
    _bits = Arg((2, 6, 5), "u8", 0, 8), Arg((6, 1), "u8", 0, 4)
    sampled("BitShift", use(*_bits, free=3, direction=_way))
sampled("Sum Mean Max Min", use(_X, _COLUMN, Arg((2, 1, 5)), free=3), use(_X, free=3))
sampled("LeakyRelu Elu Celu ThresholdedRelu", use(_X, free=3, alpha=0.3))
sampled("Gelu", *(use(_X, free=3, opset=20, approximate=a) for a in ("none", "tanh")))
sampled("Selu", use(_X, free=3), use(_X, free=3, alpha=1.2, gamma=0.8))
sampled(
    "HardSigmoid",
    use(_X, free=3, alpha=1 / 6),
    use(_X, free=3),
    use(_X, free=3, alpha=0.3, beta=0.4),
)
sampled("Shrink", use(_X, free=3, bias=0.2, lambd=0.7))
sampled("Swish", use(_X, free=3, opset=24), use(_X, free=3, opset=24, alpha=0.5))
sampled("com.microsoft::QuickGelu", use(_X, free=3), use(_X, free=3, alpha=1.0))
sampled("SwiGLU", use(_X, Arg((2, 6, 5)), free=3, opset=28))
sampled("SwiGLU", use(_X, Arg((2, 6, 5)), free=3, opset=28, alpha=0.5))
for _negative, _positive in ((0, 1), (1, 0), (0, 0)):
    sampled("IsInf", use(_X, free=3, detect_negative=_negative, detect_positive=_positive))
sampled("com.microsoft::BiasGelu com.microsoft::FastGelu", use(_X, Arg((5,)), free=3))
sampled("com.microsoft::FastGelu", use(_X, free=3))
sampled("PRelu", use(_X, _COLUMN, free=3), use(_X, Arg((6,)), free=3, opset=6))
_LOW, _HIGH = Arg((), values=(-0.5,)), Arg((), values=(0.5,))
sampled("Clip", use(_X, free=3), use(_X, _LOW, free=3), use(_X, _LOW, _HIGH, free=3))
sampled("Clip", use(_X, Arg(()), None, free=3), use(_X, free=3, opset=6, max=0.5))
sampled("Cast", use(_X, free=3, to=11), use(_X, free=3, to=6), use(_X, free=3, to=9))
sampled("CastLike", use(_X, Arg((1,), "i32", 0, 9), free=3))
sampled("Dropout", use(_X, free=3), use(_X, free=3, read=(0, 1)))
