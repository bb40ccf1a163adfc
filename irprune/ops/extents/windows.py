"""Operators over windows of positions: convolutions, pooling, resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irprune.ir.graph import Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size, Sym
from irprune.ops.extents import extents
from irprune.ops.extents.helpers import whole

__all__: list[str] = []


def _windows(
    size: Size,
    kernel: Any,
    stride: Any,
    pads: Any,
    dilation: Any,
    sizes: OpenSizes,
    ceil: bool = False,
) -> Any:
    """How many windows fit: ``(size + pads - dilation * (kernel - 1) - 1) // stride + 1``."""
    if not isinstance(size, Sym):
        size = int(size)
    reach = sizes.sum((pads, -(dilation * (kernel - 1) + 1)))
    left = sizes.sum((size, reach)) if reach != 0 else size
    if stride == 1:
        return sizes.sum((left, 1))
    if not ceil:
        return sizes.of("+", sizes.of("//", left, stride), 1)
    return None


def _placed(shape: Sequence[Size], n: int) -> tuple[Sequence[Size], Sequence[Size]]:
    """The dimensions before the last ``n``, and those."""
    return shape[: len(shape) - n], shape[len(shape) - n :]


@extents("conv", "convolution", "conv_transpose")
def conv(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Samples as they come, channels of the kernel, and as many positions as windows fit."""
    x, w, attrs = node.operand(0).shape, node.operand(1).shape, node.attrs
    n = len(w) - 2
    lead, space = _placed(x, n)
    transposed = node.op == "conv_transpose" or bool(attrs.get("transposed"))
    groups = attrs.get("groups", 1)
    sizes.meet(lead[-1], w[0] if transposed else sizes.product((w[1], groups)))
    stride, dilation = (whole(attrs.get(k, 1) or 1, n) for k in ("stride", "dilation"))
    padding = attrs.get("padding", 0)
    if padding == "same":
        out: list[Any] = list(space)
    else:
        pads = [0] * n if padding == "valid" else whole(padding, n)
        extra = whole(attrs.get("output_padding", 0), n)
        out = [
            _spread(s, w[2 + k], stride[k], pads[k], dilation[k], extra[k], sizes)
            if transposed
            else _windows(s, w[2 + k], stride[k], 2 * pads[k], dilation[k], sizes)
            for k, s in enumerate(space)
        ]
    channels = sizes.product((w[1], groups)) if transposed else w[0]
    return [(*lead[:-1], channels, *out)]


def _spread(
    size: Size, kernel: Any, stride: Any, pad: Any, dilation: Any, extra: Any, sizes: OpenSizes
) -> Any:
    """The positions of a transposed convolution: ``(size - 1) * stride - 2 * pad + dilation *
    (kernel - 1) + extra + 1``."""
    rest = -stride - 2 * pad + dilation * (kernel - 1) + extra + 1
    return sizes.sum((sizes.product((size, stride)), rest))


@extents(
    "max_pool1d",
    "max_pool1d_with_indices",
    "avg_pool1d",
    "max_pool2d",
    "max_pool2d_with_indices",
    "avg_pool2d",
    "max_pool3d",
    "max_pool3d_with_indices",
    "avg_pool3d",
)
def pool(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """As many positions as windows fit."""
    attrs = node.attrs
    n = int(node.op.partition("pool")[2][0])
    lead, space = _placed(node.operand(0).shape, n)
    kernel = whole(attrs["kernel_size"], n)
    stride = whole(attrs.get("stride") or kernel, n)
    pads = whole(attrs.get("padding", 0) or 0, n)
    dilation = whole(attrs.get("dilation", 1) or 1, n)
    ceil = bool(attrs.get("ceil_mode"))
    out = [
        _windows(s, kernel[k], stride[k], 2 * pads[k], dilation[k], sizes, ceil)
        if not (ceil and stride[k] > 1)
        else _up(s, kernel[k], stride[k], pads[k], dilation[k], sizes)
        for k, s in enumerate(space)
    ]
    return [(*lead, *out)] * len(node.outputs)


def _up(size: Any, kernel: Any, stride: Any, pad: Any, dilation: Any, sizes: OpenSizes) -> Any:
    """As ``_windows``, a window that begins within the input or its left padding counting."""
    left = sizes.sum((size, 2 * pad - dilation * (kernel - 1) - 1 + stride - 1))
    many = sizes.of("+", sizes.of("//", left, stride), 1)
    # the last window must begin before the end: ceil(pad + size, stride) windows do
    begin = sizes.of("//", sizes.sum((size, pad + stride - 1)), stride)
    return many if sizes.of("min", many, begin) == many else sizes.of("min", many, begin)


@extents(
    "adaptive_avg_pool1d",
    "adaptive_max_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool3d",
)
def adaptive(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The positions that are asked for."""
    n = int(node.op.partition("pool")[2][0])
    lead, _ = _placed(node.operand(0).shape, n)
    return [(*lead, *whole(node.attrs["output_size"], n))] * len(node.outputs)


@extents(
    "upsample_nearest1d",
    "upsample_nearest_exact1d",
    "upsample_linear1d",
    "upsample_nearest2d",
    "upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_nearest3d",
    "upsample_nearest_exact3d",
    "upsample_trilinear3d",
    "upsample_bilinear2d_aa",
    "upsample_bicubic2d_aa",
)
def resample(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """The positions that are asked for, or the operand's times a factor, rounded down."""
    n = node.out.rank - 2
    lead, space = _placed(node.operand(0).shape, n)
    wanted = node.attrs.get("output_size")
    if wanted is not None:
        return [(*lead, *wanted)]
    factors = whole(node.attrs["scale_factors"], n)
    out = [
        sizes.of("*", s, int(f))
        if float(f).is_integer()
        else sizes.of("math.trunc", sizes.of("*", sizes.of("float", s), f))
        for s, f in zip(space, factors, strict=True)
    ]
    return [(*lead, *out)]


@extents("im2col")
def im2col(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """Channels times the kernel, and a column for each window."""
    *lead, c, h, w = node.operand(0).shape
    kernel, dilation, pads, stride = (
        whole(node.attrs[k], 2) for k in ("kernel_size", "dilation", "padding", "stride")
    )
    columns = sizes.product(
        _windows(s, kernel[k], stride[k], 2 * pads[k], dilation[k], sizes)
        for k, s in enumerate((h, w))
    )
    return [(*lead, sizes.product((c, kernel[0] * kernel[1])), columns)]


@extents("col2im")
def col2im(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """The positions that are asked for; channels are what is left of the kernel."""
    *lead, c, _ = node.operand(0).shape
    kernel = whole(node.attrs["kernel_size"], 2)
    channels: Any = sizes.of("//", c, kernel[0] * kernel[1])
    return [(*lead, channels, *node.attrs["output_size"])]


@extents("grid_sampler")
def grid_sampler(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Samples and channels of the image, positions of the grid."""
    x, grid = node.operand(0).shape, node.operand(1).shape
    return [(sizes.meet(x[0], grid[0]), x[1], *grid[1:-1])]


@extents("affine_grid_generator")
def affine_grid(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The positions that are asked for, and their coordinates."""
    n, _, *space = node.attrs["size"]
    return [(n, *space, len(space))]
