"""A model whose weights accelerate keeps on another device or on the disk (``device_map``,
``cpu_offload``, ``disk_offload``) as a plain one: a twin without hooks, on the CPU, whose offloaded
parameters are read from where they lie when an operator uses them. The model is left as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from irprune.run.stored_tensor import StoredTensor, as_parameter_like

__all__ = ["is_offloaded", "unhooked_twin"]

_ATTRIBUTES = ("_hf_hook", "_old_forward", "forward", "hf_device_map")


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate has put hooks around modules of ``model``."""
    return any("_hf_hook" in vars(m) for m in model.modules())


def unhooked_twin(model: nn.Module) -> nn.Module:
    """A module of the original class without hooks, on the CPU. What is on the meta device, which
    its hook would fill, reads its values when it is used."""
    memo: dict[int, Any] = {}
    tied: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
    for module in model.modules():
        own = vars(module)
        memo |= {id(own[name]): None for name in _ATTRIBUTES if name in own}
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = _plain(tensor, _values(module, name), tied)
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        for name in _ATTRIBUTES:
            vars(module).pop(name, None)
    return made


def _values(module: nn.Module, name: str) -> Callable[[], torch.Tensor] | None:
    """What gives the values of an offloaded tensor of ``module``; None where no hook has them."""
    for hook in _hooks(vars(module).get("_hf_hook")):
        held: Mapping[str, torch.Tensor] | None = getattr(hook, "weights_map", None)
        if held is not None and getattr(hook, "offload", False):
            return partial(held.__getitem__, name)
    return None


def _hooks(hook: Any) -> Iterator[Any]:
    """The hooks of one that chains several, or the one."""
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def _plain(
    tensor: torch.Tensor,
    values: Callable[[], torch.Tensor] | None,
    tied: dict[tuple[int, tuple[int, ...]], torch.Tensor],
) -> torch.Tensor:
    """``tensor`` on the CPU; where it is on the meta device, a handle to its ``values``. Those that
    lie in one place of memory share a handle."""
    if not tensor.is_meta or values is None:
        return as_parameter_like(tensor, tensor.detach().cpu())
    first, again = values(), values()
    handle = as_parameter_like(
        tensor, StoredTensor(partial(_on_cpu, values), tensor.shape, first.dtype)
    )
    if first.data_ptr() != again.data_ptr():  # read from a file
        return handle
    return tied.setdefault((first.data_ptr(), tuple(tensor.shape)), handle)


def _on_cpu(values: Callable[[], torch.Tensor]) -> torch.Tensor:
    return values().detach().cpu()
