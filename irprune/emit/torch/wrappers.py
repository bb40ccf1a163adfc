"""Whether an instance is held by a wrapper that a cut in place would leave behind."""

from __future__ import annotations

import gc
import sys

import torch
from torch import nn

from irprune.errors import IrpruneError

__all__ = ["check_unwrapped", "is_sharded"]


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this rank may hold a part. Where there is one, its
    module was imported by whoever made it, and takes long to import."""
    made = sys.modules.get("torch.distributed.tensor")
    return made is not None and isinstance(tensor, made.DTensor)


def check_unwrapped(model: nn.Module) -> None:
    """Raises IrpruneError for a module whose parameters are sharded, and for one that a live
    DistributedDataParallel holds: that goes on to reduce the gradients of the old parameters, and
    those of the new ones would differ from rank to rank in silence."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise IrpruneError(
                "the model is sharded",
                name,
                "use pruned.module, and shard that",
            )
    for held in gc.get_objects():
        if issubclass(type(held), nn.parallel.DistributedDataParallel) and any(
            part is model for part in held.modules()
        ):
            raise IrpruneError(
                "the model is held by DistributedDataParallel, which would reduce the gradients of "
                "its old parameters",
                type(model).__name__,
                "delete the wrapper, cut its module, wrap that anew and make a new optimizer",
            )
