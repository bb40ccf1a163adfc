"""Operators whose results nothing passes through: shapes known only at run time, transforms over
whole dimensions, losses, bits."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.dtype import computed_type
from irprune.ir.graph import Node, TensorType
from irprune.ops.onnx.importer import OnnxNode, Step, UnsupportedUse, runs, sampled, spell, use
from irprune.ops.onnx.types import like, position
from irprune.ops.registry import TABLE, Arg, Unsupported
from irprune.ops.registry import op as declare

op = partial(declare, family="frozen")

__all__: list[str] = []


def _frozen(why: str) -> Any:
    def rule(axes: Axes, node: Node) -> None:
        raise Unsupported(why)

    return rule


def _entry(name: str, why: str, onnx: str, results: int = 1, **attrs: Any) -> None:
    """``onnx`` is run by the function ``name`` with its attributes, or these defaults."""

    def read(node: OnnxNode) -> Step:
        return Step(name, None, {k: node.attrs.get(k, d) for k, d in attrs.items()}, None)

    if name not in TABLE:
        op(name, _frozen(why), run=runs(name, results))
    spell(name, onnx, read=read)


_COUNTED, _WHOLE = "as many as there are at run time", "transformed as a whole"
_entry("nonzero_places", _COUNTED, "NonZero")
_entry("compress", _COUNTED, "Compress", axis=None)
_entry("unique", _COUNTED, "Unique", results=4, axis=None, sorted=1)
_entry("non_max_suppression", _COUNTED, "NonMaxSuppression", center_point_box=0)
_entry(
    "max_unpool",
    "places that pooling noted",
    "MaxUnpool",
    kernel_shape=None,
    pads=None,
    strides=None,
)
_entry("determinant", _WHOLE, "Det")
op("fourier", _frozen(_WHOLE), run=runs("fourier"))


def _mel_weights(node: OnnxNode) -> Step:
    dtype = computed_type(node.attrs.get("output_datatype", 1))
    if not dtype:
        raise UnsupportedUse("a MelWeightMatrix of an unusual type")
    return Step("mel_weight_matrix", None, {"dtype": dtype}, None)


op("mel_weight_matrix", _frozen("made from sizes"), run=runs("mel_weight_matrix"))
spell("mel_weight_matrix", "MelWeightMatrix", read=_mel_weights)


def _fourier(node: OnnxNode) -> Step:
    """``axis`` was an attribute, 1 by default; since opset 20 it is an input, by default the last
    before real and imaginary parts."""
    axis = node.attrs.get("axis", 1) if node.opset < 20 else -2
    return Step(
        "fourier",
        None,
        {
            "axis": axis,
            "inverse": node.attrs.get("inverse", 0),
            "onesided": node.attrs.get("onesided", 0),
        },
        None,
    )


spell("fourier", "DFT", read=_fourier)


def _short_time_fourier(node: OnnxNode) -> Step:
    """One-sided where nothing else is said, of which onnx's own inference takes no notice."""
    onesided, step = node.attrs.get("onesided", 1), node.constant(1)
    length = node.constant(3) if node.has(3) else node.shape(2)[0] if node.has(2) else None
    kinds = None
    if step is not None and length is not None:
        size = int(length)  # type: ignore[arg-type]
        x = node.shape(0)
        places = (size // 2 + 1) if onesided else size
        kinds = [like(node, shape=(x[0], (x[1] - size) // int(step) + 1, places, 2))]
    return Step("short_time_fourier", None, {"onesided": onesided}, kinds)


op("short_time_fourier", _frozen(_WHOLE), run=runs("short_time_fourier"))
spell("short_time_fourier", "STFT", read=_short_time_fourier)


def _bit_cast(node: OnnxNode) -> Step:
    dtype = computed_type(node.attrs["to"])
    if not dtype:
        raise UnsupportedUse("a BitCast to an unusual type")
    return Step("bit_cast", None, {"dtype": dtype}, [like(node, dtype=dtype)])


op("bit_cast", _frozen("read as other bits"), run=runs("bit_cast"))
spell("bit_cast", "BitCast", read=_bit_cast)

# -- of one dimension; the others pass -------------------------------------------------------------


def _along(axes: Axes, node: Node) -> None:
    """Only the dimensions ``dims`` are looked at as a whole."""
    own = list(axes.of(node.operand(0)))
    for d in node.attrs["dims"]:
        axes.freeze(own[d], f"ordered by {node.op}")
        own[d] = axes.frozen(own[d].size, f"ordered by {node.op}")
    for value in node.inputs[1:]:
        for a in axes.of(value) if value is not None else ():
            axes.freeze(a, "positions")
    node.out.axes = tuple(own)


def _hardmax(node: OnnxNode) -> Step:
    """Before opset 13 the dimensions from ``axis`` on counted as one."""
    rank = node.rank()
    d = position(node.attrs.get("axis", -1 if node.opset >= 13 else 1), rank)
    return Step(
        "hardmax", (0,), {"dims": [d] if node.opset >= 13 else list(range(d, rank))}, [like(node)]
    )


def _reverse(node: OnnxNode) -> Step:
    a = node.attrs
    return Step(
        "reverse_sequence",
        None,
        {"dims": [a.get("time_axis", 0), a.get("batch_axis", 1)]},
        [like(node)],
    )


op("hardmax", _along, run=runs("hardmax"))
op("reverse_sequence", _along, run=runs("reverse_sequence"))
spell("hardmax", "Hardmax", read=_hardmax)
spell("reverse_sequence", "ReverseSequence", read=_reverse)


def _cache(axes: Axes, node: Node) -> None:
    """What is written along ``dim`` of a cache; all else passes."""
    own, d = axes.of(node.operand(0)), node.attrs["dim"]
    for k, (a, b) in enumerate(zip(own, axes.of(node.operand(1)), strict=True)):
        if k == d:
            axes.freeze(a, "positions of a cache")
            axes.freeze(b, "positions of a cache")
        else:
            axes.unify(a, b)
    if node.has(2):
        axes.unify(own[0], axes.of(node.operand(2))[0])  # where each sequence is written
    node.out.axes = own


def _tensor_scatter(node: OnnxNode) -> Step:
    attrs = {
        "dim": position(node.attrs.get("axis", -2), node.rank()),
        "mode": node.attrs.get("mode", "linear"),
    }
    return Step("cache_scatter", None, attrs, [like(node)])


op("cache_scatter", _cache, run=runs("cache_scatter"))
spell("cache_scatter", "TensorScatter", read=_tensor_scatter)

# -- regions ---------------------------------------------------------------------------------------


def _regions(axes: Axes, node: Node) -> None:
    """Channels pass from the image to every region."""
    x, boxes = axes.of(node.operand(0)), axes.of(node.operand(1))
    for a in (x[0], *x[2:], *boxes, *axes.of(node.operand(2))):
        axes.freeze(a, "positions of regions")
    node.out.axes = (
        boxes[0],
        x[1],
        *(axes.frozen(s, "positions of regions") for s in node.out.shape[2:]),
    )


def _roi_align(node: OnnxNode) -> Step:
    a = node.attrs
    half = (
        a.get(
            "coordinate_transformation_mode",
            "half_pixel" if node.opset >= 16 else "output_half_pixel",
        )
        == "half_pixel"
    )
    size = [a.get("output_height", 1), a.get("output_width", 1)]
    attrs = {
        "size": size,
        "scale": a.get("spatial_scale", 1.0),
        "ratio": a.get("sampling_ratio", 0),
        "half": half,
    }
    attrs["mode"] = a.get("mode", "avg")
    return Step(
        "roi_align", None, attrs, [like(node, shape=(node.shape(1)[0], node.shape(0)[1], *size))]
    )


op("roi_align", _regions, run=runs("roi_align"))
spell("roi_align", "RoiAlign", read=_roi_align)


def _columns(axes: Axes, node: Node) -> None:
    """Channels are c × places of a block."""
    n, c, _ = x = axes.of(node.operand(0))
    block = 1
    for k in node.attrs["block"]:
        block *= k
    axes.freeze(x[2], "places of blocks")
    channels, places = axes.split(c, c.size // block)
    if channels is None or places is None:
        raise Unsupported("blocks that are grouped otherwise")
    axes.freeze(places, "places in a block")
    node.out.axes = (
        n,
        channels,
        *(axes.frozen(s, "positions of an image") for s in node.out.shape[2:]),
    )


def _col2im(node: OnnxNode) -> Step:
    image, block, a = node.sizes(1) or [], node.sizes(2) or [], node.attrs
    n = len(image)
    if any(not isinstance(s, int) for s in (*image, *block)):
        raise UnsupportedUse("a Col2Im of dynamic size")
    count = 1
    for k in block:
        count *= int(k)  # type: ignore[arg-type]
    attrs = {
        "image": image,
        "block": block,
        "dilation": list(a.get("dilations") or [1] * n),
        "padding": list(a.get("pads") or [0] * (2 * n)),
        "stride": list(a.get("strides") or [1] * n),
    }
    x = node.shape(0)
    return Step(
        "col2im_nd",
        (0,),
        attrs,
        [TensorType(node.type(0).dtype, (x[0], x[1] // count, *image))],
    )


op("col2im_nd", _columns, run=runs("col2im_nd"))
spell("col2im_nd", "Col2Im", read=_col2im)

# -- samples ---------------------------------------------------------------------------------------

_X = Arg((2, 6, 5))
sampled("Det", use(Arg((2, 3, 3)), free=0))
sampled("Hardmax", use(_X, free=2, axis=1), use(_X, free=1, axis=1, opset=11))
sampled(
    "ReverseSequence",
    use(_X, Arg((6,), "i64", values=(1, 2, 1, 2, 1, 2)), free=1, time_axis=0, batch_axis=1),
)
sampled(
    "TensorScatter",
    use(Arg((2, 3, 6, 4)), Arg((2, 3, 2, 4)), Arg((2,), "i64", values=(1, 3)), free=3, opset=24),
)
sampled(
    "RoiAlign",
    use(
        Arg((2, 3, 6, 6)),
        Arg((2, 4), values=(0.0, 0.0, 4.0, 4.0, 1.0, 1.0, 5.0, 5.0)),
        Arg((2,), "i64", values=(0, 1)),
        free=1,
        output_height=2,
        output_width=2,
        sampling_ratio=2,
    ),
)
sampled(
    "Col2Im",
    use(
        Arg((2, 24, 9)),
        Arg((2,), "i64", values=(4, 5)),
        Arg((2,), "i64", values=(2, 3)),
        free=2,
        opset=18,
    ),
)
sampled("DFT", use(Arg((2, 6, 5, 1)), free=0, axis=1), use(Arg((2, 6, 2)), free=0, opset=20))
sampled("STFT", use(Arg((1, 16, 1)), Arg((), "i64", values=(4,)), Arg((8,)), free=0))
sampled(
    "MaxUnpool",
    use(
        Arg((1, 1, 2, 2)),
        Arg((1, 1, 2, 2), "i64", values=(1, 3, 8, 14)),
        free=0,
        kernel_shape=[2, 2],
        strides=[2, 2],
    ),
)
sampled("BitCast", use(Arg((2, 3)), free=0, opset=26, to=6))
