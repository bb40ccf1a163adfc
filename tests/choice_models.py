"""Models whose widths meet in all ways: gates, concatenations, heads, groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    def __init__(self, hidden: int = 10) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class Gated(nn.Module):
    """A gated unit with separate (``fused=False``) or fused projections."""

    def __init__(self, fused: bool, hidden: int = 32) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            self.up = nn.Linear(6, 2 * hidden)
        else:
            self.gate, self.up = nn.Linear(6, hidden), nn.Linear(6, hidden)
        self.down = nn.Linear(hidden, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, -1) if self.fused else (self.gate(x), self.up(x))
        return self.down(F.silu(a) * b)


class Dense(nn.Module):
    """Every layer reads all before it: widths are sums of many leaves."""

    def __init__(self, growth: int = 6, layers: int = 7) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(growth * (k + 1), growth, 3, padding=1) for k in range(layers)
        )
        self.head = nn.Conv2d(growth * (layers + 1), 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.convs:
            x = torch.cat([x, F.relu(conv(x))], 1)
        return self.head(x)


class Attention(nn.Module):
    """Grouped-query attention: ``packed`` projects once, ``rotary`` multiplies all heads by one
    table, ``normed`` by one norm."""

    def __init__(
        self,
        heads: int = 4,
        kv: int = 4,
        head_dim: int = 8,
        width: int = 12,
        packed: bool = False,
        rotary: bool = False,
        normed: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.kv, self.head_dim, self.packed = heads, kv, head_dim, packed
        self.enter = nn.Linear(5, width)
        if packed:
            self.qkv = nn.Linear(width, 3 * heads * head_dim)
        else:
            self.q, self.k, self.v = (
                nn.Linear(width, heads * head_dim),
                nn.Linear(width, kv * head_dim),
                nn.Linear(width, kv * head_dim),
            )
        self.o = nn.Linear(heads * head_dim, width)
        self.leave = nn.Linear(width, 2)
        if rotary:
            self.register_buffer("table", torch.rand(4, head_dim))
        if normed:
            self.norm = nn.LayerNorm(head_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, s, _ = x.shape
        if self.packed:
            q, k, v = (
                self.qkv(x)
                .view(b, s, 3, self.heads, self.head_dim)
                .permute(2, 0, 3, 1, 4)
                .unbind(0)
            )
        else:
            split = ((self.q, self.heads), (self.k, self.kv), (self.v, self.kv))
            q, k, v = (
                project(x).view(b, s, n, self.head_dim).transpose(1, 2) for project, n in split
            )
        if hasattr(self, "table"):
            q, k = q * self.table, k * self.table
        if hasattr(self, "norm"):
            q, k = self.norm(q), self.norm(k)
        if self.kv != self.heads:
            wide = (b, self.kv, self.heads // self.kv, s, self.head_dim)
            k, v = (
                t[:, :, None].expand(wide).reshape(b, self.heads, s, self.head_dim) for t in (k, v)
            )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.leave(x + self.o(y.transpose(1, 2).reshape(b, s, -1)))


class Grouped(nn.Module):
    def __init__(self, groups: int = 4, inner: int = 6) -> None:
        super().__init__()
        wide = groups * inner
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, wide, 1),
            nn.Conv2d(wide, wide, 3, groups=groups),
            nn.Conv2d(wide, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


class GroupNormed(nn.Module):
    def __init__(self, groups: int = 4, inner: int = 6) -> None:
        super().__init__()
        wide = groups * inner
        self.conv1, self.norm, self.conv2 = (
            nn.Conv2d(3, wide, 1),
            nn.GroupNorm(groups, wide),
            nn.Conv2d(wide, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.norm(self.conv1(x))))


class Multiplied(nn.Module):
    """A depthwise convolution that makes two channels of each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.depth, self.conv2 = (
            nn.Conv2d(3, 10, 1),
            nn.Conv2d(10, 20, 3, groups=10),
            nn.Conv2d(20, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.depth(F.relu(self.conv1(x)))))


IMAGE, TOKENS, VECTOR = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 5), torch.randn(3, 6)
