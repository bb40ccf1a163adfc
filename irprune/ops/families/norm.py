"""Normalisations: parameters are one axis with what they scale; statistics depend on who is present."""

from __future__ import annotations

from irprune.ir.graph import Node
from irprune.ir.axis import Axes
from irprune.ops.registry import Arg, Cut, Sample, op

_P = Arg((6,), low=0.5, high=1.5)

op("batch_norm", "n c *s , c? , c? , c? , c? -> n c *s", aten=("batch_norm.default",),
   samples=(Sample((Arg((2, 6, 5)), _P, _P, _P, _P), {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False}, free=3),))


def _trailing(axes: Axes, node: Node) -> None:
    """Weight and bias cover the last dimensions."""
    own = axes.of(node.operand(0))
    for value in node.inputs[1:]:
        if value is not None:
            for a, b in zip(own[-value.rank:], axes.of(value), strict=True):
                axes.unify(a, b)
    for value in node.outputs:
        value.axes = own


def _normalized_shape(node: Node, cut: Cut) -> None:
    own = node.operand(0).axes or ()
    node.attrs["normalized_shape"] = [cut.size(a) for a in own[len(own) - len(node.attrs["normalized_shape"]):]]


def masked_mean(torch, x, dims, mask):  # type: ignore[no-untyped-def]
    """The mean of ``x`` over ``dims``, counting only where ``mask`` (broadcastable, or None) is true; keeps the dimensions."""
    if mask is None:
        return x.mean(dims, keepdim=True)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    count = mask.expand(x.shape).sum(dims, keepdim=True)
    return torch.where(mask, x, zero).sum(dims, keepdim=True) / count.clamp(min=1)


def _normalised(node: Node) -> list[int]:
    rank = node.operand(0).rank
    return list(range(rank - len(node.attrs["normalized_shape"]), rank))


def _layer_norm_silence(torch, node, operands, present, run):  # type: ignore[no-untyped-def]
    x, weight, bias = (*operands, None, None)[:3]
    dims = _normalised(node)
    mask = present(node.operand(0), dims)
    if mask is None:
        return run(*operands)
    centred = x - masked_mean(torch, x, dims, mask)
    y = centred / torch.sqrt(masked_mean(torch, centred * centred, dims, mask) + node.attrs["eps"])
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm_silence(torch, node, operands, present, run):  # type: ignore[no-untyped-def]
    x, weight = (*operands, None)[:2]
    dims = _normalised(node)
    mask = present(node.operand(0), dims)
    if mask is None:
        return run(*operands)
    eps = node.attrs.get("eps")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x / torch.sqrt(masked_mean(torch, x * x, dims, mask) + eps)
    return y if weight is None else y * weight


op("layer_norm", _trailing, resize=_normalized_shape, silence=_layer_norm_silence, aten=("layer_norm.default",),
   samples=(Sample((Arg((2, 5, 6)), _P, _P), {"normalized_shape": [6], "eps": 1e-5, "cudnn_enable": False}, free=3),))
op("rms_norm", _trailing, resize=_normalized_shape, silence=_rms_norm_silence, aten=("rms_norm.default",),
   samples=(Sample((Arg((2, 5, 6)), _P), {"normalized_shape": [6], "eps": 1e-5}, free=3),))


def _group_norm_resize(node: Node, cut: Cut) -> None:
    """The groups of the rule are the outer factors of the channels; their number follows when one of them is dropped."""
    groups = node.attrs["num_groups"]
    count = 1
    from irprune.ir.axis import factors
    own = node.operand(0).axes or ()
    for f in factors(own[1]):
        if groups == 1:
            break
        groups //= f.size  # type: ignore[operator]
        count *= cut.size(f)  # type: ignore[operator,assignment]
    node.attrs["num_groups"] = count


def _group_norm_silence(torch, node, operands, present, run):  # type: ignore[no-untyped-def]
    x, weight, bias = (*operands, None, None)[:3]
    mask = present(node.operand(0), [1])
    if mask is None:
        return run(*operands)
    shape = [1] * x.dim()
    shape[1] = -1
    grouped = (x.shape[0], node.attrs["num_groups"], -1)
    inside, y = mask.expand(x.shape).reshape(grouped), x.reshape(grouped)
    y = y - masked_mean(torch, y, [2], inside)
    y = (y / torch.sqrt(masked_mean(torch, y * y, [2], inside) + node.attrs["eps"])).reshape(x.shape)
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


op("group_norm", "n (g c) *s , (g c)? , (g c)? -> n (g c) *s", sizes={"g": "num_groups"}, roles={"g": "group"},
   resize=_group_norm_resize, silence=_group_norm_silence, aten=("group_norm.default",),
   samples=(Sample((Arg((2, 6, 5)), _P, _P), {"num_groups": 2, "eps": 1e-5, "cudnn_enabled": False}, free=None),))
