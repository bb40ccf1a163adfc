"""Train towards channels that can go, with each of three penalties from the groups, then drop half
of them and train no more.

    python models/recipes/sparse_training.py

Each penalty is shown beside the same training without it, ranked by the same criterion over all
groups and cut to the same multiply-accumulates."""

from __future__ import annotations

import copy
from typing import Any

import torch
from common import BATCH, dense, epoch, line
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune.training.sparsity import BatchNormScale, GroupLasso, Growing

KINDS: Any = (
    (Growing, 2e-3, "magnitude"),
    (GroupLasso, 1.5e-3, "magnitude"),
    (BatchNormScale, 2e-2, "batch_norm_scale"),
)
LEFT = {"macs": 0.5}


def main(epochs: int = 20, sparse: int = 24) -> dict[str, float]:
    model, data = dense(epochs)
    line("dense", model, data)
    example = (data.train.images[:2],)

    def trained(kind: Any = None, strength: float = 0.0) -> nn.Module:
        torch.manual_seed(0)
        own: Any = copy.deepcopy(model)
        penalty = kind(irprune.capture(own, example), own, strength) if kind is not None else None
        optimizer = torch.optim.SGD(own.parameters(), 0.02, momentum=0.9)
        slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, sparse)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            value = F.cross_entropy(own(images), labels)
            return value if penalty is None else value + penalty()

        for _ in range(sparse):
            epoch(
                own, data, optimizer, loss, [penalty.grow] if isinstance(penalty, Growing) else []
            )
            slower.step()
        return own

    def half(what: str, own: nn.Module, importance: str) -> float:
        pruned = irprune.prune(
            own, example, budget=LEFT, importance=importance, scope="global", dynamic_shapes=BATCH
        )
        return line(what, pruned.module, data)

    plain = trained()
    shares = {
        f"none, {name}": half(f"no penalty, by {name}", plain, name)
        for name in dict.fromkeys(name for *_, name in KINDS)
    }
    for kind, strength, name in KINDS:
        shares[kind.__name__] = half(f"{kind.__name__}, by {name}", trained(kind, strength), name)
    return shares


if __name__ == "__main__":
    main()
