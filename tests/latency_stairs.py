"""A machine whose times are stairs, and a small net for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from irprune import api
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.latency.operators import Operator
from irprune.latency.predict import Predictor
from irprune.latency.table import Table
from irprune.passes.score import Score

__all__ = [
    "DENSE",
    "IMAGE",
    "STAIRS",
    "WHOLE",
    "Net",
    "counts",
    "left",
    "scored",
    "stairs",
    "table",
    "up",
]

STAIRS = {"conv": 16, "matrix": 1}
DENSE = Operator("conv", (1, 1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)))
WHOLE = Operator("matrix", (1, 10, 1))


def up(n: int, step: int = 16) -> int:
    return -(-n // step) * step


def stairs(operator: Operator, a: int, b: int) -> float:
    """A machine that has steps of 16 channels in convolutions and none in products; one that is no
    multiple costs a fifth more."""
    if operator.kind == "matrix":
        batch, rows, _ = operator.fixed
        return 1e-9 * batch * rows * a * b
    batch, groups, image, kernel, *_ = operator.fixed
    work = image[0] * image[1] * kernel[0] * kernel[1] * groups * batch
    if operator.kind == "depthwise":
        return 1e-9 * work * up(a) * b
    return 1e-9 * work * up(a) * up(b) * (1.2 if b % 16 else 1.0)


def table(**more: Any) -> Table:
    return Table(stairs, **more)


class Net(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, width, 1),
        )
        self.head = nn.Sequential(nn.Linear(width, 200), nn.ReLU(), nn.Linear(200, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.block(x)).mean((2, 3)))


IMAGE = torch.randn(1, 3, 8, 8)


def scored(model: nn.Module, *args: Tensor) -> Graph:
    graph = api.analyse(api.capture(model, args or (IMAGE,)))
    Score().run(graph)
    return graph


def counts(graph: Graph) -> dict[str, int]:
    assert graph.kept is not None
    return {g.name: int(graph.kept.size(g.axis)) for g in groups_of(graph) if not g.frozen}  # type: ignore[arg-type]


def left(graph: Graph, times: Table | Predictor) -> float:
    predictor = times if isinstance(times, Predictor) else Predictor(graph, times)
    assert graph.kept is not None
    return predictor.at({a: k.shape[-1] for a, k in graph.kept.choice.items()}) / predictor.at({})
