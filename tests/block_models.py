"""Models with weights that have blocks of inputs or outputs: groups, experts, heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS, INNER = 4, 6
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class ResNeXt(nn.Module):
    """A bottleneck: 1x1, grouped 3x3, 1x1, around it a residual."""

    def __init__(self, groups: int = GROUPS, inner: int = INNER) -> None:
        super().__init__()
        wide = groups * inner
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.conv1, self.norm1 = nn.Conv2d(8, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv2, self.norm2 = (
            nn.Conv2d(wide, wide, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.conv3 = nn.Conv2d(wide, 8, 1)
        for norm in (self.norm1, self.norm2):  # an exporter stores equal arrays once
            for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(t, 0.5, 1.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.head(F.relu(x + self.conv3(y)))  # type: ignore[no-any-return]


class Plain(nn.Module):
    """A grouped layer between two others."""

    def __init__(self, enter: nn.Module, grouped: nn.Module, leave: nn.Module) -> None:
        super().__init__()
        self.enter, self.grouped, self.leave = enter, grouped, leave

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.grouped(F.relu(self.enter(x)))))  # type: ignore[no-any-return]


def transposed() -> nn.Module:
    return Plain(
        nn.Conv2d(3, 24, 1),
        nn.ConvTranspose2d(24, 16, 3, stride=2, groups=GROUPS),
        nn.Conv2d(16, 4, 1),
    )


def one_dimensional() -> nn.Module:
    return Plain(nn.Conv1d(3, 24, 1), nn.Conv1d(24, 48, 3, groups=GROUPS), nn.Conv1d(48, 4, 1))


def computed_weight() -> nn.Module:
    return Plain(
        nn.Conv2d(3, 24, 1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(24, 24, 3, groups=GROUPS)),
        nn.Conv2d(24, 4, 1),
    )


def regrouped() -> nn.Module:
    """Two groups are four in the layer before: outputs of that one are within both."""
    first = nn.Conv2d(24, 24, 1, groups=4)
    return Plain(
        nn.Conv2d(3, 24, 1),
        nn.Sequential(first, nn.ReLU(), nn.Conv2d(24, 32, 3, groups=2)),
        nn.Conv2d(32, 4, 1),
    )


class Shuffle(nn.Module):
    """The unit of ShuffleNet: channels of all groups are dealt out to all groups. Zhang et al. 2017
    (arXiv:1707.01083)."""

    def __init__(self, inner: int = 8) -> None:
        super().__init__()
        wide = GROUPS * inner
        self.stem, self.head = nn.Conv2d(3, wide, 1), nn.Conv2d(wide, 4, 1)
        self.conv1, self.norm = nn.Conv2d(wide, wide, 1, groups=GROUPS), nn.BatchNorm2d(wide)
        self.depth, self.conv2 = (
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.Conv2d(wide, wide, 1, groups=GROUPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv1(F.relu(self.stem(x)))))
        y = y.reshape(len(y), GROUPS, -1, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(F.relu(self.conv2(self.depth(y))))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """All experts as one product of matrices, weighted by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.leave = nn.Linear(3, 10), nn.Linear(10, 4), nn.Linear(10, 3)
        self.up, self.bias, self.down = (
            nn.Parameter(torch.randn(*s)) for s in ((4, 10, 8), (4, 1, 8), (4, 8, 10))
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        y = torch.bmm(F.relu(torch.bmm(h.expand(4, *h.shape), self.up) + self.bias), self.down)
        return self.leave(torch.einsum("ebd,be->bd", y, self.gate(h).softmax(-1)))  # type: ignore[no-any-return]


class Heads(nn.Module):
    """Heads and their size are dimensions of their own in every weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 10)
        self.into, self.out = (
            nn.Parameter(torch.randn(10, 4, 8)),
            nn.Parameter(torch.randn(4, 8, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(
            "bhk,hko->bo", torch.einsum("bd,dhk->bhk", self.enter(x), self.into).tanh(), self.out
        )


class Between(nn.Module):
    """Something done to [n, groups, channels, ...] between two grouped convolutions."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change
        self.stem, self.head = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 4, 1)
        self.first, self.second = (
            nn.Conv2d(24, 24, 1, groups=GROUPS),
            nn.Conv2d(24, 24, 1, groups=GROUPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(F.relu(self.stem(x))))
        y = self.change(y.reshape(len(y), GROUPS, -1, *y.shape[2:]))
        return self.head(F.relu(self.second(y.flatten(1, 2))))  # type: ignore[no-any-return]


class Pairs(nn.Module):
    """Every head meets every other: as scores, or side by side."""

    def __init__(self, side_by_side: bool) -> None:
        super().__init__()
        self.side_by_side = side_by_side
        self.enter, self.out = nn.Linear(3, 24), nn.Parameter(torch.randn(GROUPS, INNER, 3))

    def forward(self, x: Tensor) -> Tensor:
        q = self.enter(x).view(-1, GROUPS, INNER)
        if self.side_by_side:
            return torch.einsum("bghd,hdo->bo", (q[:, :, None] + q[:, None]).tanh(), self.out)
        return torch.einsum("bgh,hdo,bhd->bo", torch.einsum("bgd,bhd->bgh", q, q), self.out, q)


class Doubled(nn.Module):
    """The same weights under the same names in another graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        self.run = (model,)

    def forward(self, x: Tensor) -> Tensor:
        return self.run[0](x) * 2  # type: ignore[no-any-return]
