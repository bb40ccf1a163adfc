"""A one-stage detector: a CSP backbone that splits and concatenates, an FPN/PAN neck, a dict of
outputs.

The neck couples backbone stages through concatenation after nearest up-sampling; heads of three
levels are flattened and concatenated along positions, so that their channels must agree. Sizes are
those of YOLOv8-s."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import calibrate, randomize


class ConvNorm(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=0.001, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class Csp(nn.Module):
    """Half of the channels runs through a chain of bottlenecks; every step of the chain is kept."""

    def __init__(self, channels: int, out: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = out // 2
        self.shortcut = shortcut
        self.enter = ConvNorm(channels, out)
        self.chain = nn.ModuleList(
            nn.Sequential(ConvNorm(half, half, 3), ConvNorm(half, half, 3)) for _ in range(depth)
        )
        self.leave = ConvNorm((2 + depth) * half, out)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for step in self.chain:
            y = step(parts[-1])
            parts.append(parts[-1] + y if self.shortcut else y)
        return self.leave(torch.cat(parts, 1))


class PyramidPooling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = ConvNorm(channels, channels // 2)
        self.leave = ConvNorm(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.enter(x)]
        for _ in range(3):
            levels.append(F.max_pool2d(levels[-1], 5, 1, 2))
        return self.leave(torch.cat(levels, 1))


class Head(nn.Module):
    """Boxes as distances to the four sides, and one score per class."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.box = nn.Sequential(
            ConvNorm(channels, width, 3), ConvNorm(width, width, 3), nn.Conv2d(width, 4, 1)
        )
        self.score = nn.Sequential(
            ConvNorm(channels, width, 3), ConvNorm(width, width, 3), nn.Conv2d(width, classes, 1)
        )

    def forward(self, x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
        columns = torch.arange(x.shape[3], device=x.device, dtype=x.dtype)
        y, x_ = torch.meshgrid(rows, columns, indexing="ij")
        centre = torch.stack((x_, y), -1).view(1, -1, 2) + 0.5
        near, far = torch.split(F.softplus(self.box(x)).flatten(2).transpose(1, 2), 2, -1)
        boxes = torch.cat((centre - near, centre + far), -1) * stride
        return boxes, self.score(x).flatten(2).transpose(1, 2).sigmoid()


class Detector(nn.Module):
    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        w = [width << i for i in range(5)]  # widths at strides 2, 4, 8, 16, 32
        self.stem = nn.Sequential(
            ConvNorm(3, w[0], 3, 2), ConvNorm(w[0], w[1], 3, 2), Csp(w[1], w[1], depth, True)
        )
        self.stage3 = nn.Sequential(ConvNorm(w[1], w[2], 3, 2), Csp(w[2], w[2], 2 * depth, True))
        self.stage4 = nn.Sequential(ConvNorm(w[2], w[3], 3, 2), Csp(w[3], w[3], 2 * depth, True))
        self.stage5 = nn.Sequential(
            ConvNorm(w[3], w[4], 3, 2), Csp(w[4], w[4], depth, True), PyramidPooling(w[4])
        )
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.top4 = Csp(w[4] + w[3], w[3], depth, False)
        self.top3 = Csp(w[3] + w[2], w[2], depth, False)
        self.down4 = ConvNorm(w[2], w[2], 3, 2)
        self.bottom4 = Csp(w[2] + w[3], w[3], depth, False)
        self.down5 = ConvNorm(w[3], w[3], 3, 2)
        self.bottom5 = Csp(w[3] + w[4], w[4], depth, False)
        self.heads = nn.ModuleList(Head(c, max(w[2], 16), classes) for c in w[2:])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        c3 = self.stage3(self.stem(images))
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        p4 = self.top4(torch.cat((self.up(c5), c4), 1))
        p3 = self.top3(torch.cat((self.up(p4), c3), 1))
        n4 = self.bottom4(torch.cat((self.down4(p3), p4), 1))
        n5 = self.bottom5(torch.cat((self.down5(n4), c5), 1))
        pairs = [
            head(x, stride)
            for head, x, stride in zip(self.heads, (p3, n4, n5), (8, 16, 32), strict=True)
        ]
        boxes, scores = zip(*pairs, strict=True)
        return {"boxes": torch.cat(boxes, 1), "scores": torch.cat(scores, 1)}


def build(small: bool = False, width: int = 32, depth: int = 1, classes: int = 80) -> nn.Module:
    if small:
        width, classes = 4, 5
    return calibrate(randomize(Detector(width, depth, classes)), torch.randn(4, 3, 160, 160))


def example_inputs(small: bool = False) -> Inputs:
    size = 64 if small else 320
    return (torch.rand(2, 3, size, size),), {}


CASE = Case(
    "detector",
    ("cnn", "large", "batch_norm", "concat", "several_outputs", "dynamic"),
    build,
    example_inputs,
    dynamic={"images": {0: Dim("batch")}},
    left=0.254,
)
