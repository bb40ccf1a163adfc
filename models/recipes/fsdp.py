"""Prune in steps on several ranks, each of which holds a shard of every parameter while it is
trained (FSDP2); the optimizer of each step goes on from that of the step before.

torchrun --standalone --nproc-per-node 2 models/recipes/fsdp.py
"""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from common import BATCH, dense, epoch, line
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import irprune
from irprune.demo.digits import Part
from irprune.training.in_step import whole_module


def sharded(module: nn.Module) -> nn.Module:
    """``module`` with every layer's parameters divided among the ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            fully_shard(part, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def main(epochs: int = 20, steps: int = 4) -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model, data = dense(epochs)  # the same on every rank
    own = data._replace(train=Part(*(x[rank::size] for x in data.train)))
    if rank == 0:
        line("dense", model, data)
    cuts = irprune.schedule(
        model, (data.train.images[:2],), ratio=0.6, steps=steps, pace="cubic", dynamic_shapes=BATCH
    )
    for pruned in cuts:
        module = sharded(pruned.module)
        optimizer = irprune.step_optimizer(pruned, lambda p: torch.optim.AdamW(p, 2e-3), module)
        torch.manual_seed(rank)
        epoch(module, own, optimizer)
        whole = copy.deepcopy(whole_module(pruned))
        if rank == 0:
            line(pruned.report.notes[-1], whole, data)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
