"""Values of a pruned module put into another of the same shapes, each rank its part where that is
sharded."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from irprune.errors import IrpruneError

__all__ = ["fill"]

M = TypeVar("M", bound=nn.Module)


def fill(module: M, source: nn.Module) -> M:
    """Copy parameters and buffers of ``source`` into ``module``, by name; returns ``module``.

    Raises IrpruneError, before anything is copied, where names or shapes differ, or a tensor is on
    the meta device."""
    given = source.state_dict(keep_vars=True)
    held = module.state_dict(keep_vars=True)
    for name in sorted({*given, *held}):
        if name not in given or name not in held:
            whose = "the pruned model" if name not in given else "the module"
            raise IrpruneError(f"{whose} has no {name!r}", "fill", "give a module of its shapes")
        if held[name].shape != given[name].shape:
            raise IrpruneError(
                f"{name!r} has shape {list(held[name].shape)}, not {list(given[name].shape)}",
                "fill",
                "give a module of the pruned shapes",
            )
        if held[name].is_meta:
            raise IrpruneError(
                f"{name!r} is on the meta device", "fill", "call module.to_empty(device=...) first"
            )
    with torch.no_grad():
        for name, tensor in held.items():
            _copy(tensor, given[name].detach())
    return module


def _copy(into: torch.Tensor, value: torch.Tensor) -> None:
    if not isinstance(into, DTensor):
        into.copy_(value)
        return
    # Every rank has all of the value: nothing is sent
    part = distribute_tensor(
        value.to(into.device), into.device_mesh, into.placements, src_data_rank=None
    )
    into.to_local().copy_(part.to_local())
