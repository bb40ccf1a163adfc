"""Pooling and resampling as ONNX spells them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType
from irprune.ir.size import Size, Sym, probe_of
from irprune.ops.onnx.importer import (
    PREVIOUS,
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
from irprune.ops.onnx.types import like, padded, window
from irprune.ops.registry import Arg
from irprune.ops.registry import op as declare

op = partial(declare, family="pool")

__all__: list[str] = []


def _positions(axes: Axes, node: Node) -> None:
    """All but the first two dimensions are positions."""
    own = axes.of(node.operand(0))
    for a in own[2:]:
        axes.freeze(a, f"positions of {node.op}")
    for value in node.outputs:
        value.axes = (
            *own[:2],
            *(axes.frozen(s, f"positions of {node.op}") for s in value.shape[2:]),
        )


def _pool(kind: str) -> Any:
    def read(node: OnnxNode) -> Step:
        kernel = list(node.attrs["kernel_shape"])
        strides, dilations, begins, ends = padded(node, kernel)
        ceil = bool(node.attrs.get("ceil_mode", 0))
        x, n = node.shape(0), len(kernel)
        places = [
            window(s, k, t, d, b, e, ceil)
            for s, k, t, d, b, e in zip(
                x[2:], kernel, strides, dilations, begins, ends, strict=True
            )
        ]
        types = [like(node, shape=(*x[:2], *places)), TensorType("i64", (*x[:2], *places))]
        whole = bool(node.attrs.get("count_include_pad", 0))
        plain = (
            begins == ends
            and n <= 3
            and all(2 * b <= k for b, k in zip(begins, kernel, strict=True))
            and len([o for o in node.outputs if o]) == 1
        )
        if ceil:  # torch and ONNX agree on ceil_mode but for windows that begin in the padding
            plain = False
        if kind == "max" and plain:
            attrs = {
                "kernel_size": kernel,
                "stride": strides,
                "padding": begins,
                "dilation": dilations,
                "ceil_mode": False,
            }
            return Step(f"max_pool{n}d", (0,), attrs, types[:1])
        if kind == "avg" and plain and all(d == 1 for d in dilations):
            attrs = {
                "kernel_size": kernel,
                "stride": strides,
                "padding": begins,
                "ceil_mode": False,
                "count_include_pad": whole,
            }
            return Step(f"avg_pool{n}d", (0,), attrs, types[:1])
        attrs = {
            "kernel": kernel,
            "stride": strides,
            "dilation": dilations,
            "begins": begins,
            "ends": ends,
            "ceil": ceil,
        }
        if kind == "max":
            return Step(
                "max_pool_padded",
                (0,),
                {
                    **attrs,
                    "indices": len(node.outputs) > 1,
                    "storage_order": node.attrs.get("storage_order", 0),
                },
                types[: len(node.outputs)],
            )
        if kind == "avg":
            return Step("avg_pool_padded", (0,), {**attrs, "count_include_pad": whole}, types[:1])
        return Step("lp_pool", (0,), {**attrs, "p": node.attrs.get("p", 2)}, types[:1])

    return read


for _kind, _onnx, _more in (
    ("max", "MaxPool", "max_pool_padded"),
    ("avg", "AveragePool", "avg_pool_padded"),
    ("lp", "LpPool", "lp_pool"),
):
    op(_more, _positions, run=runs(_more))
    spell(
        (_more, *(f"{_kind}_pool{d}d" for d in (1, 2, 3) if _kind != "lp")),
        _onnx,
        read=_pool(_kind),
    )


def _global(name: str) -> Any:
    def read(node: OnnxNode) -> Step:
        rank = node.rank()
        return Step(
            name,
            (0,),
            {"dim": list(range(2, rank)), "keepdim": True},
            [like(node, shape=(*node.shape()[:2], *[1] * (rank - 2)))],
        )

    return read


def _global_norm(node: OnnxNode) -> Step:
    made = _global("vector_norm")(node)
    attrs = {"ord": float(node.attrs.get("p", 2)), **made.attrs}
    return Step(made.op, made.operands, attrs, made.types)


spell("mean", "GlobalAveragePool", read=_global("mean"))
spell("vector_norm", "GlobalLpPool", read=_global_norm)
spell("amax", "GlobalMaxPool", read=_global("amax"))

# -- resampling ------------------------------------------------------------------------------------


def _resampled(axes: Axes, node: Node) -> None:
    """Dimensions of unchanged size pass; those that are resampled are positions."""
    own = axes.of(node.operand(0))
    made = []
    for k, (a, s) in enumerate(zip(own, node.out.shape, strict=True)):
        if k in node.attrs["axes"]:
            axes.freeze(a, f"positions of {node.op}")
            made.append(axes.frozen(s, f"positions of {node.op}"))
        else:
            made.append(a)
    node.out.axes = tuple(made)


def _resize(node: OnnxNode) -> Step:
    x = node.shape()
    rank = len(x)
    a = node.attrs
    axes = (
        [d % rank for d in a.get("axes", range(rank))]
        if node.opset >= 18 and a.get("axes")
        else list(range(rank))
    )
    if node.opset < 11:
        scales, sizes, roi = (
            _floats(node, "scales", 1 if node.opset >= 9 or node.target == "Resize" else None),
            None,
            None,
        )
        if node.opset < 9 and node.target == "Upsample":
            scales = list(a["scales"])
        mode, place, nearest = (
            a.get("mode", "nearest"),
            "asymmetric",
            "floor" if node.target == "Upsample" or node.opset == 10 else "round_prefer_floor",
        )
        if (
            node.opset == 10
            and node.target == "Resize"
            and scales is not None
            and any(s < 1 for s in scales)
        ):
            nearest = "ceil"
    else:
        scales = _floats(node, "", 2) if node.has(2) and node.shape(2) != (0,) else None
        sizes = node.sizes(3) if node.has(3) and node.shape(3) != (0,) else None
        roi = (
            _floats(node, "", 1)
            if node.has(1)
            and node.shape(1) != (0,)
            and a.get("coordinate_transformation_mode") == "tf_crop_and_resize"
            else None
        )
        mode, place = (
            a.get("mode", "nearest"),
            a.get("coordinate_transformation_mode", "half_pixel"),
        )
        nearest = a.get("nearest_mode", "round_prefer_floor")
    policy = a.get("keep_aspect_ratio_policy", "stretch")
    out: list[Size] = list(x)
    if scales is not None:
        for d, f in zip(axes, scales, strict=True):
            out[d] = _scaled(x[d], f)
    elif sizes is not None:
        if policy != "stretch":
            known = [
                s / x[d]  # type: ignore[operator]
                for d, s in zip(axes, sizes, strict=True)
                if isinstance(s, int) and isinstance(x[d], int)
            ]
            if len(known) != len(axes):
                raise UnsupportedUse("a Resize that keeps the aspect ratio of a dynamic size")
            f = min(known) if policy == "not_larger" else max(known)
            for d in axes:
                out[d] = int(probe_of(x[d]) * f + 0.5)
            scales = [f] * len(axes)
        else:
            for d, s in zip(axes, sizes, strict=True):
                out[d] = s
    else:
        raise UnsupportedUse("a Resize without scales or sizes")
    moved = [
        d
        for d, o in zip(axes, [out[d] for d in axes], strict=True)
        if not _unchanged(x[d], o, scales, axes, d)
    ]
    attrs: dict[str, Any] = {
        "axes": moved,
        "sizes": [out[d] for d in moved],
        "scales": [scales[axes.index(d)] for d in moved] if scales is not None else None,
        "mode": mode,
        "coordinates": place,
        "nearest": nearest,
        "cubic": a.get("cubic_coeff_a", -0.75),
        "exclude_outside": a.get("exclude_outside", 0),
        "antialias": a.get("antialias", 0),
        "extrapolation": a.get("extrapolation_value", 0.0),
        "roi": [(roi[axes.index(d)], roi[len(axes) + axes.index(d)]) for d in moved]
        if roi is not None
        else None,
    }
    return Step("resize", (0,), attrs, [like(node, shape=out)])


def _floats(node: OnnxNode, name: str, i: int | None) -> list[float] | None:
    if i is None:
        return list(node.attrs[name])
    value = node.given(i)
    return None if value is None else [float(v) for v in value.reshape(-1)]


def _unchanged(
    size: Size, out: Size, scales: Sequence[float] | None, axes: Sequence[int], d: int
) -> bool:
    return scales[axes.index(d)] == 1 if scales is not None else size == out


def _scaled(size: Size, f: float) -> Size:
    if isinstance(size, int):
        return int(size * f)
    if float(f).is_integer():
        return size * int(f)
    inverse = round(1 / f)
    if inverse * f == 1:
        return size // inverse
    raise UnsupportedUse(f"a dynamic size scaled by {f}")


def _write_resize(edit: Edit, node: Node) -> None:
    """Sizes of dimensions that pass are written anew; scales of 1 serve any size."""
    if edit.opset < 11 or not edit.given(3):
        return
    axes = edit.attrs.get("axes") or range(node.out.rank)
    edit.input(3, [node.out.shape[d] for d in axes])


op("resize", _resampled, run=runs("resize"))
spell("resize", "Resize", read=_resize, write=_write_resize)
spell("resize", "Upsample", read=_resize)


def _depth_to_space(node: OnnxNode) -> list[Step]:
    """Blocks of pixels lie in the channels, after them (CRD) or before them (DCR)."""
    n, c, h, w = node.shape()
    b = node.attrs["blocksize"]
    kind = like(node, shape=(n, c // (b * b), h * b, w * b))
    steps = []
    if node.attrs.get("mode", "DCR") == "DCR":
        steps = _turned(node, (n, c, h, w), b * b, c // (b * b), 0)
    last = PREVIOUS if steps else 0
    return [*steps, Step("pixel_shuffle", (last,), {"upscale_factor": b}, [kind])]


def _space_to_depth(node: OnnxNode) -> list[Step]:
    n, c, h, w = node.shape()
    b = node.attrs["blocksize"]
    shape = (n, c * (b * b), h // b, w // b)
    steps = [Step("pixel_unshuffle", (0,), {"downscale_factor": b}, [like(node, shape=shape)])]
    if node.attrs.get("mode", "DCR") == "DCR":
        steps += _turned(node, shape, c, b * b, PREVIOUS)
    return steps


def _turned(
    node: OnnxNode, shape: tuple[Size, ...], outer: Size, inner: Size, operand: int
) -> list[Step]:
    """Channels outer × inner of an image as inner × outer."""
    n, _, h, w = shape
    apart, turned = (n, outer, inner, h, w), (n, inner, outer, h, w)
    return [
        Step("reshape", (operand,), {"shape": list(apart)}, [like(node, shape=apart)]),
        Step("permute", (PREVIOUS,), {"dims": [0, 2, 1, 3, 4]}, [like(node, shape=turned)]),
        Step("reshape", (PREVIOUS,), {"shape": list(shape)}, [like(node, shape=shape)]),
    ]


_VIEWS = ("reshape", "permute")
spell(("pixel_shuffle", *_VIEWS), "DepthToSpace", read=_depth_to_space, write=nothing)
spell(("pixel_unshuffle", *_VIEWS), "SpaceToDepth", read=_space_to_depth, write=nothing)


def _grid(node: OnnxNode) -> Step:
    x, grid = node.shape(0), node.shape(1)
    modes = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}
    paddings = {"zeros": 0, "border": 1, "reflection": 2}
    attrs = {
        "interpolation_mode": modes[node.attrs.get("mode", "linear")],
        "padding_mode": paddings[node.attrs.get("padding_mode", "zeros")],
        "align_corners": bool(node.attrs.get("align_corners", 0)),
    }
    if (attrs["interpolation_mode"] == 2 and len(x) != 4) or len(x) not in (4, 5):
        raise UnsupportedUse("a GridSample that torch lacks")
    return Step("grid_sampler", None, attrs, [like(node, shape=(*x[:2], *grid[1:-1]))])


spell("grid_sampler", "GridSample", read=_grid)


def _symbolic(sizes: Sequence[Size]) -> bool:
    return any(isinstance(s, Sym) for s in sizes)


# -- samples ---------------------------------------------------------------------------------------

_X, _ROW, _CUBE = Arg((2, 6, 5, 5)), Arg((2, 6, 9)), Arg((2, 6, 4, 4, 4))
sampled(
    "MaxPool AveragePool LpPool",
    use(_X, free=2, kernel_shape=[2, 3], strides=[2, 1]),
    use(_X, free=2, kernel_shape=[3, 3], pads=[0, 1, 1, 0], opset=19),
    use(_X, free=2, kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    use(_ROW, free=2, kernel_shape=[3], strides=[2]),
    use(_CUBE, free=2, kernel_shape=[2, 2, 2]),
)
sampled("MaxPool AveragePool", use(_X, free=2, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1))
sampled("MaxPool", use(_X, free=2, kernel_shape=[2, 2], dilations=[2, 1]))
sampled("AveragePool", use(_X, free=2, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1))
sampled("GlobalAveragePool GlobalMaxPool GlobalLpPool", use(_X, free=4))
sampled("GlobalLpPool", use(Arg((2, 6, 5)), free=3, p=3))
sampled("Upsample", use(_X, Arg((4,), values=(1, 1, 2, 2)), free=2, opset=9, mode="linear"))
sampled(
    "Resize",
    use(_X, None, Arg((4,), values=(1, 1, 2, 2)), free=2),
    use(_X, None, None, Arg((4,), "i64", values=(2, 6, 7, 5)), free=3, mode="linear"),
    use(_X, None, None, Arg((1,), "i64", values=(7,)), free=3, opset=18, axes=[2], mode="cubic"),
)
_DEEP = Arg((2, 12, 3, 3))
sampled("DepthToSpace", use(_DEEP, free=4, blocksize=2))
sampled("DepthToSpace", use(_DEEP, free=4, blocksize=2, mode="CRD"))
sampled("SpaceToDepth", use(Arg((2, 3, 4, 6)), free=4, blocksize=2))
sampled("SpaceToDepth", use(Arg((2, 3, 4, 6)), free=4, blocksize=2, mode="CRD", opset=28))
_GRID = Arg((2, 3, 4, 2), low=-0.9, high=0.9)
sampled("GridSample", use(_X, _GRID, free=4), use(_X, _GRID, free=4, padding_mode="border"))
