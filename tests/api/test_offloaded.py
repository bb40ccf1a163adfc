"""Models that accelerate has offloaded are pruned where their weights lie, with the plan of the
whole model.

Needs accelerate: without it these tests are skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import irprune

accelerate = pytest.importorskip("accelerate")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
    ).eval()  # fmt: skip


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def offloaded(how: str, folder: Path) -> nn.Module:
    model = network()
    if how == "cpu":
        return accelerate.cpu_offload(model, torch.device("cpu"))
    if how == "disk":
        return accelerate.disk_offload(model, str(folder), torch.device("cpu"))
    places = {"0": "cpu", "1": "cpu", "2": "cpu", "3": "disk", "4": "cpu", "5": "disk"}
    return accelerate.dispatch_model(
        model, places, main_device=torch.device("cpu"), offload_dir=str(folder), force_hooks=True
    )


@pytest.mark.parametrize("how", ["cpu", "disk", "map"])
def test_an_offloaded_model_has_the_plan_of_the_whole(how: str, tmp_path: Path) -> None:
    whole = irprune.prune(network(), (X,), ratio=0.5)
    model = offloaded(how, tmp_path / "weights")
    expected = model(X)
    pruned = irprune.prune(model, (X,), ratio=0.5)
    assert pruned.plan.as_json() == whole.plan.as_json()
    assert pruned.report.proof.passed
    state = whole.module.state_dict()
    made = pruned.module.state_dict()
    assert made.keys() == state.keys()
    assert all(torch.equal(made[name], state[name]) for name in state)
    assert torch.equal(model(X), expected), "the model is not as it was"
    assert any(p.is_meta for p in model.parameters())


def test_what_is_tied_stays_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up = nn.Embedding(16, 8), nn.Linear(8, 24)
            self.down, self.head = nn.Linear(24, 8), nn.Linear(8, 16, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            return self.head(x + self.down(self.up(x).relu()))

    torch.manual_seed(0)
    model = accelerate.cpu_offload(Tied().eval(), torch.device("cpu"))
    pruned = irprune.prune(model, (torch.arange(4)[None],), ratio=0.5)
    assert pruned.module.head.weight is pruned.module.embed.weight
