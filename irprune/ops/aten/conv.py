"""Convolutions: channels contract within groups, spatial and kernel dimensions are fixed."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node, Weight
from irprune.ir.size import Size, Sym
from irprune.ops.aten.contraction import quick_product, zeroed
from irprune.ops.registry import Arg, Cut, Sample, Unsupported
from irprune.ops.registry import op as declare
from irprune.ops.rule import nn_layers
from irprune.ops.rule.signature import Signature
from irprune.ops.traits import Convolution, kernel_of, many, padding_pairs

op = partial(declare, family="conv")

# One signature per direction, with and without a batch: the input has one dimension less than the
# weight where there is none.
_FIXED: dict[str, Any] = {
    "fixed": ("s", "t", "k"),
    "sizes": {"g": "groups"},
    "roles": {"g": "group"},
}
_FORWARD = {
    n: Signature(f"{n} (g i) *s , (g o) i *k , (g o)? -> {n} (g o) *t", **_FIXED) for n in ("n", "")
}
_BACKWARD = {
    n: Signature(f"{n} (g i) *s , (g i) o *k , (g o)? -> {n} (g o) *t", **_FIXED) for n in ("n", "")
}


def _transposed(node: Node) -> bool:
    return node.op.startswith("conv_transpose") or bool(node.attrs.get("transposed"))


def _batched(node: Node) -> bool:
    return node.operand(0).rank == node.operand(1).rank


def _rule(axes: Axes, node: Node) -> None:
    (_BACKWARD if _transposed(node) else _FORWARD)["n" if _batched(node) else ""].rule(axes, node)


def _channels(node: Node, i: int) -> Axis:
    """The channel axis of operand 0 or, for -1, of the result."""
    value = node.out if i < 0 else node.operand(i)
    return (value.axes or ())[1 if _batched(node) else 0]


def _silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """What is dropped of the input's channels, of all groups or within them, is not summed."""
    # Each channel on its own: nothing is summed
    if _channels(node, 0).size == node.attrs.get("groups", 1):
        return run(*operands)
    if node.attrs.get("groups", 1) == 1:
        read = (0, [1 if _batched(node) else 0]), (1, [0 if _transposed(node) else 1])
        y = quick_product(torch, node, operands, present, run, *read)
        if y is not None:
            return y
    x, w, *rest = operands
    x = zeroed(torch, x, present(node.operand(0), [1 if _batched(node) else 0]))
    # A stored kernel is finite and meets zeros
    if not isinstance(node.operand(1), Weight) or isinstance(node.operand(0), Weight):
        w = zeroed(torch, w, present(node.operand(1), [0 if _transposed(node) else 1]))
    return run(x, w, *rest)


def _resize(node: Node, cut: Cut) -> None:
    """Each group has the weight's second dimension of its input (its output where transposed)."""
    if node.attrs.get("groups", 1) != 1:
        whole = _channels(node, -1 if _transposed(node) else 0)
        node.attrs["groups"] = cut.size(whole) // cut.size((node.operand(1).axes or ())[1])


def _macs(node: Node) -> tuple[tuple[Axis, ...], ...]:
    spread = node.operand(0) if _transposed(node) else node.out
    return ((*(spread.axes or ()), *(node.operand(1).axes or ())[1:]),)


def _geometry(node: Node) -> Convolution | None:
    """The node as a convolution; None where it has as many groups as an open size says, so that
    each element of a batch has a kernel of its own."""
    kernel = kernel_of(node.operand(1))
    n, a = len(kernel), node.attrs
    if isinstance(a.get("groups"), Sym):
        return None
    dilation = many(a.get("dilation", 1), n)
    plain = "offset_groups" not in a  # taps that move by offsets make no product of patches
    return Convolution(
        0,
        1,
        2 if plain else 4,
        many(a.get("stride", 1), n),
        padding_pairs(a.get("padding", 0), kernel, dilation),
        dilation,
        many(a.get("output_padding", 0), n),
        a.get("groups", 1),
        _transposed(node),
        plain,
        _batched(node),
    )


def _call(node: Node) -> str:
    n = node.operand(1).rank - 2
    if _transposed(node):
        return f"aten.conv_transpose{n}d.{'default' if n == 1 else 'input'}"
    return f"aten.conv{n}d.{'padding' if isinstance(node.attrs.get('padding'), str) else 'default'}"


_B = Arg((4,))
_C, _CP, _OLD = "aten.conv2d.default", "aten.conv2d.padding", "aten._convolution.default"
_SPELLED = {"padding": "same", "dilation": [2], "groups": 2}
_ALL = {
    "stride": [1, 1],
    "padding": [1, 1],
    "dilation": [1, 1],
    "output_padding": [0, 0],
    "groups": 2,
}
_FLAGS = {"benchmark": False, "deterministic": False, "cudnn_enabled": False, "allow_tf32": False}
op(
    "conv",
    _rule,
    resize=_resize,
    silence=_silence,
    macs=_macs,
    call=_call,
    aten=(
        "conv2d.default",
        "conv1d.default",
        "conv3d.default",
        "conv2d.padding",
        "conv1d.padding",
        "conv3d.padding",
        "convolution.default",
        "_convolution.default",
    ),
    samples=(
        Sample(
            (Arg((2, 6, 5, 5)), Arg((4, 3, 3, 3)), _B),
            {**_ALL, "transposed": False},
            free=4,
            target="aten.convolution.default",
        ),
        Sample(
            (Arg((2, 6, 5, 5)), Arg((6, 2, 3, 3)), _B),
            {**_ALL, "transposed": True},
            free=4,
            target="aten.convolution.default",
        ),
        Sample(
            (Arg((2, 6, 5, 5)), Arg((4, 3, 3, 3)), None),
            {**_ALL, **_FLAGS, "transposed": False},
            free=4,
            target=_OLD,
        ),
        Sample((Arg((2, 6, 5, 5)), Arg((4, 6, 3, 3)), _B), {"groups": 1}, free=3, target=_C),
        Sample(
            (Arg((2, 6, 5, 5)), Arg((4, 3, 3, 1)), _B),
            {"groups": 2, "stride": [2, 1], "padding": [1, 0]},
            free=4,
            target=_C,
        ),
        Sample((Arg((2, 6, 5, 5)), Arg((6, 1, 3, 3)), None), {"groups": 6}, free=2, target=_C),
        Sample(
            (Arg((2, 6, 5, 5)), Arg((12, 1, 3, 3)), Arg((12,))), {"groups": 6}, free=3, target=_C
        ),
        Sample((Arg((6, 5, 5)), Arg((4, 3, 3, 3)), _B), {"groups": 2}, free=3, target=_C),
        Sample(
            (Arg((2, 6, 9)), Arg((4, 3, 3)), _B),
            {"groups": 2, "stride": [3]},
            free=4,
            target="aten.conv1d.default",
        ),
        Sample((Arg((6, 9)), Arg((4, 6, 3)), None), {}, free=2, target="aten.conv1d.default"),
        Sample(
            (Arg((2, 6, 3, 4, 5)), Arg((4, 3, 1, 3, 3)), _B),
            {"groups": 2},
            free=4,
            target="aten.conv3d.default",
        ),
        Sample(
            (Arg((2, 6, 5, 5)), Arg((4, 3, 3, 3)), _B),
            {"padding": "same", "dilation": [1, 2], "groups": 2},
            free=4,
            target=_CP,
        ),
        Sample(
            (Arg((2, 6, 9)), Arg((4, 3, 3)), _B), _SPELLED, free=4, target="aten.conv1d.padding"
        ),
        Sample(
            (Arg((2, 6, 3, 4, 5)), Arg((4, 6, 1, 3, 3)), None),
            {"padding": "valid"},
            free=3,
            target="aten.conv3d.padding",
        ),
    ),
    operands=("data", "weight", "bias"),
    convolution=_geometry,
    nn_layer=nn_layers.CONV,
)

_T = "aten.conv_transpose2d.input"
op(
    "conv_transpose",
    _rule,
    resize=_resize,
    silence=_silence,
    macs=_macs,
    call=_call,
    aten=("conv_transpose2d.input", "conv_transpose1d.default", "conv_transpose3d.input"),
    samples=(
        Sample(
            (Arg((2, 6, 5, 5)), Arg((6, 4, 3, 3)), _B),
            {"stride": [2, 2], "output_padding": [1, 1]},
            free=3,
            target=_T,
        ),
        Sample((Arg((2, 6, 5, 5)), Arg((6, 2, 3, 3)), _B), {"groups": 2}, free=4, target=_T),
        Sample(
            (Arg((2, 6, 5, 5)), Arg((6, 2, 3, 3)), Arg((12,))), {"groups": 6}, free=3, target=_T
        ),
        Sample((Arg((6, 5, 5)), Arg((6, 2, 3, 3)), _B), {"groups": 2}, free=3, target=_T),
        Sample(
            (Arg((2, 6, 5)), Arg((6, 2, 3)), _B),
            {"groups": 2, "stride": [2]},
            free=4,
            target="aten.conv_transpose1d.default",
        ),
        Sample(
            (Arg((2, 6, 2, 3, 4)), Arg((6, 2, 1, 2, 3)), None),
            {"groups": 2},
            free=4,
            target="aten.conv_transpose3d.input",
        ),
    ),
    operands=("data", "weight", "bias"),
    convolution=_geometry,
    nn_layer=nn_layers.CONV_TRANSPOSE,
)


# -- patches ---------------------------------------------------------------------------------------


def _im2col(axes: Axes, node: Node) -> None:
    """Channels × kernel positions as one dimension, window positions as the other."""
    *lead, c, h, w = axes.of(node.operand(0))
    for a in (h, w):
        axes.freeze(a, "positions of im2col")
    columns, places = node.out.shape[-2:]
    kernel = axes.frozen(columns // c.size, "kernel size")
    node.out.axes = (*lead, axes.product((c, kernel)), axes.frozen(places, "positions of im2col"))


def _col2im(axes: Axes, node: Node) -> None:
    *lead, columns, places = axes.of(node.operand(0))
    axes.freeze(places, "positions of col2im")
    *_, h, w = node.out.shape
    c, kernel = axes.split(columns, node.out.shape[-3])
    if c is None or kernel is None:
        raise Unsupported("col2im of columns that are grouped otherwise")
    axes.freeze(kernel, "kernel size")
    node.out.axes = (*lead, c, *(axes.frozen(s, "positions of col2im") for s in (h, w)))


_WINDOW: dict[str, Any] = {
    "kernel_size": [2, 3],
    "dilation": [1, 1],
    "padding": [0, 1],
    "stride": [2, 2],
}
op(
    "im2col",
    _im2col,
    aten=("im2col.default",),
    samples=(
        Sample((Arg((2, 4, 6, 6)),), _WINDOW, free=2),
        Sample((Arg((4, 6, 6)),), _WINDOW, free=1),
    ),
)
op(
    "col2im",
    _col2im,
    aten=("col2im.default",),
    samples=(
        Sample((Arg((2, 24, 9)),), {**_WINDOW, "output_size": [6, 6]}, free=2),
        Sample((Arg((24, 9)),), {**_WINDOW, "output_size": [6, 6]}, free=1),
    ),
)


def _deformable(axes: Axes, node: Node) -> None:
    """A convolution whose taps are moved by offsets (one set per offset group): channels contract
    as they do without."""
    x, w, offset = (axes.of(node.operand(i)) for i in range(3))
    mask = axes.of(node.operand(3)) if node.has(3) else ()
    groups: Size = node.attrs["groups"]
    bundle, _ = axes.split(x[1], node.attrs["offset_groups"])
    if bundle is None:
        raise Unsupported("offset groups that do not fit the channels")
    axes.freeze(bundle, "offset groups")
    g, i = axes.split(x[1], groups)
    h, o = axes.split(w[0], groups)
    if g is None or i is None or h is None or o is None:
        raise Unsupported("groups that do not fit the channels")
    axes.unify(g, h)
    axes.unify(i, w[1])
    if node.has(4):
        axes.unify(axes.of(node.operand(4))[0], w[0])
    for other in (offset, mask):
        if other and other[0].size == x[0].size:
            axes.unify(other[0], x[0])
    for a in (*x[2:], *w[2:], *offset[1:], *mask[1:]):
        axes.freeze(a, "positions of deform_conv2d")
    node.out.axes = (
        x[0],
        w[0],
        *(axes.frozen(s, "positions of deform_conv2d") for s in node.out.shape[2:]),
    )


op(
    "deform_conv2d",
    _deformable,
    resize=_resize,
    silence=_silence,
    macs=_macs,
    aten=("torchvision.deform_conv2d.default",),
    operands=("data", "weight", "", "", "bias"),
    convolution=_geometry,
)
