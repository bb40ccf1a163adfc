"""Prune in steps on several ranks, with an epoch of training on the original's outputs after each;
the optimizer of each step goes on from that of the step before.

torchrun --standalone --nproc-per-node 2 models/recipes/ddp.py
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from common import BATCH, dense, epoch, line
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import irprune
from irprune.demo.digits import Part


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
        optimizer = irprune.step_optimizer(pruned, lambda p: torch.optim.AdamW(p, 2e-3))
        ddp = DistributedDataParallel(pruned.module)  # anew in each step

        def loss(images: Tensor, labels: Tensor, student: nn.Module = ddp) -> Tensor:
            given = student(images)
            with torch.no_grad():
                wanted = model(images).softmax(-1)
            return F.cross_entropy(given, wanted) + 0.5 * F.cross_entropy(given, labels)

        torch.manual_seed(rank)
        epoch(ddp, own, optimizer, loss)
        if rank == 0:
            line(pruned.report.notes[-1], pruned.module, data)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
