"""What the recipes share: a trained digits net, an epoch of training with any loss, and one line
about a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irprune.demo.digits import Data, DigitNet, accuracy, jitter, load_data, train

__all__ = ["BATCH", "dense", "epoch", "line"]

BATCH = {"x": {0: torch.export.Dim("batch")}}  # dynamic_shapes of the digits net


def dense(epochs: int, seed: int = 0) -> tuple[nn.Module, Data]:
    """The net that is pruned, trained for ``epochs``, and its data."""
    torch.manual_seed(seed)
    model, data = DigitNet(16, 1), load_data(seed)
    train(model, data, epochs=epochs, seed=seed)
    return model.eval(), data


def epoch(
    model: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    after: Iterable[Callable[[], None]] = (),
) -> None:
    """One pass over the training images; ``loss(images, labels)`` is cross-entropy by default,
    ``after`` runs behind each step."""
    model.train()
    for index in torch.split(torch.randperm(len(data.train.labels)), 64):
        images, labels = jitter(data.train.images[index]), data.train.labels[index]
        value = F.cross_entropy(model(images), labels) if loss is None else loss(images, labels)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for step in after:
            step()
    model.eval()


def line(what: str, model: nn.Module, data: Data) -> float:
    """Print and return the test accuracy."""
    share, size = accuracy(model, data.test), sum(p.numel() for p in model.parameters())
    print(f"{what:40s} {100 * share:5.1f} %  {size:7d} parameters")
    return share
