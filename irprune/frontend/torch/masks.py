"""Modules that ``torch.nn.utils.prune`` has masked: their masks, and a twin that has them in its
weights for good."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import prune

from irprune.errors import IrpruneError

__all__ = ["masked_twin"]


def masked_twin(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A copy of ``model`` whose masked weights are plain parameters, and the masks by the name of
    the weight, 0 where an element is masked.

    Raises:
        IrpruneError: For a module without masks.
    """
    masks = {
        f"{path}.{name}" if path else name: getattr(module, f"{name}_mask").detach().clone()
        for path, module, name in _masked(model)
    }
    if not masks:
        raise IrpruneError(
            "no weight is masked",
            type(model).__name__,
            "mask some with torch.nn.utils.prune, such as ln_structured",
        )
    # What a mask makes at every call hangs on the graph of autograd, which has no copy
    made = [getattr(module, name) for _, module, name in _masked(model)]
    twin = copy.deepcopy(model, {id(t): t.detach().clone() for t in made})
    for _, module, name in list(_masked(twin)):
        prune.remove(module, name)  # type: ignore[no-untyped-call]
    return twin, masks


def _masked(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The masked weights: path of their module, the module, and their name in it."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                yield path, module, hook._tensor_name
