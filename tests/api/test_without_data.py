"""A prune without data goes by what the model has stored, and says where that is nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import irprune
from irprune.errors import IrpruneError

UNKEPT = "accuracy is not kept"


def model(trained: bool) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16, momentum=None),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    if trained:
        made(torch.randn(64, 1, 8, 8).cumsum(-1))
    return made.eval()


CALL = (torch.randn(2, 1, 8, 8),)


def last(pruned: irprune.Pruned) -> str:
    return str(pruned.report).splitlines()[-1]


def test_batch_norms_that_were_trained_stand_in_for_data() -> None:
    pruned = irprune.prune(model(True), CALL, budget={"macs": 0.5})
    assert (pruned.options.importance, pruned.options.scope) == ("osscar", "knapsack")
    assert pruned.report.repair is not None and pruned.report.proof is not None
    assert "made from the statistics of 2 batch norms" in last(pruned)
    data = torch.randn(64, 1, 8, 8).cumsum(-1)
    plain = irprune.prune(model(True), CALL, budget={"macs": 0.5}, calibration=False)
    with torch.no_grad():
        wanted = model(True)(data)
        ours, theirs = ((p.module(data) - wanted).norm() for p in (pruned, plain))
    assert ours < theirs


def test_it_is_left_out_where_something_else_was_chosen() -> None:
    for said in ({"calibration": False}, {"importance": "magnitude"}):
        pruned = irprune.prune(model(True), CALL, ratio=0.5, **said)  # type: ignore[arg-type]
        assert pruned.options.importance == "magnitude" and pruned.report.repair is None
        assert UNKEPT in last(pruned)


def test_nothing_stored_is_said_last_where_much_is_cut() -> None:
    assert UNKEPT in last(irprune.prune(model(False), CALL, ratio=0.5))
    assert UNKEPT not in str(irprune.prune(model(False), CALL, ratio=0.0).report)
    assert UNKEPT not in str(
        irprune.prune(model(False), CALL, calibration=torch.randn(8, 1, 8, 8)).report
    )


def test_it_can_be_asked_for_without_batch_norms() -> None:
    plain = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    pruned = irprune.prune(plain, (torch.randn(2, 8),), calibration="synthetic")
    assert pruned.options.importance == "osscar" and "natural spectrum" in last(pruned)
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    with pytest.raises(IrpruneError, match="meta device"):
        irprune.prune(empty, (torch.randn(2, 8, device="meta"),), calibration="synthetic")


def test_steps_with_training_between_them_go_without() -> None:
    for pruned in irprune.schedule(model(True), CALL, ratio=0.5, steps=2):
        assert pruned.options.importance == "magnitude"
