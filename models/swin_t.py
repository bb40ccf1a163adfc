"""Swin-T: windows cut by view and permute, cyclic shifts by roll, a bias table read through an
index buffer.

Heads couple the fused qkv, the bias table's columns and the projection; patch merging concatenates
four strided slices. Liu et al. 2021 (arXiv:2103.14030), without stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim

from models import Case, Inputs
from models._weights import normal, randomize
from models.vit_b16 import Mlp


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] to [B * windows, window * window, C]."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window * window, c)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of ``to_windows``."""
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


def shift_mask(size: int, window: int, shift: int) -> Tensor:
    """[windows, N, N]: keeps pixels that the cyclic shift brought together from attending to each
    other."""
    region = torch.zeros(1, size, size, 1)
    spans = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for index, (rows, columns) in enumerate((r, c) for r in spans for c in spans):
        region[:, rows, columns] = index
    flat = to_windows(region, window).squeeze(-1)
    apart = flat.unsqueeze(1) != flat.unsqueeze(2)
    return torch.zeros(apart.shape).masked_fill(apart, -100.0)


class WindowAttention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.relative_position_bias_table = normal((2 * window - 1) ** 2, heads, std=0.5)
        grid = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        ).flatten(1)
        offset = (grid[:, :, None] - grid[:, None, :]) + window - 1
        self.register_buffer(
            "relative_position_index", offset[0] * (2 * window - 1) + offset[1], persistent=False
        )
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(b, n, 3, self.heads, c // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        attention = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(
            n, n, -1
        )
        attention = attention + bias.permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            attention = attention.view(-1, windows, self.heads, n, n) + mask.unsqueeze(1).unsqueeze(
                0
            )
            attention = attention.view(-1, self.heads, n, n)
        y = attention.softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    mask: Tensor | None

    def __init__(self, dim: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.window = min(window, size)
        self.shift = shift if size > window else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, self.window, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        mask = shift_mask(size, self.window, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self.attn(to_windows(y, self.window), self.mask)
        y = from_windows(y, self.window, height, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    def __init__(
        self,
        image: int,
        patch: int,
        window: int,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        classes: int,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.patch_norm = nn.LayerNorm(dim)
        size = image // patch
        layers: list[nn.Module] = []
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage > 0:
                layers.append(PatchMerging(dim))
                dim, size = 2 * dim, size // 2
            layers.extend(
                Block(dim, count, size, window, window // 2 * (i % 2)) for i in range(depth)
            )
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_norm(self.patch_embed(x).permute(0, 2, 3, 1))
        x = self.norm(self.layers(x))
        return self.head(x.mean((1, 2)))


def build(
    small: bool = False,
    image: int = 224,
    patch: int = 4,
    window: int = 7,
    dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    classes: int = 1000,
) -> nn.Module:
    if small:
        image, patch, window, dim, depths, heads, classes = 32, 2, 4, 16, (2, 2), (2, 4), 10
    return randomize(Swin(image, patch, window, dim, depths, heads, classes))


def example_inputs(small: bool = False) -> Inputs:
    size = 32 if small else 224
    return (torch.randn(2, 3, size, size),), {}


CASE = Case(
    "swin_t",
    ("transformer", "large", "layer_norm", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.269,
)
