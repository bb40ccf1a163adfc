"""Train a pruned net on its original: outputs, and the results of convolutions at the channels that
are left.

python models/recipes/distillation.py
"""

from __future__ import annotations

import torch
from common import BATCH, dense, epoch, line
from torch import Tensor
from torch.nn import functional as F

import irprune
from irprune.training.distill import Distillation


def main(epochs: int = 20, tune: int = 3) -> float:
    model, data = dense(epochs)
    line("dense", model, data)
    pruned = irprune.prune(model, (data.train.images[:2],), ratio=0.5, dynamic_shapes=BATCH)
    line("half of every width", pruned.module, data)
    optimizer = torch.optim.AdamW(pruned.module.parameters(), 2e-3)
    with Distillation(
        model, pruned, layers=["blocks.0.conv2", "blocks.1.conv2"], weight=0.1
    ) as from_teacher:

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return from_teacher(images) + 0.5 * F.cross_entropy(pruned.module(images), labels)

        for _ in range(tune):
            epoch(pruned.module, data, optimizer, loss)
    return line("trained on the original", pruned.module, data)


if __name__ == "__main__":
    main()
