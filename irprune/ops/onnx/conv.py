"""Convolutions as ONNX spells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irprune.ir.graph import Node, TensorType
from irprune.ir.size import Size
from irprune.ops.onnx.importer import (
    PREVIOUS,
    Edit,
    InvalidOperands,
    OnnxNode,
    Step,
    UnsupportedUse,
    extended,
    sampled,
    spell,
    use,
)
from irprune.ops.onnx.steps import activated
from irprune.ops.onnx.types import like, padded, window
from irprune.ops.registry import Arg

__all__ = ["conv_places"]


def _kernel(node: OnnxNode, w: Sequence[Size]) -> list[int]:
    sizes = node.attrs.get("kernel_shape") or list(w[2:])
    if any(not isinstance(s, int) for s in sizes):
        raise UnsupportedUse("a convolution with a dynamic kernel")
    return list(sizes)


def _fitting(x: Sequence[Size], w: Sequence[Size], channels: Size) -> None:
    """Raises Misfit where the image ``x`` has not the ``channels`` that kernels ``w`` are for."""
    if isinstance(x[1], int) and isinstance(channels, int) and x[1] != channels:
        raise InvalidOperands(
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


def _conv(node: OnnxNode) -> list[Step]:
    """Padding that differs before and after is a step of its own."""
    x, w = node.shape(0), node.shape(1)
    _fitting(x, w, w[1] * node.attrs.get("group", 1))
    kernel = _kernel(node, w)
    if len(kernel) > 3:
        raise UnsupportedUse(f"a convolution in {len(kernel)} dimensions")
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
    if begins == ends:
        return [Step("conv", (0, 1, 2), attrs, kind)]
    attrs["padding"] = [0] * len(kernel)
    return [_pad(node, 0, x, begins, ends), Step("conv", (PREVIOUS, 1, 2), attrs, kind)]


def _pad(
    node: OnnxNode, operand: int, x: Sequence[Size], begins: Sequence[int], ends: Sequence[int]
) -> Step:
    """Zeros before and after the spatial dimensions of an image ``x``; negative where it is cut."""
    spread = [s + (b + e) for s, b, e in zip(x[2:], begins, ends, strict=True)]
    attrs = {"pad": _flat(begins, ends), "mode": "constant", "value": 0.0}
    return Step("pad", (operand,), attrs, [like(node, shape=(*x[:2], *spread))])


def _flat(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Padding in torch's order: the last dimension first, before and after."""
    return [p for b, e in zip(reversed(begins), reversed(ends), strict=True) for p in (b, e)]


def _write_groups(edit: Edit, *nodes: Node) -> None:
    groups = next(n.attrs["groups"] for n in nodes if "groups" in n.attrs)
    if groups != edit.attrs.get("group", 1):
        edit.attr("group", groups)


spell(("conv", "pad"), "Conv", read=_conv, write=_write_groups)


def _conv_transpose(node: OnnxNode) -> list[Step]:
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
                raise UnsupportedUse("the padding of a ConvTranspose depends on a dynamic size")
            if total < 0 and not wanted:  # the standard fills up, onnxruntime does not
                raise UnsupportedUse(
                    "a ConvTranspose of a stride longer than its kernel, as long as SAME"
                )
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
    if n > 3:
        raise UnsupportedUse(f"a transposed convolution in {n} dimensions")
    # what is filled up at the end is output padding, what remains of unequal padding is cut away
    attrs["output_padding"] = [e + max(-end, 0) for e, end in zip(extra, ends, strict=True)]
    both = [min(b, max(e, 0)) for b, e in zip(begins, ends, strict=True)]
    attrs["padding"] = both
    limits = [max(t, d) for t, d in zip(strides, dilations, strict=True)]
    if any(b < 0 for b in begins) or any(
        e >= most for e, most in zip(attrs["output_padding"], limits, strict=True)
    ):
        raise UnsupportedUse("a ConvTranspose that is filled up by more than a stride")
    cut_begins = [b - p for b, p in zip(begins, both, strict=True)]
    cut_ends = [max(e, 0) - p for e, p in zip(ends, both, strict=True)]
    if not any(cut_begins) and not any(cut_ends):
        return [Step("conv_transpose", (0, 1, 2), attrs, kind)]
    whole = [s + (b + e) for s, b, e in zip(places, cut_begins, cut_ends, strict=True)]
    image = like(node, shape=(x[0], w[1] * groups, *whole))
    pad = {"pad": [-p for p in _flat(cut_begins, cut_ends)], "mode": "constant", "value": 0.0}
    return [
        Step("conv_transpose", (0, 1, 2), attrs, [image]),
        Step("pad", (PREVIOUS,), pad, kind),
    ]


spell(("conv_transpose", "pad"), "ConvTranspose", read=_conv_transpose, write=_write_groups)


def _fused(node: OnnxNode) -> list[Step]:
    """A convolution, then a sum (input 3), then an activation."""
    steps = _conv(node)
    if node.has(3):
        steps.append(Step("add", (PREVIOUS, 3)))
    parameters = node.attrs.get("activation_params") or []
    return steps + activated(node.attrs.get("activation", ""), parameters)


_ACTIVATIONS = ("relu", "leaky_relu", "clamp", "sigmoid", "tanh", "mul", "add")
spell(
    ("conv", "pad", *_ACTIVATIONS),
    "com.microsoft::FusedConv",
    read=_fused,
    write=_write_groups,
)


def _deformed(node: OnnxNode) -> Step:
    x, w, offset = node.shape(0), node.shape(1), node.shape(2)
    if len(x) != 4:
        raise UnsupportedUse("a DeformConv in other than two dimensions")
    strides, dilations, begins, _ = padded(node, _kernel(node, w))
    attrs = {
        "groups": node.attrs.get("group", 1),
        "offset_groups": node.attrs.get("offset_group", 1),
        "stride": strides,
    }
    attrs |= {"begins": begins, "dilation": dilations}
    return Step(
        "deform_conv2d", (0, 1, 2, 4, 3), attrs, [like(node, shape=(x[0], w[0], *offset[2:]))]
    )


extended("deform_conv2d", "deform_conv")
spell("deform_conv2d", "DeformConv", read=_deformed, write=_write_groups)

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
    use(_X, _UP, free=4, group=2, strides=[3, 3], auto_pad="SAME_LOWER"),
    use(_X, Arg((6, 2, 2, 2)), _B, free=4, group=2, strides=[4, 4], output_shape=[20, 19]),
    use(Arg((2, 6, 5)), Arg((6, 2, 3)), free=4, group=2),
)
_OFFSET = Arg((2, 36, 3, 3), low=-0.4, high=0.4)
sampled(
    "DeformConv",
    use(_X, Arg((4, 3, 3, 3)), _OFFSET, free=3, opset=19, group=2, offset_group=2),
    use(_X, Arg((4, 3, 3, 3)), Arg((2, 18, 3, 3), low=-0.4, high=0.4), free=4, opset=19, group=2),
    use(_X, _W, Arg((2, 18, 3, 3)), _B, Arg((2, 9, 3, 3)), free=3, opset=19),
)
