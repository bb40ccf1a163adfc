"""Convolutions as ONNX spells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType
from irprune.ir.size import Size
from irprune.ops.onnx.importer import (
    Edit,
    Misfit,
    OnnxNode,
    Step,
    Unread,
    sampled,
    spell,
    use,
    variant,
)
from irprune.ops.onnx.types import like, padded, window
from irprune.ops.registry import TABLE, Arg
from irprune.ops.traits import Convolution, kernel_of, many

__all__ = ["conv_places"]


def _kernel(node: OnnxNode, w: Sequence[Size]) -> list[int]:
    sizes = node.attrs.get("kernel_shape") or list(w[2:])
    if any(not isinstance(s, int) for s in sizes):
        raise Unread("a convolution with a dynamic kernel")
    return list(sizes)


def _fitting(x: Sequence[Size], w: Sequence[Size], channels: Size) -> None:
    """Raises Misfit where the image ``x`` has not the ``channels`` that kernels ``w`` are for."""
    if isinstance(x[1], int) and isinstance(channels, int) and x[1] != channels:
        raise Misfit(
            f"kernels of shape {list(w)} are for {channels} channels, the image has {x[1]}"
        )


def conv_places(
    node: OnnxNode, x: Sequence[Size], w: Sequence[Size]
) -> tuple[dict[str, Any], tuple[Size, ...]]:
    """The attributes of a convolution of input ``x`` with kernels ``w``, padding in torch's order,
    and the shape of its result."""
    _fitting(x, w, w[1] * node.attrs.get("group", 1))
    kernel = _kernel(node, w)
    strides, dilations, begins, ends = padded(node, kernel, x)
    places = [
        window(s, k, t, d, b, e)
        for s, k, t, d, b, e in zip(x[2:], kernel, strides, dilations, begins, ends, strict=True)
    ]
    return {
        "stride": strides,
        "padding": _flat(begins, ends),
        "dilation": dilations,
        "groups": node.attrs.get("group", 1),
    }, (
        x[0],
        w[0],
        *places,
    )


def _conv(node: OnnxNode) -> Step:
    x, w = node.shape(0), node.shape(1)
    _fitting(x, w, w[1] * node.attrs.get("group", 1))
    kernel = _kernel(node, w)
    strides, dilations, begins, ends = padded(node, kernel)
    places = [
        window(s, k, t, d, b, e)
        for s, k, t, d, b, e in zip(x[2:], kernel, strides, dilations, begins, ends, strict=True)
    ]
    attrs: dict[str, Any] = {
        "stride": strides,
        "padding": begins,
        "dilation": dilations,
        "groups": node.attrs.get("group", 1),
    }
    kind = [like(node, shape=(x[0], w[0], *places))]
    if begins == ends and len(kernel) <= 3:
        return Step("conv", None, attrs, kind)
    return Step("conv_padded", None, {**attrs, "padding": _flat(begins, ends)}, kind)


def _flat(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Padding in torch's order: the last dimension first, before and after."""
    return [p for b, e in zip(reversed(begins), reversed(ends), strict=True) for p in (b, e)]


def _geometry(node: Node) -> Convolution:
    """The node as a convolution: its padding lies as torch's ``pad`` takes it."""
    a, flat = node.attrs, node.attrs["padding"]
    n = len(kernel_of(node.operand(1)))
    pairs = [(int(b), int(e)) for b, e in zip(flat[::2], flat[1::2], strict=True)]
    return Convolution(
        0,
        1,
        2,
        many(a["stride"], n),
        tuple(reversed(pairs)),
        many(a["dilation"], n),
        many(a.get("output_padding", 0), n),
        int(a["groups"]),
        TABLE[node.op] is TABLE["conv_transpose_padded"],
        not a.get("activation") and not node.has(3),
    )


def _write_groups(edit: Edit, node: Node) -> None:
    if node.attrs["groups"] != edit.attrs.get("group", 1):
        edit.attr("group", node.attrs["groups"])


variant("conv", "conv_padded", "conv_padded", convolution=_geometry)
spell(("conv", "conv_padded"), "Conv", read=_conv, write=_write_groups)


def _conv_transpose(node: OnnxNode) -> Step:
    kernel = _kernel(node, node.shape(1))
    n = len(kernel)
    strides = list(node.attrs.get("strides") or [1] * n)
    dilations = list(node.attrs.get("dilations") or [1] * n)
    extra = list(node.attrs.get("output_padding") or [0] * n)
    pads = list(node.attrs.get("pads") or [0] * 2 * n)
    begins, ends = pads[:n], pads[n:]
    x, w, groups = node.shape(0), node.shape(1), node.attrs.get("group", 1)
    _fitting(x, w, w[0])
    auto, wanted = node.attrs.get("auto_pad", "NOTSET"), node.attrs.get("output_shape")
    full = [
        (s - 1) * t + (e + d * (k - 1) + 1)
        for s, t, e, d, k in zip(x[2:], strides, extra, dilations, kernel, strict=True)
    ]
    if wanted or auto.startswith("SAME"):
        target = (
            list(wanted)[-n:] if wanted else [s * t for s, t in zip(x[2:], strides, strict=True)]
        )
        begins, ends = [], []
        for f, s in zip(full, target, strict=True):
            total = f - s
            if not isinstance(total, int):
                raise Unread("the padding of a ConvTranspose depends on a dynamic size")
            if total < 0:  # more than the windows reach: filled up at the end
                begins.append(0)
                ends.append(total)
                continue
            half = total // 2
            begins.append(half if auto == "SAME_UPPER" else total - half)
            ends.append(total - begins[-1])
    places: list[Size] = [f - (b + e) for f, b, e in zip(full, begins, ends, strict=True)]
    attrs: dict[str, Any] = {
        "stride": strides,
        "padding": begins,
        "output_padding": extra,
        "groups": groups,
        "dilation": dilations,
    }
    kind = [TensorType(node.type(0).dtype, (x[0], w[1] * groups, *places))]
    if (
        begins == ends
        and n <= 3
        and all(b >= 0 for b in begins)
        and all(e < max(t, d) for e, t, d in zip(extra, strides, dilations, strict=True))
    ):
        return Step("conv_transpose", None, attrs, kind)
    return Step("conv_transpose_padded", None, {**attrs, "padding": _flat(begins, ends)}, kind)


variant("conv_transpose", "conv_transpose_padded", "conv_transpose_padded", convolution=_geometry)
spell(
    ("conv_transpose", "conv_transpose_padded"),
    "ConvTranspose",
    read=_conv_transpose,
    write=_write_groups,
)


def _fused(node: OnnxNode) -> Step:
    """A convolution, then a sum (input 3), then an activation."""
    made = _conv(node)
    attrs = dict(made.attrs)
    if made.op == "conv":
        attrs["padding"] = _flat(attrs["padding"], attrs["padding"])
    attrs["activation"] = node.attrs.get("activation", "")
    attrs["parameters"] = node.attrs.get("activation_params") or []
    return Step("conv_fused", (0, 1, 2, 3), attrs, made.types)


def _summed(axes: Axes, node: Node) -> None:
    """What is added before the activation has the axes of the result."""
    TABLE["conv"].rule(axes, node)
    if node.has(3):
        for a, b in zip(node.out.axes or (), axes.of(node.operand(3)), strict=True):
            if a.size != 1 and b.size != 1:
                axes.unify(a, b)


variant("conv", "conv_fused", "conv_fused", rule=_summed, convolution=_geometry)
spell("conv_fused", "com.microsoft::FusedConv", read=_fused, write=_write_groups)


def _deformed(node: OnnxNode) -> Step:
    x, w, offset = node.shape(0), node.shape(1), node.shape(2)
    if len(x) != 4:
        raise Unread("a DeformConv in other than two dimensions")
    strides, dilations, begins, _ = padded(node, _kernel(node, w))
    attrs = {
        "groups": node.attrs.get("group", 1),
        "offset_groups": node.attrs.get("offset_group", 1),
        "stride": strides,
    }
    attrs |= {"begins": begins, "dilation": dilations}
    return Step(
        "deform_conv", (0, 1, 2, 4, 3), attrs, [like(node, shape=(x[0], w[0], *offset[2:]))]
    )


variant("deform_conv2d", "deform_conv", "deform_conv")
spell("deform_conv", "DeformConv", read=_deformed, write=_write_groups)

# -- samples ---------------------------------------------------------------------------------------

_X, _W, _B = Arg((2, 6, 5, 5)), Arg((4, 6, 3, 3)), Arg((4,))
sampled(
    "Conv com.microsoft::FusedConv",
    use(_X, _W, _B, free=3, pads=[1, 1, 1, 1]),
    use(_X, Arg((4, 3, 3, 1)), free=4, group=2, strides=[2, 1]),
    use(_X, Arg((12, 1, 3, 3)), Arg((12,)), free=3, group=6),
    use(_X, _W, _B, free=3, pads=[0, 1, 2, 0]),
    use(_X, _W, free=3, auto_pad="SAME_UPPER", strides=[2, 2]),
)
sampled(
    "Conv",
    use(Arg((2, 6, 9)), Arg((4, 3, 3)), _B, free=4, group=2, pads=[2, 1], dilations=[2]),
    use(Arg((2, 6, 3, 4, 5)), Arg((4, 6, 1, 3, 3)), free=3, pads=[0, 1, 1, 0, 1, 1]),
)
for _kind, _parameters in (
    ("Relu", []),
    ("LeakyRelu", [0.2]),
    ("HardSigmoid", [0.3, 0.4]),
    ("Clip", [-0.2, 0.5]),
    ("Sigmoid", []),
    ("Tanh", []),
):
    _act: dict[str, Any] = {
        "activation": _kind,
        **({"activation_params": _parameters} if _parameters else {}),
    }
    sampled("com.microsoft::FusedConv", use(_X, _W, _B, free=3, **_act))
_ADDED = Arg((2, 4, 3, 3))
sampled("com.microsoft::FusedConv", use(_X, _W, None, _ADDED, free=3, activation="Relu"))
_UP = Arg((6, 2, 3, 3))
sampled(
    "ConvTranspose",
    use(_X, Arg((6, 4, 3, 3)), _B, free=3, strides=[2, 2], output_padding=[1, 1]),
    use(_X, _UP, _B, free=4, group=2, pads=[1, 0, 1, 0]),
    use(_X, _UP, Arg((12,)), free=3, group=6),
    use(_X, _UP, _B, free=4, group=2, pads=[0, 1, 1, 0], strides=[2, 2]),
    use(_X, _UP, _B, free=4, group=2, strides=[2, 2], output_shape=[12, 11]),
    use(_X, _UP, free=4, group=2, strides=[2, 2], auto_pad="SAME_UPPER"),
    use(Arg((2, 6, 5)), Arg((6, 2, 3)), free=4, group=2),
)
_OFFSET = Arg((2, 36, 3, 3), low=-0.4, high=0.4)
sampled(
    "DeformConv",
    use(_X, Arg((4, 3, 3, 3)), _OFFSET, free=3, opset=19, group=2, offset_group=2),
    use(_X, _W, Arg((2, 18, 3, 3)), _B, Arg((2, 9, 3, 3)), free=3, opset=19),
)
