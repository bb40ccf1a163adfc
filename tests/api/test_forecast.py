"""What calibrated pruning will cost is said before it starts, to who listens."""

from __future__ import annotations

import re

import torch
from torch import nn

import irprune
from irprune.api.forecast import duration


def test_the_cost_is_said_before_groups_are_measured() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x, said = torch.randn(96, 6), list[str]()
    call = {"args": (x[:2],), "calibration": x, "proof": False, "progress": said.append}
    irprune.prune(model.eval(), budget={"macs": 0.5}, **call)
    assert re.fullmatch(r"about 1 s: 2 groups ranked on 96 samples", said[0])
    assert said[1:] == ["repairing by least_squares"]
    said.clear()
    irprune.prune(model, ratio=0.5, importance="magnitude", repair=False, **call)
    assert said == []  # nothing is measured


def test_durations_are_in_the_unit_that_one_reads() -> None:
    assert [duration(s) for s in (0.2, 40, 119, 150, 7300)] == [
        "1 s",
        "40 s",
        "119 s",
        "2 min",
        "2.0 h",
    ]
