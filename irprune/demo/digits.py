"""A small residual CNN and the data to train it: handwritten digits, 8 x 8 pixels, 10 classes.

What ``irprune demo`` trains: over 98.5 % of the test set in half a minute on one thread. The images
are those that scikit-learn brings along (Alpaydin and Kaynak 1998, UCI)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irprune.errors import IrpruneError

__all__ = ["Block", "Data", "DigitNet", "Part", "accuracy", "jitter", "load_data", "train"]


class Part(NamedTuple):
    """Images [count, 1, 8, 8] of mean 0 and variance 1 over the training set, and their labels
    [count]."""

    images: Tensor
    labels: Tensor


class Data(NamedTuple):
    """Three disjoint parts."""

    train: Part
    val: Part
    test: Part


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = (
            nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class DigitNet(nn.Module):
    """Images [batch, 1, 8, 8] to class scores [batch, 10]."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks = [Block(width, width, 1) for _ in range(depth)]
        blocks.append(Block(width, 2 * width, 2))
        blocks.extend(Block(2 * width, 2 * width, 1) for _ in range(depth - 1))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def load_data(seed: int = 0) -> Data:
    """1077 training, 360 validation and 360 test images; every class keeps its share in each
    part."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
        from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
    except ImportError as missing:
        raise IrpruneError(
            "scikit-learn is not installed: the digits are in it", "", "pip install 'irprune[demo]'"
        ) from missing

    pixels, labels = load_digits(return_X_y=True)
    rest, test, rest_y, test_y = train_test_split(
        pixels, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    train, val, train_y, val_y = train_test_split(
        rest, rest_y, test_size=0.25, stratify=rest_y, random_state=seed
    )

    def part(x: object, y: object) -> Part:
        images = torch.as_tensor(x, dtype=torch.float32).view(-1, 1, 8, 8)
        return Part(
            (images - float(train.mean())) / float(train.std()),
            torch.as_tensor(y, dtype=torch.long),
        )

    return Data(part(train, train_y), part(val, val_y), part(test, test_y))


def jitter(images: Tensor) -> Tensor:
    """Turn, scale and shift every image a little, at random."""
    count = images.shape[0]
    angle, size = 0.25 * (torch.rand(count) - 0.5), 1 + 0.2 * (torch.rand(count) - 0.5)
    shift = 0.4 * (torch.rand(count, 2) - 0.5)
    cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
    matrix = torch.stack((cos, -sin, shift[:, 0], sin, cos, shift[:, 1]), 1).view(count, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    background = images.amin()
    return F.grid_sample(images - background, grid, align_corners=False) + background


def train(
    model: nn.Module,
    data: Data | None = None,
    epochs: int = 40,
    seed: int = 0,
    lr: float = 3e-3,
    progress: Callable[[int, float, float], None] | None = None,
) -> float:
    """Train ``model`` in place and return its test accuracy; ``progress`` gets epoch, loss,
    validation accuracy."""
    data = load_data(seed) if data is None else data
    images, labels = data.train
    batch = 64
    steps = (len(labels) + batch - 1) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            model.train()
            total = 0.0
            for index in torch.split(torch.randperm(len(labels)), batch):
                loss = F.cross_entropy(
                    model(jitter(images[index])), labels[index], label_smoothing=0.05
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.item() * len(index)
            if progress is not None:
                progress(epoch, total / len(labels), accuracy(model, data.val))
    return accuracy(model, data.test)


def accuracy(model: nn.Module, part: Part) -> float:
    """The share of ``part`` that ``model`` gets right, in evaluation mode; the mode is put back."""
    training = model.training
    model.eval()
    with torch.no_grad():
        right = (model(part.images).argmax(1) == part.labels).float().mean().item()
    model.train(training)
    return float(right)
