"""How a call of an ATen overload is said in Python: by an operator, a method, or a function that
runs the same overload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from irprune.ops.call import overload

__all__ = ["Form", "python_form"]


@dataclass(frozen=True)
class Form:
    """An expression of Python over the arguments of a call.

    Args:
        kind: ``infix`` and ``prefix`` operators, ``function``, ``method`` and ``attribute`` of the
            first argument, or ``subscript`` of the first argument by the others, of which ``slice``
            objects and None are whole or parts of dimensions.
        name: The operator, or the name of the function, method or attribute.
        args: Arguments by position.
        kwargs: Arguments by keyword.
    """

    kind: Literal["infix", "prefix", "function", "method", "attribute", "subscript"]
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


_INFIX = {
    "add.Tensor": "+",
    "sub.Tensor": "-",
    "mul.Tensor": "*",
    "div.Tensor": "/",
    "matmul.default": "@",
    "pow.Tensor_Scalar": "**",
    "pow.Tensor_Tensor": "**",
    "eq.Tensor": "==",
    "eq.Scalar": "==",
    "ne.Tensor": "!=",
    "ne.Scalar": "!=",
    "lt.Tensor": "<",
    "lt.Scalar": "<",
    "le.Tensor": "<=",
    "le.Scalar": "<=",
    "gt.Tensor": ">",
    "gt.Scalar": ">",
    "ge.Tensor": ">=",
    "ge.Scalar": ">=",
    "__and__.Tensor": "&",
    "__or__.Tensor": "|",
    "__xor__.Tensor": "^",
    "bitwise_and.Tensor": "&",
    "bitwise_or.Tensor": "|",
    "floor_divide.default": "//",
}
_PREFIX = {"neg.default": "-", "bitwise_not.default": "~"}

_METHODS = frozenset(
    "reshape view permute transpose flatten unflatten contiguous expand expand_as view_as reshape_as type_as squeeze unsqueeze "
    "repeat repeat_interleave split split_with_sizes chunk unbind select narrow softmax log_softmax mean sum amax amin max min std "
    "var prod cumsum argmax argmin exp log sqrt rsqrt sin cos tanh sigmoid abs square reciprocal erf floor ceil round sign log1p "
    "clamp clamp_min clamp_max masked_fill flip roll t clone detach bmm index_select gather sort argsort topk any all logical_not "
    "logical_and logical_or new_zeros new_ones new_full unfold tril triu swapaxes movedim tile to".split()
)
# overload -> name in torch.nn.functional and how many arguments of the schema it takes
_FUNCTIONS = {
    "relu.default": ("relu", 1),
    "relu6.default": ("relu6", 1),
    "gelu.default": ("gelu", 2),
    "silu.default": ("silu", 1),
    "mish.default": ("mish", 1),
    "elu.default": ("elu", 2),
    "selu.default": ("selu", 1),
    "celu.default": ("celu", 2),
    "leaky_relu.default": ("leaky_relu", 2),
    "hardswish.default": ("hardswish", 1),
    "hardsigmoid.default": ("hardsigmoid", 1),
    "hardtanh.default": ("hardtanh", 3),
    "softplus.default": ("softplus", 3),
    "prelu.default": ("prelu", 2),
    "glu.default": ("glu", 2),
    "logsigmoid.default": ("logsigmoid", 1),
    "linear.default": ("linear", 3),
    "conv1d.default": ("conv1d", 7),
    "conv2d.default": ("conv2d", 7),
    "conv3d.default": ("conv3d", 7),
    "conv1d.padding": ("conv1d", 7),
    "conv2d.padding": ("conv2d", 7),
    "conv3d.padding": ("conv3d", 7),
    "conv_transpose1d.default": ("conv_transpose1d", 8),
    "conv_transpose2d.input": ("conv_transpose2d", 8),
    "conv_transpose3d.input": ("conv_transpose3d", 8),
    "layer_norm.default": ("layer_norm", 5),
    "group_norm.default": ("group_norm", 5),
    "rms_norm.default": ("rms_norm", 4),
    "scaled_dot_product_attention.default": ("scaled_dot_product_attention", 8),
    "pad.default": ("pad", 4),
    "max_pool1d.default": ("max_pool1d", 6),
    "max_pool2d.default": ("max_pool2d", 6),
    "max_pool3d.default": ("max_pool3d", 6),
    "avg_pool1d.default": ("avg_pool1d", 6),
    "avg_pool2d.default": ("avg_pool2d", 7),
    "avg_pool3d.default": ("avg_pool3d", 7),
    "adaptive_avg_pool1d.default": ("adaptive_avg_pool1d", 2),
    "adaptive_avg_pool2d.default": ("adaptive_avg_pool2d", 2),
    "adaptive_avg_pool3d.default": ("adaptive_avg_pool3d", 2),
    "pixel_shuffle.default": ("pixel_shuffle", 2),
    "pixel_unshuffle.default": ("pixel_unshuffle", 2),
    "one_hot.default": ("one_hot", 2),
}
_INTERPOLATE = {
    "upsample_nearest1d.vec": "nearest",
    "upsample_nearest2d.vec": "nearest",
    "upsample_nearest3d.vec": "nearest",
    "upsample_linear1d.vec": "linear",
    "upsample_bilinear2d.vec": "bilinear",
    "upsample_bicubic2d.vec": "bicubic",
    "upsample_trilinear3d.vec": "trilinear",
}
# torch.<name> with the arguments of the schema
_PLAIN = frozenset(
    "cat stack where arange zeros ones full empty eye linspace zeros_like ones_like full_like empty_like outer maximum minimum "
    "einsum baddbmm addmm addcmul addcdiv mm mv dot channel_shuffle meshgrid isnan isinf polar view_as_real view_as_complex real "
    "imag grid_sampler bilinear diff bucketize searchsorted scatter scatter_add scatter_reduce index_add index_put rms_norm "
    "logsumexp lerp broadcast_to concat atan2 fmod remainder log2 log10 exp2 expm1 tan asin acos atan sinh cosh erfinv "
    "instance_norm cosine_similarity kron logaddexp deg2rad rad2deg nan_to_num hypot frac trunc erfc lgamma digamma".split()
)


def python_form(
    target: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, operand: bool, rank: int = 0
) -> Form:
    """The expression that calls an overload.

    Args:
        target: Its name, such as ``aten.add.Tensor``.
        args: Its arguments by position.
        kwargs: Its arguments by keyword.
        operand: Whether the first argument is a tensor, of which methods can be called.
        rank: The number of dimensions of the first argument, 0 where it is not known.

    Returns:
        The form that runs the same overload; a function of that name where Python has no other.
    """
    space, name, variant = target.split(".")
    kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory" or v}
    short = f"{name}.{variant}"
    if space == "aten":
        made = _special(short, args, kwargs, rank) or _usual(name, short, args, kwargs, operand)
        if made is not None:
            return made
    return Form("function", f"torch.ops.{target}", args, kwargs)


def _usual(
    name: str, short: str, args: Sequence[Any], kwargs: Mapping[str, Any], operand: bool
) -> Form | None:
    if short in _INFIX and len(args) == 2 and not kwargs and operand:
        return Form("infix", _INFIX[short], args)
    if short == "pow.Scalar" and len(args) == 2 and not kwargs:
        return Form("infix", "**", args)
    if short == "rsub.Scalar" and len(args) == 2 and not kwargs:
        return Form("infix", "-", (args[1], args[0]))
    if short in _PREFIX:
        return Form("prefix", _PREFIX[short], args[:1])
    if short in _FUNCTIONS and _fits(short, args, kwargs):
        return Form("function", f"F.{_FUNCTIONS[short][0]}", args, kwargs)
    if name in _METHODS and operand:
        return Form("method", name, args, kwargs)
    if name in _PLAIN and name in vars(torch):
        return Form("function", f"torch.{name}", args, kwargs)
    return None


def _fits(short: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the Python function takes all that is given; the last schema arguments of some
    overloads have no place in it."""
    _, count = _FUNCTIONS[short]
    known = {a.name for a in overload(f"aten.{short}")._schema.arguments[:count]}
    return len(args) <= count and set(kwargs) <= known


def _special(short: str, args: Sequence[Any], kwargs: Mapping[str, Any], rank: int) -> Form | None:
    """Spellings whose arguments stand in another order or form."""
    overloaded = f"torch.ops.aten.{short}"
    if short == "slice.Tensor":
        return _slice(args, kwargs, rank)
    if short == "index.Tensor" and len(args) == 2 and not kwargs:
        return Form("subscript", "", (args[0], *args[1]))
    if short == "embedding.default":
        pad = args[2] if len(args) > 2 else kwargs.get("padding_idx", -1)
        if len(args) <= 3 and set(kwargs) <= {"padding_idx"}:
            own = {} if pad == -1 else {"padding_idx": pad}
            return Form("function", "F.embedding", (args[1], args[0]), own)
    if short == "batch_norm.default" and len(args) >= 8:
        x, w, b, mean, var, training, momentum, eps = args[:8]
        return Form("function", "F.batch_norm", (x, mean, var, w, b, training, momentum, eps))
    if short in _INTERPOLATE:
        return _interpolate(_INTERPOLATE[short], args, kwargs)
    if short in ("to.device", "to.dtype", "to.dtype_layout"):
        names = {"to.device": ("device", "dtype"), "to.dtype": ("dtype",), "to.dtype_layout": ()}[
            short
        ]
        given = dict(zip(names, args[1:], strict=False)) | dict(kwargs)
        if len(args) - 1 <= len(names) and set(given) <= {
            "dtype",
            "device",
            "copy",
            "non_blocking",
        }:
            return Form("method", "to", args[:1], given)
        return Form("function", overloaded, args, kwargs)
    if short in ("mT.default", "numpy_T.default"):
        return Form("attribute", short.split(".")[0].removeprefix("numpy_"), args[:1])
    if short == "_unsafe_view.default":
        return Form("method", "reshape", args[:2])
    if short == "constant_pad_nd.default":
        return Form("function", "F.pad", args[:2], {"value": args[2]} if len(args) > 2 else {})
    if short in ("_softmax.default", "_log_softmax.default") and args[2:] == [False]:
        return Form("method", short.split(".")[0][1:], args[:2])
    if (short == "einsum.default" and (len(args) != 2 or kwargs)) or (
        short == "index_put.default" and None in args[1]
    ):
        return Form("function", overloaded, args, kwargs)
    return None


def _slice(args: Sequence[Any], kwargs: Mapping[str, Any], rank: int) -> Form | None:
    """``x[:, 2:5]``."""
    given = dict(zip(("dim", "start", "end", "step"), args[1:], strict=False)) | dict(kwargs)
    dim, start, end, step = (
        given.get("dim", 0),
        given.get("start"),
        given.get("end"),
        given.get("step", 1),
    )
    if not isinstance(dim, int) or (dim < 0 and not rank):
        return None
    begin = None if start in (None, 0) else start
    stop = None if isinstance(end, int) and end >= 2**62 else end
    whole = [slice(None)] * (dim % rank if rank else dim)
    part = slice(begin, stop, None if step == 1 else step)
    return Form("subscript", "", (args[0], *whole, part))


def _interpolate(mode: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form:
    """``F.interpolate``; overloads of nearest neighbours have no ``align_corners``."""
    names = (
        ("size", "scale_factor") if mode == "nearest" else ("size", "align_corners", "scale_factor")
    )
    renamed = {"output_size": "size", "scale_factors": "scale_factor"}
    given = dict(zip(names, args[1:], strict=False)) | {
        renamed.get(k, k): v for k, v in kwargs.items()
    }
    given = {k: v for k, v in given.items() if v is not None}
    return Form("function", "F.interpolate", args[:1], {**given, "mode": mode})
