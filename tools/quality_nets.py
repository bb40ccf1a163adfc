"""The three nets that ``tools/quality.py`` prunes: a residual CNN, inverted residuals and a vision
transformer, for 8 x 8 digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irprune.demo.digits import DigitNet

__all__ = ["NETS", "Attention", "Net"]


class Inverted(nn.Module):
    """Expand, depthwise, project; a shortcut where the shape stays (Sandler et al., CVPR 2018)."""

    def __init__(self, channels: int, out: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        inner = channels * expand
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.whole = channels == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.whole else y


class InvertedNet(nn.Module):
    """Images [batch, 1, 8, 8] to class scores [batch, 10]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()
        )
        self.blocks = nn.Sequential(
            Inverted(width, width, 1),
            Inverted(width, 2 * width, 2),
            Inverted(2 * width, 2 * width, 1),
            Inverted(2 * width, 3 * width, 1),
        )
        self.last = nn.Sequential(
            nn.Conv2d(3 * width, 6 * width, 1, bias=False), nn.BatchNorm2d(6 * width), nn.ReLU6()
        )
        self.head = nn.Linear(6 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        each = self.qkv.out_features // (3 * self.heads)
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, each).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, self.heads * each))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitViT(nn.Module):
    """Images [batch, 1, 8, 8] as 16 patches of 2 x 2 to class scores [batch, 10]."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.layers(x)).mean(1))


@dataclass(frozen=True)
class Net:
    """How a net is built and for how long it is trained."""

    build: Callable[[], nn.Module]
    epochs: int
    lr: float = 3e-3


NETS = {
    "residual CNN": Net(lambda: DigitNet(24, 1), 30),
    "inverted residuals": Net(InvertedNet, 40, 5e-3),
    "ViT": Net(DigitViT, 60, 2e-3),
}
