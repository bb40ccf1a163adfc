"""Element-wise arithmetic with broadcasting: dimensions are joined one by one, aligned at the last.

Activations, comparisons, casts and complex parts follow the same rule and stand in files of their
own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ir.size import probe_of
from irprune.ops.registry import Arg, Rule, Sample
from irprune.ops.registry import op as declare

__all__ = ["broadcast"]

op = partial(declare, family="elementwise")


def broadcast(axes: Axes, node: Node) -> None:
    """Every operand's dimension joins the result's, but for sizes 1 that are expanded."""
    shape = node.out.shape
    out: list[Axis | None] = [None] * len(shape)
    unsure: list[int] = []
    for value in node.inputs:
        if value is None:
            continue
        own = axes.of(value)
        shift = len(shape) - len(own)
        for k, a in enumerate(own, shift):
            if probe_of(a.size) != probe_of(shape[k]):
                if a.size != 1:  # a size known only at run time: 1, or as large as the other
                    axes.freeze(a, "meets a size known only at run time")
                    unsure.append(k)
                continue
            known = out[k]
            if known is None or known is axes.one:
                out[k] = a
            elif known is not a:
                axes.unify(known, a)
    made = tuple(a if a is not None else axes.leaf(s) for a, s in zip(out, shape, strict=True))
    for k in unsure:
        axes.freeze(made[k], "meets a size known only at run time")
    for value in node.outputs:
        value.axes = made


_X = Arg((2, 6, 5))
_POSITIVE = Arg((2, 6, 5), low=0.1, high=2.0)
_ABOVE_1 = Arg((2, 6, 5), low=1.1, high=2.0)
_INSIDE_1 = Arg((2, 6, 5), low=-0.9, high=0.9)
_UNIT = Arg((2, 6, 5), low=0.1, high=0.9)
_WIDE = Arg((2, 6, 5), low=-5.0, high=5.0)
_INT = Arg((2, 6, 5), "i64", 0, 8)


# -- one operand -----------------------------------------------------------------------------------

_ALIASES = {
    "neg": ["negative"],
    "abs": ["absolute"],
    "trunc": ["fix"],
    "exp2": ["special_exp2"],
    "expm1": ["special_expm1"],
    "log1p": ["special_log1p"],
    "asin": ["arcsin"],
    "acos": ["arccos"],
    "atan": ["arctan"],
    "asinh": ["arcsinh"],
    "acosh": ["arccosh"],
    "atanh": ["arctanh"],
    "sinc": ["special_sinc"],
    "erf": ["special_erf"],
    "erfc": ["special_erfc"],
    "erfinv": ["special_erfinv"],
    "lgamma": ["special_gammaln"],
    "digamma": ["special_digamma", "special_psi"],
    "i0": ["special_i0"],
    "logit": ["special_logit"],
}
_ONNX = {
    "neg",
    "abs",
    "sign",
    "ceil",
    "floor",
    "sqrt",
    "reciprocal",
    "exp",
    "log",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "erf",
}
for _arg, _names in (
    (
        _X,
        "neg abs square sign sgn exp exp2 expm1 sin cos tan atan sinh cosh asinh sinc deg2rad rad2deg erf erfc i0 nan_to_num special_i0e "
        "special_i1 special_i1e special_ndtr special_erfcx special_log_ndtr",
    ),
    (_WIDE, "ceil floor trunc frac"),
    (_POSITIVE, "sqrt rsqrt reciprocal log log2 log10 log1p lgamma digamma special_entr"),
    (_INSIDE_1, "asin acos atanh erfinv"),
    (_ABOVE_1, "acosh"),
    (_UNIT, "logit special_ndtri"),
):
    for _name in _names.split():
        op(
            _name,
            broadcast,
            aten=[f"{n}.default" for n in (_name, *_ALIASES.get(_name, ()))],
            onnx=(_name.capitalize(),) if _name in _ONNX else (),
            samples=(Sample((_arg,), free=3),),
        )

op(
    "round",
    broadcast,
    aten=("round.default", "round.decimals", "special_round.default"),
    onnx=("Round",),
    samples=(
        Sample((_WIDE,), free=3),
        Sample((_WIDE,), {"decimals": 1}, free=3, target="aten.round.decimals"),
    ),
)
op(
    "polygamma",
    broadcast,
    aten=("polygamma.default", "special_polygamma.default"),
    samples=(Sample((_POSITIVE,), {"n": 1}, free=3),),
)
op(
    "mvlgamma",
    broadcast,
    aten=("mvlgamma.default", "special_multigammaln.default"),
    samples=(Sample((_ABOVE_1,), {"p": 2}, free=3),),
)


# -- two operands ----------------------------------------------------------------------------------


def binary(
    name: str,
    spelled: str = "",
    *,
    onnx: str = "",
    a: Arg = _X,
    b: Arg | None = None,
    number: float = 2.0,
    rule: Rule = broadcast,
    free: int = 3,
    **traits: Any,
) -> None:
    """Declare an operator of two operands; the overloads' names say which of the two is a
    number, and ``free`` how many axes two tensors leave free."""
    b = b or Arg((6, 1), a.dtype, a.low, a.high)
    aten = [s if "." in s else f"{s}.default" for s in (spelled or name).split()]
    samples = []
    for target in aten:
        variant = target.split(".")[1]
        if variant in ("Scalar", "Tensor_Scalar", "Scalar_Other", "other_scalar"):
            some = [Sample((a,), {"other": number}, free=3)]
        elif variant in ("Scalar_Tensor", "Scalar_Self", "self_scalar"):
            some = [Sample((b,), {"self": number}, free=1)]
        else:
            some = [Sample((a, b), free=free)]
            if name in ("add", "sub", "mul", "div"):  # torch takes a number for the tensor
                some.append(Sample((a,), {"other": number}, free=3))
        samples += [replace(s, target=f"aten.{target}") for s in some]
    shown = (onnx,) if onnx else ()
    op(name, rule, aten=aten, onnx=shown, samples=tuple(samples), **traits)


binary(
    "add",
    "add.Tensor add.Scalar",
    onnx="Add",
    operands=("summand", "summand"),
    adds=lambda node: node.attrs.get("alpha", 1) == 1,
)
binary(
    "sub",
    "sub.Tensor sub.Scalar subtract.Tensor subtract.Scalar",
    onnx="Sub",
    operands=("summand", "summand"),
)
binary("rsub", "rsub.Tensor rsub.Scalar", operands=("summand", "summand"))
binary("mul", "mul.Tensor mul.Scalar multiply.Tensor multiply.Scalar", onnx="Mul")
binary(
    "div",
    "div.Tensor div.Scalar divide.Tensor divide.Scalar true_divide.Tensor true_divide.Scalar",
    onnx="Div",
    a=_POSITIVE,
)
binary("floor_divide", "floor_divide floor_divide.Scalar", a=_POSITIVE, number=0.3)
binary(
    "remainder",
    "remainder.Tensor remainder.Scalar remainder.Scalar_Tensor",
    a=_POSITIVE,
    number=0.3,
)
binary("fmod", "fmod.Tensor fmod.Scalar", a=_POSITIVE, number=0.3)
binary("maximum", "maximum max.other", learned=False)
binary("minimum", "minimum min.other", learned=False)
binary("fmax")
binary("fmin")
binary("atan2", "atan2 arctan2")
binary("hypot")
binary("logaddexp")
binary("logaddexp2")
binary(
    "xlogy",
    "xlogy.Tensor xlogy.Scalar_Other xlogy.Scalar_Self special_xlogy special_xlogy.other_scalar special_xlogy.self_scalar",
    a=_POSITIVE,
)
binary(
    "special_xlog1py",
    "special_xlog1py special_xlog1py.other_scalar special_xlog1py.self_scalar",
    a=_POSITIVE,
)
binary(
    "special_zeta", "special_zeta special_zeta.other_scalar special_zeta.self_scalar", a=_ABOVE_1
)
binary("igamma", "igamma special_gammainc", a=_POSITIVE)
binary("igammac", "igammac special_gammaincc", a=_POSITIVE)
binary("copysign", "copysign.Tensor copysign.Scalar")
binary("nextafter")
binary("heaviside")
binary("ldexp", "ldexp.Tensor", b=Arg((6, 1), "i64", 0, 4))
binary("gcd", a=_INT)
binary("lcm", a=_INT)
binary(
    "bitwise_left_shift",
    "bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_left_shift.Scalar_Tensor "
    "__lshift__.Tensor __lshift__.Scalar",
    a=_INT,
    number=1,
)
binary(
    "bitwise_right_shift",
    "bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar bitwise_right_shift.Scalar_Tensor "
    "__rshift__.Tensor __rshift__.Scalar",
    a=_INT,
    number=1,
)

op(
    "div_mode",
    broadcast,
    aten=("div.Tensor_mode", "div.Scalar_mode", "divide.Tensor_mode", "divide.Scalar_mode"),
    samples=(
        Sample((_X, Arg((6, 1), low=0.1)), {"rounding_mode": "floor"}, free=3),
        Sample((_X,), {"other": 0.3, "rounding_mode": "trunc"}, free=3),
    ),
)
op(
    "pow",
    broadcast,
    samples=(
        Sample((_POSITIVE,), {"exponent": 2.0}, free=3),
        *(
            Sample((_POSITIVE, Arg((6, 1))), free=3, target=f"aten.{n}.Tensor_Tensor")
            for n in ("pow", "float_power")
        ),
        *(
            Sample((_X,), {"self": 2.0}, free=3, target=f"aten.{n}.Scalar")
            for n in ("pow", "float_power")
        ),
    ),
    aten=[
        f"{n}.{overload}"
        for n in ("pow", "float_power")
        for overload in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")
    ],
)


# -- three and more --------------------------------------------------------------------------------

_B, _C = Arg((6, 1), low=0.5, high=1.5), Arg((2, 1, 5))
op(
    "addcmul",
    broadcast,
    aten=("addcmul.default",),
    samples=(Sample((_X, _B, _C), {"value": 0.5}, free=3),),
)
op(
    "addcdiv",
    broadcast,
    aten=("addcdiv.default",),
    samples=(Sample((_X, _C, _B), {"value": 0.5}, free=3),),
)
op(
    "lerp",
    broadcast,
    aten=("lerp.Tensor", "lerp.Scalar"),
    samples=(
        Sample((_X, _C, _B), free=3),
        Sample((_X, _C), {"weight": 0.3}, free=3, target="aten.lerp.Scalar"),
    ),
)
op(
    "clamp",
    broadcast,
    aten=("clamp.default", "clamp.Tensor", "clip.default", "clip.Tensor"),
    samples=(
        Sample((_X,), {"min": -0.5, "max": 0.5}, free=3),
        Sample((_X,), {"max": 0.2}, free=3),
        Sample((_X, None, _B), free=3, target="aten.clamp.Tensor"),
        Sample((_X, _C, _B), free=3, target="aten.clip.Tensor"),
    ),
    learned=False,
)
op(
    "clamp_min",
    broadcast,
    aten=("clamp_min.default", "clamp_min.Tensor"),
    samples=(
        Sample((_X,), {"min": -0.2}, free=3),
        Sample((_X, _C), free=3, target="aten.clamp_min.Tensor"),
    ),
    learned=False,
)
op(
    "clamp_max",
    broadcast,
    aten=("clamp_max.default", "clamp_max.Tensor"),
    samples=(
        Sample((_X,), {"max": 0.2}, free=3),
        Sample((_X, _C), free=3, target="aten.clamp_max.Tensor"),
    ),
    learned=False,
)
