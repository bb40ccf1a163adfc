"""Counts that stay multiples of what ranks divide them by, whatever chooses them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import irprune
from irprune.analysis.kinds import kinds
from irprune.cli import run
from irprune.errors import IrpruneError


class Attention(nn.Module):
    """Twelve heads over six groups of keys and values, and an MLP."""

    def __init__(self, heads: int = 12, groups: int = 6, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.groups = heads, groups
        self.q, self.k = nn.Linear(48, heads * width), nn.Linear(48, groups * width)
        self.v, self.o = nn.Linear(48, groups * width), nn.Linear(heads * width, 48)
        self.up, self.down = nn.Linear(48, 100), nn.Linear(100, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return x + self.down(self.up(x).relu())


X = torch.randn(2, 5, 48)


def counts(model: nn.Module, **options: Any) -> dict[str, list[int]]:
    """The counts that are left of each kind of width."""
    pruned = irprune.prune(model, (X,), **options)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    kept = pruned.graph.kept
    assert kept is not None
    out: dict[str, list[int]] = {}
    for axis, kind in kinds(pruned.graph).items():
        out.setdefault(kind, []).append(kept.size(axis))
    return out


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.5},
        {"ratio": 0.3},
        {"ratio": 0.9},
        {"ratio": 0.4, "scope": "global"},
        {"budget": {"params": 0.6}},
        {"budget": {"macs": 0.7}, "scope": "global"},
        {"ratio": 0.5, "round_to": 16},
        {"ratio": 0.5, "uniform": True},
    ],
    ids=str,
)
def test_heads_are_a_multiple(options: dict[str, Any]) -> None:
    found = counts(Attention(), divisible_by={"heads": 4}, **options)
    assert all(n % 4 == 0 and n > 0 for n in found["kv groups"]), found
    found = counts(Attention(12, 12), divisible_by={"heads": 4}, **options)
    assert all(n % 4 == 0 and n > 0 for n in found["heads"]), found


def test_several_kinds_each_have_their_own() -> None:
    found = counts(Attention(8, 8), ratio=0.4, divisible_by={"heads": 2, "MLP width": 32})
    assert found["heads"] == [4] and found["MLP width"] == [64]


def test_without_it_heads_are_no_multiple() -> None:
    """What the option is for: the counts that others give."""
    assert counts(Attention(12, 12), ratio=0.5)["heads"] == [6]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"head": 4}, "no kind of width 'head'"),
        ({"heads": 0}, "'heads' is 0"),
        ({"heads": 1.5}, "'heads' is 1.5"),
        ({"experts' width": 4}, "the model has no experts' width"),
        ("heads=4", "it takes whole numbers by kind"),
    ],
)
def test_what_there_is_not_is_refused(told: Any, message: str) -> None:
    with pytest.raises(IrpruneError) as refused:
        irprune.prune(Attention(), (X,), divisible_by=told)
    assert message in str(refused.value)


def test_the_command_line_has_it(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 4))\n"
        "def example_inputs():\n    return torch.randn(2, 8)\n"
    )
    told = ["prune", f"{net}:net", "-o", str(tmp_path / "plan.json")]
    assert run([*told, "--divisible-by", "MLP width=8"]) == 0
    assert irprune.load is not None and "30 -> 16" not in capsys.readouterr().err
    model = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 4))
    made = irprune.apply_plan(
        copy.deepcopy(model), str(tmp_path / "plan.json"), (torch.randn(2, 8),)
    )
    assert made.module.get_submodule("0").out_features == 16
    assert run([*told, "--divisible-by", "heads"]) == 2
    assert "write heads=4" in capsys.readouterr().err
