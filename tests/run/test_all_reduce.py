"""The time that ranks take to add up gradients, before and after."""

from __future__ import annotations

import json
from typing import Any

import torch
from ranks import on_ranks
from torch import nn

import irprune
from irprune.run import all_reduce
from irprune.run.ranks import together


def timed() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    report = irprune.prune(model, (torch.randn(2, 16),), ratio=0.5).report
    with together() as ranks:
        large = all_reduce.measured(ranks, (64 << 20, 4096))
    return {
        "own": report.all_reduce,
        "large": large,
        "plain": report.to_json(),
        "timed": json.loads(report.to_json(timings=True))["all_reduce"],
        "text": str(report),
    }


def test_the_times_are_those_of_the_first_rank_on_all() -> None:
    first, second = (rank.value for rank in on_ranks(2, timed))
    own = first["own"]
    assert own == second["own"] and own.before > 0 and own.after > 0
    assert (own.ranks, own.backend, own.device) == (2, "gloo", "cpu")
    assert first["large"].before > 3 * first["large"].after, "three buckets, and a small one"
    assert first["timed"]["before"] == own.before
    assert "on 2 ranks (gloo, cpu), less what backward overlaps" in first["text"]


def test_reports_are_the_same_without_them() -> None:
    (alone,) = on_ranks(1, timed)
    two = on_ranks(2, timed)[1].value
    assert alone.value["own"] is None and "all-reduce" not in alone.value["text"]
    assert alone.value["plain"] == two["plain"] and "all_reduce" not in two["plain"]
