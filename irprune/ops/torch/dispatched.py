"""Overloads of ATen that a recording, or a tensor of its own kind, treats in a way of their own,
by what they do."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

__all__ = [
    "CONVERT",
    "EXPAND",
    "NORM",
    "PLACES",
    "STOP_GRADIENT",
    "all_true_target",
    "as_exported",
    "asserts",
    "canonical_target",
    "functional",
    "goes_over_elements",
    "is_aten",
    "is_autocast",
    "is_copy",
    "is_dropout",
    "is_frozen_norm",
    "is_handle",
    "is_of_vmap",
    "like_another",
    "picks",
    "reads_number",
    "reads_truth",
    "reshapes_in_place",
]

_ATEN: Any = torch.ops.aten

EXPAND = _ATEN.expand.default
"""Repeats a tensor along dimensions of size 1."""
CONVERT = _ATEN._to_copy.default
"""Gives the values in another element type or on another device."""
STOP_GRADIENT = _ATEN.detach.default
"""Passes no gradient on."""
PLACES = _ATEN.nonzero.default
"""Gives the positions of the elements that are not zero."""
NORM = _ATEN.batch_norm.default
"""The batch norm that a layer calls."""

_RESHAPE_IN_PLACE = (
    _ATEN.squeeze_,
    _ATEN.unsqueeze_,
    _ATEN.transpose_,
    _ATEN.t_,
    _ATEN.swapaxes_,
    _ATEN.swapdims_,
)

_NUMBERS = (_ATEN.item.default, _ATEN._local_scalar_dense.default)
_HANDLES = (STOP_GRADIENT, _ATEN.alias.default)
_DROPOUTS = {
    f"aten.{kind}{write}.default"
    for kind in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    for write in ("", "_")
}


def reads_number(func: Any) -> bool:
    """Whether ``func`` gives the one element of a tensor as a number of Python."""
    return func in _NUMBERS


def reads_truth(func: Any) -> bool:
    """Whether ``func`` says if the one element of a tensor is not zero."""
    return func is _ATEN.is_nonzero.default


def asserts(func: Any) -> bool:
    """Whether ``func`` raises, with a text of its own, where a tensor is not true."""
    return func is _ATEN._assert_async.msg


def all_true_target(target: str) -> bool:
    """Whether the overload named ``target`` is what ``torch._check_tensor_all`` reads."""
    return target == "aten._is_all_true.default"


def goes_over_elements(func: Any) -> bool:
    """Whether ``func`` opens a dimension into one tensor for each index, as a loop over a tensor
    does."""
    return func is _ATEN.unbind.int


def is_handle(func: Any) -> bool:
    """Whether ``func`` gives the same storage under another handle."""
    return func in _HANDLES


def is_aten(func: Any) -> bool:
    """Whether ``func`` is an overload of ATen."""
    return isinstance(func, torch._ops.OpOverload) and func.namespace == "aten"


def is_autocast(func: Any) -> bool:
    """Whether ``func`` runs a body whose operators choose their element types."""
    return str(func) == "wrap_with_autocast"


def is_of_vmap(func: Any) -> bool:
    """Whether ``func`` opens or closes what ``torch.vmap`` maps over, in an exported program."""
    return getattr(func, "__module__", "") == "torch._functorch.predispatch"


def picks(func: Any) -> bool:
    """Whether ``func`` reads a tensor by lists of positions or masks, one for each dimension."""
    return func is _ATEN.index.Tensor


def reshapes_in_place(func: Any) -> bool:
    """Whether ``func`` gives a tensor another shape in place: afterwards it is a view of what it
    was."""
    return func.overloadpacket in _RESHAPE_IN_PLACE


def is_copy(target: str) -> bool:
    """Whether the overload named ``target`` takes the values of its second operand in the shape and
    element type of its first."""
    return target == "aten.copy.default"


def is_dropout(target: str) -> bool:
    """Whether the overload named ``target`` leaves elements out at random where it trains."""
    return target in _DROPOUTS


def is_frozen_norm(func: Any) -> bool:
    """Whether ``func`` is what ``torch.export`` makes of a batch norm outside of training."""
    return func is _ATEN._native_batch_norm_legit_no_training.default


def like_another(target: str) -> bool:
    """Whether the overload named ``target`` makes a tensor of the shape of its operand, whose
    values it does not read."""
    return target.split(".")[1].endswith("_like")


def as_exported(func: Any) -> Any:
    """``func`` as ``torch.export`` spells it: a literal that was made is a copy of it."""
    return _ATEN.lift_fresh_copy.default if func is _ATEN.lift_fresh.default else func


@cache
def functional(target: Any) -> Any:
    """The overload that computes what the in-place ``target`` writes, told by the types of its
    arguments; else ``target`` itself."""
    name = target._schema.name.split("::")[1]
    if not target._schema.is_mutable or not name.endswith("_") or name.endswith("__"):
        return target
    packet = getattr(_ATEN, name[:-1], None)
    for overload in (
        sorted(packet.overloads(), key=lambda o: o != target._overloadname)
        if packet is not None
        else ()
    ):
        twin = getattr(packet, overload)  # pow_.Scalar is pow.Tensor_Scalar, not pow.Scalar
        if [str(a.type) for a in twin._schema.arguments] == [
            str(a.type) for a in target._schema.arguments
        ]:
            return twin
    return target


@cache
def canonical_target(target: Any) -> str:
    """The overload's name; for an in-place one, its functional twin's."""
    twin = functional(target)
    return f"{twin.namespace}.{twin._schema.name.split('::')[1]}.{twin._overloadname}"
