"""Element-wise operators with broadcasting: dimensions are joined one by one, aligned at the last."""

from __future__ import annotations

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ir.size import probe_of
from irprune.ops.registry import Arg, Sample, op

__all__ = ["broadcast"]


def broadcast(axes: Axes, node: Node) -> None:
    """Every operand's dimension joins the result's, but for sizes 1 that are expanded."""
    shape = node.out.shape
    out: list[Axis | None] = [None] * len(shape)
    for value in node.inputs:
        if value is None:
            continue
        own = axes.of(value)
        shift = len(shape) - len(own)
        for k, a in enumerate(own, shift):
            if probe_of(a.size) != probe_of(shape[k]):
                continue
            known = out[k]
            if known is None:
                out[k] = a
            elif known is not a:
                axes.unify(known, a)
    made = tuple(a if a is not None else axes.leaf(s) for a, s in zip(out, shape, strict=True))
    for value in node.outputs:
        value.axes = made


_X = Arg((2, 6, 5))
_POS = Arg((2, 6, 5), low=0.1, high=2.0)
_SMALL = Arg((2, 6, 5), low=-0.9, high=0.9)


def _unary(name: str, *aten: str, onnx: tuple[str, ...] = (), arg: Arg = _X, **attrs: object) -> None:
    op(name, broadcast, aten=aten or (f"{name}.default",), onnx=onnx, samples=(Sample((arg,), attrs, free=3),))


for _name, _onnx in (
    ("relu", "Relu"), ("sigmoid", "Sigmoid"), ("silu", ""), ("tanh", "Tanh"), ("exp", "Exp"), ("neg", "Neg"), ("abs", "Abs"),
    ("sin", "Sin"), ("cos", "Cos"), ("square", ""), ("erf", "Erf"), ("sign", "Sign"), ("ceil", "Ceil"), ("floor", "Floor"),
    ("hardswish", "HardSwish"), ("mish", "Mish"), ("relu6", ""),
):
    _unary(_name, onnx=(_onnx,) if _onnx else ())
for _name, _onnx in (("rsqrt", ""), ("log", "Log"), ("sqrt", "Sqrt"), ("reciprocal", "Reciprocal"), ("log1p", "")):
    _unary(_name, onnx=(_onnx,) if _onnx else (), arg=_POS)


def _binary(name: str, tensor: str, scalar: str = "", *, onnx: tuple[str, ...] = (), low: float = -1.0, extra: tuple[str, ...] = ()) -> None:
    a, b = Arg((2, 6, 5), low=low), Arg((6, 1), low=low)
    op(name, broadcast, aten=(tensor, *((scalar,) if scalar else ()), *extra), onnx=onnx, samples=(
        Sample((a, b), free=3),
        *((Sample((a,), {"other": 2.0}, free=3, target=f"aten.{scalar}"),) if scalar else ()),
    ))


_binary("add", "add.Tensor", "add.Scalar", onnx=("Add",))
_binary("sub", "sub.Tensor", "sub.Scalar", onnx=("Sub",))
_binary("mul", "mul.Tensor", "mul.Scalar", onnx=("Mul",))
_binary("div", "div.Tensor", "div.Scalar", onnx=("Div",), low=0.5)

op("gelu", broadcast, aten=("gelu.default",), samples=(Sample((_X,), {"approximate": "tanh"}, free=3),))
op("dropout", broadcast, aten=("dropout.default", "feature_dropout.default"), samples=(Sample((_X,), {"p": 0.5, "train": False}, free=3),))
op("identity", broadcast, aten=("contiguous.default", "alias.default", "clone.default", "detach.default", "lift_fresh_copy.default"),
   onnx=("Identity",), samples=(Sample((_X,), free=3),))
op("cast", broadcast, aten=("to.dtype", "to.dtype_layout", "to.device", "_to_copy.default"), samples=(Sample((_X,), {"dtype": "f64"}, free=3),))
op("rsub", broadcast, aten=("rsub.Scalar",), samples=(Sample((_X,), {"other": 1.0}, free=3),))
op("pow", broadcast, aten=("pow.Tensor_Scalar",), samples=(Sample((_POS,), {"exponent": 2.0}, free=3),))
op("clamp", broadcast, aten=("clamp.default",), samples=(Sample((_X,), {"min": -0.5, "max": 0.5}, free=3),))
op("hardsigmoid", broadcast, aten=("hardsigmoid.default",), samples=(Sample((_X,), free=3),))
