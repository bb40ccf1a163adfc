"""Normalisations: parameters are one axis with what they scale; statistics depend on who is
present."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from irprune.ir.axis import Axes, factors, leaves
from irprune.ir.graph import Node
from irprune.ir.size import product
from irprune.ops.aten.contraction import concrete, zeroed
from irprune.ops.registry import Arg, Cut, Sample
from irprune.ops.registry import op as declare
from irprune.ops.rule import nn_layers
from irprune.ops.traits import Kind, free_factors

__all__ = ["masked_mean"]

op = partial(declare, family="norm")

_P = Arg((6,), low=0.5, high=1.5)
_X = Arg((2, 6, 5))


def masked_mean(torch: Any, x: Any, dims: Sequence[int], mask: Any) -> Any:
    """The mean of ``x`` over ``dims``, counting only where ``mask`` (broadcastable, or None) is
    true; keeps the dimensions."""
    if mask is None:
        return x.mean(dims, keepdim=True)
    count = mask.expand(x.shape).sum(dims, keepdim=True)
    return zeroed(torch, x, mask).sum(dims, keepdim=True) / count.clamp(min=1)


def _standardised(
    torch: Any, x: Any, dims: Sequence[int], mask: Any, eps: float
) -> tuple[Any, Any, Any]:
    """``x`` less its mean, over its deviation, both over ``dims`` where ``mask`` is true; with the
    mean and 1 / deviation."""
    mean = masked_mean(torch, x, dims, mask)
    centred = x - mean
    scale = torch.rsqrt(masked_mean(torch, centred * centred, dims, mask) + eps)
    return centred * scale, mean, scale


def _affine(y: Any, weight: Any, bias: Any, shape: Sequence[int]) -> Any:
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _given(operands: Sequence[Any], count: int) -> list[Any]:
    """The first ``count`` operands, None where there are fewer."""
    return [*operands, *[None] * count][:count]


# -- over the batch: batch norm and instance norm --------------------------------------------------


def _channelwise(axes: Axes, node: Node) -> None:
    """Everything of rank 1 runs over the channels, dimension 1 of the input; statistics that are
    not kept are empty."""
    own = axes.of(node.operand(0))
    for value in node.inputs[1:]:
        if value is not None:
            axes.unify(own[1], axes.of(value)[0])
    if node.op == "instance_norm":
        _mark_groups(axes, node)
    for value in node.outputs:
        statistics = [
            own[1] if s == own[1].size else axes.frozen(s, "no statistics") for s in value.shape
        ]
        value.axes = own if value.rank == len(own) else tuple(statistics)


def _mark_groups(axes: Axes, node: Node) -> None:
    """Where a reshape left part of the channels in dimension 1 and put the rest behind it, this is
    a group norm over groups, as the exporters of torch write one."""
    own, made = axes.of(node.operand(0)), node.operand(0).producer
    if made is None or made.op != "reshape":
        return
    behind = {x for a in own[2:] for x in leaves(a)}
    for a in axes.of(made.operand(0)):
        inside = set(leaves(a))
        for x in leaves(own[1]) if inside & behind else ():
            if x in inside and x is not axes.one:
                x.role = x.role or "group"


def _channelwise_silence(
    torch: Any, node: Node, operands: list[Any], present: Any, run: Any
) -> Any:
    x, weight, bias, mean, var = _given(operands, 5)
    a = node.attrs
    training = a.get("training", a.get("use_input_stats", False)) or mean is None
    dims = [d for d in range(x.dim()) if d != 1 and not (d == 0 and node.op == "instance_norm")]
    mask = present(node.operand(0), dims) if training else None
    if mask is None:
        return run(*operands)
    y, centre, scale = _standardised(torch, x, dims, mask, a["eps"])
    shape = [1, -1, *[1] * (x.dim() - 2)]
    y = _affine(y, weight, bias, shape)
    if len(node.outputs) == 1:
        return y
    made = [y, centre.flatten(), scale.flatten()]
    if len(node.outputs) == 5:  # the running statistics, moved towards those of this batch
        count = mask.expand(x.shape).sum(dims)
        unbiased = (1 / scale.flatten() ** 2 - a["eps"]) * count / (count - 1)
        made += [
            mean + a["momentum"] * (centre.flatten() - mean),
            var + a["momentum"] * (unbiased - var),
        ]
    return made


def _kinds(node: Node) -> Iterable[Kind]:
    """The channels of a group: the inner factors of the channels or, where exporters reshape the
    groups to channels, the dimensions behind them."""
    channels, *positions = (node.operand(0).axes or ())[1:]
    yield from ((a, "norm-group channels") for a in factors(channels)[1:])
    if any(x.role == "group" for x in leaves(channels)):
        yield from ((a, "norm-group channels") for a in free_factors(positions))


_EVAL = {"training": False, "momentum": 0.1, "eps": 1e-5}
_TRAIN = {**_EVAL, "training": True}
_CUDNN = {"cudnn_enabled": False}
op(
    "batch_norm",
    _channelwise,
    silence=_channelwise_silence,
    aten=("batch_norm.default",),
    samples=(
        Sample((_X, _P, _P, _P, _P), {**_EVAL, **_CUDNN}, free=3),
        Sample((Arg((4, 6)), None, None, _P, _P), {**_EVAL, **_CUDNN}, free=2),
        Sample((_X, _P, _P, None, None), {**_TRAIN, **_CUDNN}, free=3),
    ),
    operands=("data", "scale", "bias", "mean", "variance"),
    joins=True,
    nn_layer=nn_layers.BATCH_NORM,
)
_LEGIT = "aten._native_batch_norm_legit"
op(
    "native_batch_norm",
    _channelwise,
    silence=_channelwise_silence,
    aten=(
        "native_batch_norm.default",
        "_native_batch_norm_legit_no_training.default",
        "_native_batch_norm_legit.no_stats",
        "_native_batch_norm_legit_functional.default",
    ),
    samples=(
        Sample((_X, _P, _P, _P, _P), _EVAL, free=3, target="aten.native_batch_norm.default"),
        Sample(
            (_X, _P, _P, _P, _P),
            {"momentum": 0.1, "eps": 1e-5},
            free=3,
            target=f"{_LEGIT}_no_training.default",
        ),
        Sample((_X, _P, _P), _TRAIN, free=3, target=f"{_LEGIT}.no_stats"),
        Sample((_X, _P, _P, _P, _P), _TRAIN, free=3, target=f"{_LEGIT}_functional.default"),
    ),
    operands=("data", "scale", "bias", "mean", "variance"),
    nn_layer=nn_layers.BATCH_NORM,
)
op(
    "instance_norm",
    _channelwise,
    silence=_channelwise_silence,
    aten=("instance_norm.default",),
    samples=(
        Sample(
            (_X, _P, _P, None, None),
            {"use_input_stats": True, "momentum": 0.1, "eps": 1e-5, **_CUDNN},
            free=3,
        ),
        Sample(
            (_X, None, None, _P, _P),
            {"use_input_stats": False, "momentum": 0.1, "eps": 1e-5, **_CUDNN},
            free=3,
        ),
    ),
    operands=("data", "scale", "bias", "mean", "variance"),
    kinds=_kinds,
)

# -- over the last dimensions: layer norm and rms norm ---------------------------------------------


def _trailing(axes: Axes, node: Node) -> None:
    """Weight and bias cover the last dimensions; statistics have size 1 there."""
    own = axes.of(node.operand(0))
    for value in node.inputs[1:]:
        if value is not None:
            for a, b in zip(own[len(own) - value.rank :], axes.of(value), strict=True):
                axes.unify(a, b)
    node.out.axes = own
    lead = own[: len(own) - len(node.attrs["normalized_shape"])]
    for value in node.outputs[1:]:
        value.axes = (*lead, *[axes.one] * (value.rank - len(lead)))


def _normalized_shape(node: Node, cut: Cut) -> None:
    own = node.operand(0).axes or ()
    node.attrs["normalized_shape"] = [
        cut.size(a) for a in own[len(own) - len(node.attrs["normalized_shape"]) :]
    ]


def _normalised(node: Node) -> list[int]:
    rank = node.operand(0).rank
    return list(range(rank - len(node.attrs["normalized_shape"]), rank))


def _layer_norm_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    x, weight, bias = _given(operands, 3)
    dims = _normalised(node)
    mask = present(node.operand(0), dims)
    if mask is None:
        return run(*operands)
    quick = _by_kernel(torch, node, x, weight, bias, mask)
    if quick is not None:
        return quick
    # As the kernel lays its result
    y, mean, scale = _standardised(torch, x.contiguous(), dims, mask, node.attrs["eps"])
    y = _affine(y, weight, bias, [x.shape[d] for d in dims])
    return y if len(node.outputs) == 1 else (y, mean, scale)


def _by_kernel(torch: Any, node: Node, x: Any, weight: Any, bias: Any, mask: Any) -> Any:
    """The layer or rms norm of those present by torch's own kernel; None where it cannot be or what
    is dropped is not finite.

    The others stand at the mean (at zero for the rms norm), where they add nothing to the variance.
    Over all N indices that is n / N of the variance of the n present; with ``eps`` made smaller
    alike, what comes out is the square root of N / n too large."""
    dims = _normalised(node)
    if len(node.outputs) > 1 or not concrete(x) or any(n != 1 for n in mask.shape[: dims[0]]):
        return None
    shape = [x.shape[d] for d in dims]
    there = mask.expand(*[1] * dims[0], *shape).to(x.dtype)
    share = float(there.mean())
    eps = node.attrs.get("eps")
    eps = (torch.finfo(x.dtype).eps if eps is None else eps) * share
    scale = there[(0,) * dims[0]] * share**0.5 * (1 if weight is None else weight)
    if node.op == "rms_norm":
        y = torch.nn.functional.rms_norm(x * there, shape, scale, eps)
    else:
        mean = (x.flatten(dims[0]) @ (there.flatten() / there.sum())).reshape(
            *x.shape[: dims[0]], *[1] * len(dims)
        )
        y = torch.nn.functional.layer_norm(torch.lerp(mean, x, there), shape, scale, bias, eps)
    return y if bool(torch.isfinite(y.sum())) else None


def _rms_norm_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    x, weight = _given(operands, 2)
    dims = _normalised(node)
    mask = present(node.operand(0), dims)
    if mask is None:
        return run(*operands)
    quick = _by_kernel(torch, node, x, weight, None, mask)
    if quick is not None:
        return quick
    eps = node.attrs.get("eps")
    scale = torch.rsqrt(
        masked_mean(torch, x * x, dims, mask) + (torch.finfo(x.dtype).eps if eps is None else eps)
    )
    y = x * scale if weight is None else x * scale * weight
    return y if len(node.outputs) == 1 else (y, scale)


_LAST = {"normalized_shape": [6], "eps": 1e-5}
_ROWS = Arg((2, 5, 6))
op(
    "layer_norm",
    _trailing,
    resize=_normalized_shape,
    silence=_layer_norm_silence,
    aten=("layer_norm.default", "native_layer_norm.default"),
    call=lambda node: f"aten.{'native_' * (len(node.outputs) > 1)}layer_norm.default",
    samples=(
        Sample((_ROWS, _P, _P), _LAST, free=3, target="aten.layer_norm.default"),
        Sample(
            (Arg((2, 5, 3, 4)), Arg((3, 4)), None),
            {**_LAST, "normalized_shape": [3, 4]},
            free=4,
            target="aten.layer_norm.default",
        ),
        Sample((_ROWS, _P, _P), _LAST, free=3, target="aten.native_layer_norm.default"),
    ),
    operands=("data", "scale", "bias"),
    nn_layer=nn_layers.LAYER_NORM,
)
op(
    "rms_norm",
    _trailing,
    resize=_normalized_shape,
    silence=_rms_norm_silence,
    aten=("rms_norm.default", "_fused_rms_norm.default"),
    samples=(
        Sample((_ROWS, _P), _LAST, free=3, target="aten.rms_norm.default"),
        Sample(
            (_ROWS, None),
            {"normalized_shape": [5, 6], "eps": None},
            free=3,
            target="aten.rms_norm.default",
        ),
        Sample((_ROWS, _P), _LAST, free=3, target="aten._fused_rms_norm.default"),
    ),
    operands=("data", "scale"),
    nn_layer=nn_layers.RMS_NORM,
)

# -- over groups of channels -----------------------------------------------------------------------


def _group_count(node: Node, cut: Cut) -> int:
    """The groups that keep a channel; all that do keep the same number, since the channels are
    groups × channels of a group."""
    channels = (node.operand(0).axes or ())[1]
    per_group = int(channels.size) // int(node.attrs[_groups(node)])  # type: ignore[arg-type]
    return len({int(k) // per_group for k in cut.kept(channels)})


def _groups(node: Node) -> str:
    return "num_groups" if "num_groups" in node.attrs else "group"


def _group_norm_resize(node: Node, cut: Cut) -> None:
    node.attrs[_groups(node)] = _group_count(node, cut)
    if "HxW" in node.attrs:
        n, c, *rest = (cut.size(a) for a in node.operand(0).axes or ())
        node.attrs.update(N=n, C=c, HxW=product(rest))


def _group_norm_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    x, weight, bias = _given(operands, 3)
    mask = present(node.operand(0), list(range(1, x.dim())))
    if mask is None:
        return run(*operands)
    grouped = (x.shape[0], node.attrs[_groups(node)], -1)
    y, mean, scale = _standardised(
        torch, x.reshape(grouped), [2], mask.expand(x.shape).reshape(grouped), node.attrs["eps"]
    )
    y = _affine(y.reshape(x.shape), weight, bias, [-1, *[1] * (x.dim() - 2)])
    return y if len(node.outputs) == 1 else (y, mean[..., 0], scale[..., 0])


_GROUPS = {"num_groups": 2, "eps": 1e-5, **_CUDNN}
op(
    "group_norm",
    "n (g c) *s , (g c)? , (g c)? -> n (g c) *s",
    sizes={"g": "num_groups"},
    roles={"g": "group"},
    resize=_group_norm_resize,
    silence=_group_norm_silence,
    aten=("group_norm.default",),
    samples=(
        Sample((_X, _P, _P), _GROUPS, free=4),
        Sample((_X, _P, _P), {**_GROUPS, "num_groups": 1}, free=3),
        Sample((_X, _P, None), {**_GROUPS, "num_groups": 6}, free=3),
        Sample((Arg((2, 6, 3, 4)), None, None), _GROUPS, free=5),
        Sample((Arg((4, 6)), _P, _P), _GROUPS, free=3),
    ),
    operands=("data", "scale", "bias"),
    kinds=_kinds,
    nn_layer=nn_layers.GROUP_NORM,
)
op(
    "native_group_norm",
    "n (g c) *s , (g c)? , (g c)? -> n (g c) *s , n g , n g",
    sizes={"g": "group"},
    roles={"g": "group"},
    resize=_group_norm_resize,
    silence=_group_norm_silence,
    aten=("native_group_norm.default",),
    samples=(Sample((_X, _P, _P), {"N": 2, "C": 6, "HxW": 5, "group": 2, "eps": 1e-5}, free=4),),
    operands=("data", "scale", "bias"),
    kinds=_kinds,
)

# -- of weights ------------------------------------------------------------------------------------


def _weight_norm(axes: Axes, node: Node) -> None:
    """``g * v / |v|``, the norm over all dimensions of ``v`` but ``dim``."""
    v, g = axes.of(node.operand(0)), axes.of(node.operand(1))
    for a, b in zip(v[len(v) - len(g) :], g, strict=True):
        if b.size != 1:
            axes.unify(a, b)
    node.out.axes = v
    for value in node.outputs[1:]:
        value.axes = tuple(
            a if s != 1 else axes.one
            for a, s in zip(v[len(v) - value.rank :], value.shape, strict=True)
        )


def _weight_norm_silence(
    torch: Any, node: Node, operands: list[Any], present: Any, run: Any
) -> Any:
    v, g = operands
    dim = node.attrs["dim"]
    dims = [d for d in range(v.dim()) if dim == -1 or d != dim % v.dim()]
    return run(zeroed(torch, v, present(node.operand(0), dims)), g)


op(
    "weight_norm",
    _weight_norm,
    silence=_weight_norm_silence,
    aten=("_weight_norm.default", "_weight_norm_interface.default"),
    samples=(
        Sample(
            (Arg((4, 6, 3)), Arg((4, 1, 1), low=0.5)),
            {"dim": 0},
            free=3,
            target="aten._weight_norm.default",
        ),
        Sample(
            (Arg((4, 6, 3)), Arg((1, 6, 1), low=0.5)),
            {"dim": 1},
            free=3,
            target="aten._weight_norm.default",
        ),
        Sample(
            (Arg((4, 6)), Arg((), low=0.5)), {"dim": -1}, free=2, target="aten._weight_norm.default"
        ),
        Sample(
            (Arg((4, 6, 3)), Arg((4, 1, 1), low=0.5)),
            {"dim": 0},
            free=3,
            target="aten._weight_norm_interface.default",
        ),
    ),
    operands=("data", "scale"),
)
