"""Normalisations as ONNX spells them."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType
from irprune.ops.aten.norm import masked_mean
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
from irprune.ops.onnx.types import agree, like, position
from irprune.ops.registry import TABLE, Arg, Cut, Sample
from irprune.ops.registry import op as declare

__all__ = ["nothing"]

op = partial(declare, family="norm")


def nothing(edit: Edit, *nodes: Node) -> None:
    """A writer for operators whose ONNX form holds no size."""


def _batch_norm(node: OnnxNode) -> Step:
    if len([o for o in node.outputs if o]) > 1 or node.attrs.get("training_mode", 0):
        raise UnsupportedUse("a BatchNormalization in training mode")
    if node.opset < 9 and not node.attrs.get("spatial", 1):
        raise UnsupportedUse("a BatchNormalization with statistics per position")
    attrs = {
        "training": False,
        "momentum": 1 - node.attrs.get("momentum", 0.9),
        "eps": node.attrs.get("epsilon", 1e-5),
        "cudnn_enabled": False,
    }
    return Step("batch_norm", None, attrs, [like(node)])


def _instance_norm(node: OnnxNode) -> Step:
    attrs = {
        "use_input_stats": True,
        "momentum": 0.1,
        "eps": node.attrs.get("epsilon", 1e-5),
        "cudnn_enabled": False,
    }
    return Step("instance_norm", None, attrs, [like(node)])


spell("batch_norm", "BatchNormalization", read=_batch_norm)
spell("instance_norm", "InstanceNormalization", read=_instance_norm)


def _layer_norm(node: OnnxNode) -> Step:
    """Over the dimensions from ``axis`` on; mean and inverse deviation may be further results."""
    x = node.shape()
    axis = position(node.attrs.get("axis", -1), len(x))
    attrs = {"normalized_shape": list(x[axis:]), "eps": node.attrs.get("epsilon", 1e-5)}
    lead = TensorType("f32", (*x[:axis], *[1] * (len(x) - axis)))
    plain = all(not node.has(i) or agree(node.shape(i), x[axis:]) for i in (1, 2))
    if not plain:
        raise UnsupportedUse("a LayerNormalization whose scale broadcasts")
    kinds = [like(node), lead, lead][: len(node.outputs)]
    return Step("layer_norm", None, {**attrs, "cudnn_enable": False}, kinds)


spell("layer_norm", "LayerNormalization", read=_layer_norm, write=nothing)


def _rms_norm(node: OnnxNode) -> Step:
    x = node.shape()
    axis = position(node.attrs.get("axis", -1), len(x))
    if not agree(node.shape(1), x[axis:]) or len([o for o in node.outputs if o]) > 1:
        raise UnsupportedUse("an RMSNormalization whose scale broadcasts")
    return Step(
        "rms_norm",
        (0, 1),
        {"normalized_shape": list(x[axis:]), "eps": node.attrs.get("epsilon", 1e-5)},
        [like(node)],
    )


spell("rms_norm", "RMSNormalization", read=_rms_norm, write=nothing)
spell("rms_norm", "SimplifiedLayerNormalization", read=_rms_norm, write=nothing)


def _group_norm(node: OnnxNode) -> Step:
    """From opset 21 on scale and bias are per channel; before they were per group, which is another
    operator."""
    groups = node.attrs["num_groups"]
    attrs = {"num_groups": groups, "eps": node.attrs.get("epsilon", 1e-5), "cudnn_enabled": False}
    if node.opset < 21 and not (
        isinstance(node.shape(0)[1], int) and node.shape(1)[0] == node.shape(0)[1]
    ):
        return Step("group_norm_by_group", None, attrs, [like(node)])
    return Step("group_norm", None, attrs, [like(node)])


def _write_groups(edit: Edit, node: Node) -> None:
    if node.attrs["num_groups"] != edit.attrs["num_groups"]:
        edit.attr("num_groups", node.attrs["num_groups"])


def _by_group_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    x, scale, bias = operands
    mask = present(node.operand(0), list(range(1, x.dim())))
    if mask is None:
        return run(*operands)
    grouped, wide = (x.shape[0], node.attrs["num_groups"], -1), (1, -1, 1)
    inside, y = mask.expand(x.shape).reshape(grouped), x.reshape(grouped)
    y = y - masked_mean(torch, y, [2], inside)
    y = y * torch.rsqrt(masked_mean(torch, y * y, [2], inside) + node.attrs["eps"])
    return (y * scale.reshape(wide) + bias.reshape(wide)).reshape(x.shape)


def _group_resize(node: Node, cut: Cut) -> None:
    scale = (node.operand(1).axes or ())[0]
    node.attrs["num_groups"] = cut.size(scale)


from irprune.ops.rule.signature import Signature  # noqa: E402

_BY_GROUP = Signature(
    "n (g c) *s , g , g -> n (g c) *s", sizes={"g": "num_groups"}, roles={"g": "group"}
)
op(
    "group_norm_by_group",
    _BY_GROUP.rule,
    resize=_group_resize,
    silence=_by_group_silence,
    run=runs("group_norm_by_group"),
    samples=(
        Sample(
            (Arg((2, 6, 5)), Arg((2,)), Arg((2,))),
            {"num_groups": 2, "eps": 1e-5, "cudnn_enabled": False},
            free=4,
        ),
    ),
    operands=("data", "scale", "bias"),
    kinds=TABLE["group_norm"].kinds,
)
spell(
    ("group_norm", "group_norm_by_group"),
    "GroupNormalization",
    read=_group_norm,
    write=_write_groups,
)

# -- without parameters ----------------------------------------------------------------------------


def _same(axes: Axes, node: Node) -> None:
    node.out.axes = axes.of(node.operand(0))


def _neighbours(axes: Axes, node: Node) -> None:
    """Each channel is scaled by its neighbours: which channel is whose neighbour changes when one
    is dropped, so none may be."""
    own = axes.of(node.operand(0))
    axes.freeze(own[1], "neighbouring channels normalise each other")
    node.out.axes = own


def _lrn(node: OnnxNode) -> Step:
    attrs = {
        "size": node.attrs["size"],
        "alpha": node.attrs.get("alpha", 1e-4),
        "beta": node.attrs.get("beta", 0.75),
        "bias": node.attrs.get("bias", 1.0),
    }
    return Step("local_response_norm", (0,), attrs, [like(node)])


op(
    "local_response_norm",
    _neighbours,
    run=runs("local_response_norm"),
    samples=(
        Sample((Arg((2, 6, 5)),), {"size": 3, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}, free=2),
    ),
)
spell("local_response_norm", "LRN", read=_lrn)


def _lp_norm(node: OnnxNode) -> Step:
    return Step(
        "lp_normalize",
        (0,),
        {"dim": node.attrs.get("axis", -1), "p": node.attrs.get("p", 2)},
        [like(node)],
    )


def _lp_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    mask = present(node.operand(0), [position(node.attrs["dim"], node.operand(0).rank)])
    x = operands[0]
    return run(
        x if mask is None else torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
    )


op(
    "lp_normalize",
    _same,
    silence=_lp_silence,
    run=runs("lp_normalize"),
    samples=(Sample((Arg((2, 6, 5)),), {"dim": 1, "p": 2}, free=3),),
)
spell("lp_normalize", "LpNormalization", read=_lp_norm)


def _mvn(node: OnnxNode) -> Step:
    return Step(
        "mean_variance_norm", (0,), {"dim": list(node.attrs.get("axes") or [0, 2, 3])}, [like(node)]
    )


def _mvn_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    x, dims = operands[0], [position(d, node.operand(0).rank) for d in node.attrs["dim"]]
    mask = present(node.operand(0), dims)
    if mask is None:
        return run(x)
    mean = masked_mean(torch, x, dims, mask)
    square = masked_mean(torch, x * x, dims, mask)
    return (x - mean) / (torch.sqrt(square - mean * mean) + 1e-9)


op(
    "mean_variance_norm",
    _same,
    silence=_mvn_silence,
    run=runs("mean_variance_norm"),
    samples=(Sample((Arg((2, 6, 5)),), {"dim": [0, 2]}, free=3),),
)
spell("mean_variance_norm", "MeanVarianceNormalization", read=_mvn)

# -- samples ---------------------------------------------------------------------------------------

_IMAGE, _WIDE, _SIX = Arg((2, 6, 5, 5)), Arg((2, 3, 6)), Arg((6,), low=0.5, high=1.5)
sampled("BatchNormalization", use(_IMAGE, _SIX, _SIX, _SIX, _SIX, free=4, epsilon=0.1))
sampled("InstanceNormalization", use(_IMAGE, _SIX, _SIX, free=4))
sampled(
    "LayerNormalization",
    use(_WIDE, _SIX, _SIX, free=3),
    use(_WIDE, Arg((3, 6)), free=3, axis=1),
    use(_WIDE, _SIX, _SIX, free=3, read=(0, 1, 2)),
)
sampled("RMSNormalization", use(_WIDE, _SIX, free=3, opset=23, epsilon=0.1))
sampled("SimplifiedLayerNormalization", use(_WIDE, _SIX, free=3, epsilon=0.1))
sampled(
    "GroupNormalization",
    use(_IMAGE, _SIX, _SIX, free=5, opset=21, num_groups=2),
    use(_IMAGE, Arg((2,)), Arg((2,)), free=5, opset=18, num_groups=2),
)
sampled("LRN", use(_IMAGE, free=3, size=3, alpha=0.1))
sampled("LpNormalization", use(_WIDE, free=3, axis=1), use(_WIDE, free=3, axis=1, p=1))
sampled("MeanVarianceNormalization", use(_IMAGE, free=4), use(_IMAGE, free=4, axes=[1, 2, 3]))
