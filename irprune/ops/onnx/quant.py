"""Quantised tensors: scales and zero points lie along one dimension of what they scale, or there is
one for all."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.dtype import computed_type
from irprune.ir.graph import Node, TensorType, Value
from irprune.ops.aten.contraction import Letters, product_letters, zeroed
from irprune.ops.onnx.contraction import product_type
from irprune.ops.onnx.conv import conv_places
from irprune.ops.onnx.importer import (
    Edit,
    OnnxNode,
    Step,
    UnsupportedUse,
    runs,
    sampled,
    spell,
    use,
)
from irprune.ops.onnx.norm import nothing
from irprune.ops.onnx.types import like, position
from irprune.ops.registry import Arg, Cut, Sample, Unsupported
from irprune.ops.registry import op as declare
from irprune.ops.traits import Convolution, Quantised, Role, kernel_of, many

op = partial(declare, family="quant")

__all__ = ["quiet"]


def _along(
    axes: Axes, own: tuple[Axis, ...], value: Value | None, dim: int, block: int = 0
) -> None:
    """``value`` holds one number for all, one per index of ``dim``, or one per block of ``dim``."""
    if value is None:
        return
    held = axes.of(value)
    if value.rank == 1 and value.shape[0] != 1:
        axes.unify(own[dim], held[0])
    elif value.rank == len(own) and value.rank > 1:
        for k, (a, b) in enumerate(zip(own, held, strict=True)):
            if k != dim:
                axes.unify(a, b)
                continue
            outer, inner = axes.split(a, b.size)
            if outer is None or inner is None:
                raise Unsupported("blocks that do not fit the dimension")
            axes.freeze(inner, "a block of quantised values")
            axes.unify(outer, b)


def _scaled(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    for value in node.inputs[1:]:
        _along(axes, own, value, node.attrs["dim"], node.attrs.get("block", 0))
    node.out.axes = own


def _axis(node: OnnxNode) -> int:
    return position(node.attrs.get("axis", 1), node.rank()) if node.rank() > 1 else 0


def _quantize(node: OnnxNode) -> Step:
    dtype = (
        node.type(2).dtype if node.has(2) else computed_type(node.attrs.get("output_dtype", 0) or 2)
    )
    if dtype not in ("i8", "u8", "i16", "u16", "i32"):
        raise UnsupportedUse("quantisation to an unusual type")
    attrs = {"dim": _axis(node), "block": node.attrs.get("block_size", 0), "dtype": dtype}
    return Step("quantize_linear", None, attrs, [like(node, dtype=dtype)])


def _dequantize(node: OnnxNode) -> Step:
    dtype = computed_type(node.attrs.get("output_dtype", 0)) or node.type(1).dtype
    if node.type(0).dtype not in ("i8", "u8", "i16", "u16", "i32"):
        raise UnsupportedUse("dequantisation of an unusual type")
    attrs = {"dim": _axis(node), "block": node.attrs.get("block_size", 0), "dtype": dtype}
    return Step("dequantize_linear", None, attrs, [like(node, dtype=dtype)])


_SCALES = Arg((6,), low=0.1, high=0.2)
op(
    "quantize_linear",
    _scaled,
    run=runs("quantize_linear"),
    samples=(
        Sample(
            (Arg((2, 6, 5)), _SCALES, Arg((6,), "i8", -2, 3)),
            {"dim": 1, "block": 0, "dtype": "i8"},
            free=3,
        ),
    ),
    rounds=True,
)
op(
    "dequantize_linear",
    _scaled,
    run=runs("dequantize_linear"),
    samples=(
        Sample(
            (Arg((2, 6, 5), "i8", -9, 9), _SCALES, Arg((6,), "i8", -2, 3)),
            {"dim": 1, "block": 0, "dtype": "f32"},
            free=3,
        ),
        Sample(
            (Arg((4, 6), "i8", -9, 9), Arg((4, 3), low=0.1), None),
            {"dim": 1, "block": 2, "dtype": "f32"},
            free=2,
        ),
    ),
    quantised_as=lambda node: {0: Quantised(1, 2, node.attrs["dim"])},
    dequantises=True,
    rounds=True,
)
for _domain in ("", "com.microsoft::"):
    spell("quantize_linear", f"{_domain}QuantizeLinear", read=_quantize, write=nothing)
    spell("dequantize_linear", f"{_domain}DequantizeLinear", read=_dequantize, write=nothing)


def _dynamic(node: OnnxNode) -> Step:
    return Step(
        "dynamic_quantize",
        None,
        {},
        [like(node, dtype="u8"), TensorType("f32", ()), TensorType("u8", ())],
    )


def _dynamic_rule(axes: Axes, node: Node) -> None:
    node.out.axes = axes.of(node.operand(0))
    for value in node.outputs[1:]:
        value.axes = ()


def _dynamic_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """The scale follows the extremes of all values and zero: what is dropped counts for nothing as
    zeros."""
    return run(
        zeroed(torch, operands[0], present(node.operand(0), list(range(node.operand(0).rank))))
    )


op(
    "dynamic_quantize",
    _dynamic_rule,
    run=runs("dynamic_quantize", 3),
    silence=_dynamic_silence,
    samples=(Sample((Arg((2, 6, 5)),), free=3),),
    rounds=True,
)
spell("dynamic_quantize", "DynamicQuantizeLinear", read=_dynamic)

# -- products of integers --------------------------------------------------------------------------


def quiet(torch: Any, x: Any, zero: Any, mask: Any, dim: int) -> Any:
    """``x`` with its zero point where ``mask`` is false: that is what stands for nothing."""
    if mask is None:
        return x
    if zero is None:
        fill = torch.zeros((), dtype=x.dtype, device=x.device)
    elif zero.dim() == 1 and zero.shape[0] != 1:
        shape = [1] * x.dim()
        shape[dim] = zero.shape[0]
        fill = zero.reshape(shape)
    else:
        fill = zero.reshape([])
    return torch.where(mask, x, fill.expand(x.shape) if fill.dim() else fill)


def _matmul_rule(axes: Axes, node: Node) -> None:
    a_at, b_at, scales, zeros, out = node.attrs["places"]
    a, b = axes.of(node.operand(a_at)), axes.of(node.operand(b_at))
    axes.unify(a[-1], b[-2 if len(b) > 1 else -1])
    lead = node.out.rank - (len(a) > 1) - (len(b) > 1)
    made: list[Axis] = []
    for k in range(lead):
        pair = [x[k - lead - 2 + len(x)] for x in (a, b) if 0 <= k - lead - 2 + len(x) < len(x) - 2]
        wide = [p for p in pair if p.size != 1]
        for other in wide[1:]:
            axes.unify(wide[0], other)
        made.append(wide[0] if wide else axes.one)
    node.out.axes = (*made, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))
    for at, own, dim in (
        (scales[0], a, -2),
        (zeros[0], a, -2),
        (scales[1], b, -1),
        (zeros[1], b, -1),
        (out, node.out.axes, -1),
    ):
        for i in at if isinstance(at, tuple) else (at,):
            if i is not None and node.has(i) and len(own) > 1:
                _along(axes, own, node.operand(i), dim % len(own))


def _matmul_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    a_at, b_at, _scales, zeros, _out = node.attrs["places"]
    made = list(operands)
    made.extend([None] * (9 - len(made)))
    a, b = node.operand(a_at), node.operand(b_at)
    made[a_at] = quiet(torch, made[a_at], made[zeros[0]], present(a, [a.rank - 1]), a.rank - 2)
    made[b_at] = quiet(
        torch, made[b_at], made[zeros[1]], present(b, [max(b.rank - 2, 0)]), b.rank - 1
    )
    return run(*made[: len(operands)])


def _matmul_letters(node: Node) -> Letters:
    a_at, b_at, *_ = node.attrs["places"]
    left, right, out = product_letters(node.operand(a_at).rank, node.operand(b_at).rank)
    terms: list[list[str]] = [[] for _ in node.inputs]
    terms[a_at], terms[b_at] = left, right
    return *terms, out


def _matmul_macs(node: Node) -> tuple[tuple[Axis, ...], ...]:
    a = node.operand(node.attrs["places"][0]).axes or ()
    return ((*(node.out.axes or ()), a[-1]),)


def _conv_macs(node: Node) -> tuple[tuple[Axis, ...], ...]:
    kernel = node.operand(node.attrs["places"][1]).axes or ()
    return ((*(node.out.axes or ()), *kernel[1:]),)


def _matmul_integers(node: Node) -> dict[int, Quantised]:
    a_at, b_at, scales, zeros, out = node.attrs["places"]
    made = {
        a_at: Quantised(scales[0], zeros[0], max(node.operand(a_at).rank - 2, 0)),
        b_at: Quantised(scales[1], zeros[1], node.operand(b_at).rank - 1),
    }
    return made if out is None else {**made, -1: Quantised(out[0], out[1], node.out.rank - 1)}


_PLAIN, _SCALED = (0, 1, (None, None), (2, 3), None), (0, 3, (1, 4), (2, 5), (6, 7))
op(
    "matmul_integer",
    _matmul_rule,
    run=runs("matmul_integer"),
    silence=_matmul_silence,
    samples=(
        Sample(
            (
                Arg((4, 6), "u8", 0, 9),
                Arg((6, 5), "i8", -5, 5),
                Arg((), "u8", 3, 4),
                Arg((5,), "i8", -2, 2),
            ),
            {"places": _PLAIN},
            free=3,
        ),
    ),
    operands=("data", "weight"),
    quantised_as=_matmul_integers,
    rounds=True,
    letters=_matmul_letters,
    macs=_matmul_macs,
)
op(
    "qlinear_matmul",
    _matmul_rule,
    run=runs("qlinear_matmul"),
    silence=_matmul_silence,
    operands=("data", "", "", "weight"),
    quantised_as=_matmul_integers,
    rounds=True,
    letters=_matmul_letters,
    macs=_matmul_macs,
)
spell(
    "matmul_integer",
    "MatMulInteger",
    read=lambda node: Step(
        "matmul_integer", None, {"places": _PLAIN}, [product_type(node, dtype="i32")]
    ),
)
spell(
    "qlinear_matmul",
    "QLinearMatMul",
    read=lambda node: Step(
        "qlinear_matmul", None, {"places": _SCALED}, [product_type(node, 0, 3, node.type(7).dtype)]
    ),
)


def _conv_rule(axes: Axes, node: Node) -> None:
    x_at, w_at, scales, zeros, more = node.attrs["places"]
    x, w = axes.of(node.operand(x_at)), axes.of(node.operand(w_at))
    groups = node.attrs["groups"]
    g, i = axes.split(x[1], groups)
    h, o = axes.split(w[0], groups)
    if g is None or i is None or h is None or o is None:
        raise Unsupported("groups that do not fit the channels")
    for f in (g, h):
        if f is not axes.one:
            f.role = f.role or "group"
    axes.unify(g, h)
    axes.unify(i, w[1])
    for a in (*x[2:], *w[2:]):
        axes.freeze(a, "positions of a convolution")
    out = (
        x[0],
        axes.product((h, o)) if groups != 1 else w[0],
        *(axes.frozen(s, "positions of a convolution") for s in node.out.shape[2:]),
    )
    for k in (scales[1], zeros[1], *more):
        if k is not None and node.has(k):
            _along(axes, w, node.operand(k), 0)
    node.out.axes = out


def _conv_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    x_at, w_at, _scales, zeros, _more = node.attrs["places"]
    made = [*operands, *[None] * (9 - len(operands))]
    made[x_at] = quiet(torch, made[x_at], made[zeros[0]], present(node.operand(x_at), [1]), 1)
    made[w_at] = quiet(torch, made[w_at], made[zeros[1]], present(node.operand(w_at), [1]), 0)
    return run(*made[: len(operands)])


def _conv_resize(node: Node, cut: Cut) -> None:
    if node.attrs["groups"] != 1:
        x_at, w_at = node.attrs["places"][:2]
        node.attrs["groups"] = cut.size((node.operand(x_at).axes or ())[1]) // cut.size(
            (node.operand(w_at).axes or ())[1]
        )


def _write_groups(edit: Edit, node: Node) -> None:
    if node.attrs["groups"] != edit.attrs.get("group", 1):
        edit.attr("group", node.attrs["groups"])


def _geometry(node: Node) -> Convolution:
    """The node as a convolution of the numbers that its integers stand for."""
    a, flat = node.attrs, node.attrs["padding"]
    x_at, w_at, _scales, _zeros, more = a["places"]
    n = len(kernel_of(node.operand(w_at)))
    pairs = [(int(b), int(e)) for b, e in zip(flat[::2], flat[1::2], strict=True)]
    return Convolution(
        x_at,
        w_at,
        more[0] if more else None,
        many(a["stride"], n),
        tuple(reversed(pairs)),
        many(a["dilation"], n),
        many(0, n),
        int(a["groups"]),
    )


def _conv_roles(node: Node) -> tuple[Role, ...]:
    x_at, w_at, _scales, _zeros, more = node.attrs["places"]
    role: dict[int, Role] = {x_at: "data", w_at: "weight", **dict.fromkeys(more, "bias")}
    return tuple(role.get(i, "") for i in range(max(role) + 1))


def _conv_integers(node: Node) -> dict[int, Quantised]:
    x_at, w_at, scales, zeros, more = node.attrs["places"]
    made = {x_at: Quantised(scales[0], zeros[0], 1), w_at: Quantised(scales[1], zeros[1], 0)}
    if not more:
        return made
    bias = Quantised(scales[0], None, 0, more=(scales[1],))
    return {**made, more[0]: bias, -1: Quantised(6, 7, 1)}


_CONV_PLAIN, _CONV_SCALED = (0, 1, (None, None), (2, 3), ()), (0, 3, (1, 4), (2, 5), (8,))


def _read_conv(name: str, places: Any) -> Any:
    def read(node: OnnxNode) -> Step:
        x_at, w_at = places[:2]
        attrs, shape = conv_places(node, node.shape(x_at), node.shape(w_at))
        dtype = "i32" if name == "conv_integer" else node.type(7).dtype
        return Step(name, None, {**attrs, "places": places}, [TensorType(dtype, shape)])

    return read


for _name, _onnx, _places in (
    ("conv_integer", "ConvInteger", _CONV_PLAIN),
    ("qlinear_conv", "QLinearConv", _CONV_SCALED),
):
    op(
        _name,
        _conv_rule,
        run=runs(_name),
        silence=_conv_silence,
        resize=_conv_resize,
        operands=_conv_roles,
        convolution=_geometry,
        quantised_as=_conv_integers,
        rounds=True,
        macs=_conv_macs,
    )
    spell(_name, _onnx, read=_read_conv(_name, _places), write=_write_groups)

# -- samples ---------------------------------------------------------------------------------------

_X, _BYTES = Arg((2, 6, 5)), Arg((2, 6, 5), "i8", -9, 9)
_ONE, _MANY, _ZEROS = (
    Arg((), low=0.1, high=0.2),
    Arg((6,), low=0.1, high=0.2),
    Arg((6,), "i8", -2, 3),
)
for _domain in ("", "com.microsoft::"):
    sampled(
        f"{_domain}QuantizeLinear",
        use(_X, _MANY, _ZEROS, free=3, axis=1),
        use(_X, _ONE, Arg((), "u8", 3, 9), free=3),
    )
    sampled(
        f"{_domain}DequantizeLinear",
        use(_BYTES, _MANY, _ZEROS, free=3, axis=1),
        use(_BYTES, _ONE, Arg((), "i8", -2, 3), free=3),
    )
sampled("DynamicQuantizeLinear", use(_X, free=3, read=(0, 1, 2)))
_LEFT, _RIGHT = Arg((4, 6), "u8", 0, 9), Arg((6, 5), "i8", -5, 5)
_COLUMNS = Arg((5,), "i8", -2, 2, stored=True)
sampled(
    "MatMulInteger",
    use(_LEFT, _RIGHT, Arg((), "u8", 3, 4), _COLUMNS, free=3),
    use(Arg((2, 4, 6), "u8", 0, 9), _RIGHT, free=4),
)
_UNIT, _MIDDLE = Arg((), low=0.05, high=0.1), Arg((), "u8", 3, 9)
sampled(
    "QLinearMatMul",
    use(
        _LEFT,
        _UNIT,
        _MIDDLE,
        _RIGHT,
        Arg((5,), low=0.1, high=0.2),
        Arg((5,), "i8", -2, 2),
        _UNIT,
        _MIDDLE,
        free=3,
    ),
)
_IMAGE, _KERNELS = Arg((2, 6, 5, 5), "u8", 0, 9), Arg((4, 6, 3, 3), "u8", 0, 9)
_SIGNED, _HALF = Arg((4, 6, 3, 3), "i8", -5, 5), Arg((4, 3, 3, 3), "i8", -5, 5)
sampled(
    "ConvInteger",
    use(_IMAGE, _KERNELS, Arg((), "u8", 3, 9), free=3, pads=[1, 1, 1, 1]),
    use(_IMAGE, _KERNELS, Arg((), "u8", 3, 9), free=3, pads=[0, 1, 1, 0], strides=[2, 2]),
    use(_IMAGE, Arg((4, 3, 3, 3), "u8", 0, 9), Arg((), "u8", 3, 9), free=4, group=2),
)
_AROUND = (_UNIT, _MIDDLE, Arg((4,), low=0.1, high=0.2, stored=True), Arg((4,), "i8", 0, 1))
_KERNEL = _AROUND[2], Arg((4,), "i8", values=(0,) * 4)
_BIAS = Arg((4,), "i32", -99, 99)
sampled(
    "QLinearConv",
    use(_IMAGE, _UNIT, _MIDDLE, _SIGNED, *_KERNEL, _UNIT, _MIDDLE, _BIAS, free=3, pads=[1] * 4),
    use(_IMAGE, _UNIT, _MIDDLE, _HALF, *_KERNEL, _UNIT, _MIDDLE, free=4, group=2),
    use(_IMAGE, _UNIT, _MIDDLE, _SIGNED, *_KERNEL, _UNIT, _MIDDLE, free=3, pads=[0, 1, 1, 0]),
)
