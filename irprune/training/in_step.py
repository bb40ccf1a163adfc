"""The same module on every rank between two steps of a schedule, whatever it was wrapped in while
it was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from irprune.emit.backends.base import backend_of
from irprune.errors import IrpruneError
from irprune.ops.arrays import checksum
from irprune.run.ranks import Ranks

if TYPE_CHECKING:
    from irprune.api.pruned import Pruned

__all__ = ["bring_in_step", "is_shard", "whole_module"]


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether this rank holds a part of ``tensor`` alone."""
    return isinstance(tensor, DTensor)


def whole_module(pruned: Pruned) -> nn.Module:
    """``pruned.module`` with tensors that are whole on every rank: itself, or, where it was sharded
    since (``fully_shard``), another with its values. All ranks call it."""
    module = pruned.module
    tensors = module.state_dict()
    if not any(map(is_shard, tensors.values())):
        return module
    made = backend_of(pruned.graph).module(pruned.cut)
    whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}
    made.load_state_dict(whole)
    return made.train(module.training)


def bring_in_step(module: nn.Module, ranks: Ranks) -> None:
    """Give ``module`` on every rank the buffers of the first: running statistics are those of each
    rank's own batches, as DistributedDataParallel leaves them.

    Raises IrpruneError where parameters differ: the ranks were not trained together."""
    if ranks.size == 1:
        return
    mine = {n: checksum(p) for n, p in module.named_parameters()}
    first, *others = ranks.gather(mine)
    for rank, theirs in enumerate(others, 1):
        wrong = [n for n in first if theirs.get(n) != first[n]]
        if wrong:
            raise IrpruneError(
                f"the trained parameters of rank {rank} are not those of rank 0",
                wrong[0],
                "train pruned.module within DistributedDataParallel, made anew in each step, with "
                "an optimizer made anew",
            )
    held = dict(module.named_buffers())
    told = ranks.first({n: b.detach().cpu() for n, b in held.items()})
    with torch.no_grad():
        for name, buffer in held.items():
            buffer.copy_(told[name])
