"""Train towards channels that can go, with each of three penalties from the groups, then drop half of them.

    python models/recipes/sparse_training.py
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from common import BATCH, dense, epoch, line
from torch import Tensor
from torch.nn import functional as F

import irprune
from irprune.sparsity import BatchNormScale, GroupLasso, Growing


def main(epochs: int = 20, sparse: int = 5) -> dict[str, float]:
    model, data = dense(epochs)
    line("dense", model, data)
    example = (data.train.images[:2],)
    line("half dropped, no penalty", irprune.prune(model, example, ratio=0.5, dynamic_shapes=BATCH).module, data)
    shares = {}
    kinds: Any = ((GroupLasso, 1e-4, "magnitude"), (Growing, 1e-3, "magnitude"), (BatchNormScale, 1e-3, "batch_norm_scale"))
    for kind, strength, importance in kinds:
        own: Any = copy.deepcopy(model)
        penalty = kind(irprune.capture(own, example), own, strength)
        optimizer = torch.optim.SGD(own.parameters(), 0.02, momentum=0.9)

        def loss(images: Tensor, labels: Tensor, own: Any = own, penalty: Any = penalty) -> Tensor:
            return F.cross_entropy(own(images), labels) + penalty()

        for _ in range(sparse):
            epoch(own, data, optimizer, loss, [penalty.grow] if isinstance(penalty, Growing) else [])
        pruned = irprune.prune(own, example, ratio=0.5, importance=importance, dynamic_shapes=BATCH)
        shares[kind.__name__] = line(f"half dropped after {kind.__name__}", pruned.module, data)
    return shares


if __name__ == "__main__":
    main()
