"""Faults that hide where nothing of them reaches the outputs: each is planted in the cut, and the
proof sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune.errors import CheckFailed
from irprune.ir.axis import Axes
from irprune.ir.graph import Node, Value
from irprune.ops import registry
from irprune.passes import slice as slicing
from irprune.testing.mutants import see, subjects, systematic
from irprune.validate import random_weights_proof


class Net(nn.Module):
    """``how`` puts a branch of three layers beside what goes on."""

    def __init__(self, how: Callable[[Net, Tensor], Tensor], **held: Tensor) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(6, 16), nn.Linear(16, 12)
        self.branch = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)
        for name, value in held.items():
            self.register_parameter(name, nn.Parameter(value))
        self.how = how

    def hidden(self, x: Tensor) -> Tensor:
        made: Tensor = self.branch(F.relu(self.inner(F.relu(self.first(x)))))
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def zero_norm(net: Net, x: Tensor) -> Tensor:
    return x + net.norm(net.hidden(x))


def boxes(net: Net, x: Tensor) -> Tensor:
    return torch.cat([x * 640, net.hidden(x) * 1e-3], 1)


def scale(net: Net, x: Tensor) -> Tensor:
    return x + net.gamma * net.hidden(x)


def residual(net: Net, x: Tensor) -> Tensor:
    return x + 1e-5 * net.hidden(x)


def saturated(net: Net, x: Tensor) -> Tensor:
    return F.softmax(net.hidden(x) + net.offset, 1) * x


def rare(net: Net, x: Tensor) -> Tensor:
    return torch.where(x > 2.5, net.hidden(x), x)


def dead(net: Net, x: Tensor) -> Tensor:
    return x + (net.hidden(x) + net.offset).clamp(0, 1)


def gated(net: Net, x: Tensor) -> Tensor:
    return x + torch.tanh(net.gate) * net.hidden(x)


NETS: dict[str, Callable[[], Net]] = {
    "zero-initialised branch": lambda: zeroed(Net(zero_norm)),
    "boxes beside scores": lambda: Net(boxes),
    "layer scale of 1e-6": lambda: Net(scale, gamma=torch.full((6,), 1e-6)),
    "residual of 1e-5": lambda: Net(residual),
    "saturated softmax": lambda: Net(saturated, offset=torch.tensor([99.0, 0, 0, 0, 0, 0])),
    "rare where": lambda: Net(rare),
    "dead clamp": lambda: Net(dead, offset=torch.full((6,), 99.0)),
    "closed gate": lambda: Net(gated, gate=torch.zeros(())),
}


def zeroed(net: Net) -> Net:
    nn.init.zeros_(net.norm.weight)
    return net


@pytest.mark.parametrize("kind", NETS)
def test_a_wrong_branch_is_seen_whatever_hides_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = NETS[kind]().eval(), torch.randn(8, 6)
    proof = irprune.prune(model, (x,)).report.proof
    assert proof is not None and proof.second_pass is not None
    assert proof.passed and proof.second_pass.judged == 1
    real = slicing.kept_indices

    def wrong(value: Value, kept: Any) -> list[Any]:
        found = real(value, kept)
        if value.name == "branch.weight":
            assert found[1] is not None
            dropped = np.setdiff1d(np.arange(12), found[1])
            found[1] = np.sort(np.append(found[1][1:], dropped[:1]))
        return found

    monkeypatch.setattr(slicing, "kept_indices", wrong)
    with pytest.raises(CheckFailed, match="the proof fails: FAILED"):
        irprune.prune(model, (x,))


def test_a_mean_that_is_not_tied_to_its_channels_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The axes are wrong here, so that slicing and the oracle read the same wrong ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))
    model[1].running_mean.normal_().mul_(1e-5)
    x = torch.randn(2, 3, 12, 12)
    entry = registry.load_table()["batch_norm"]

    def untied(axes: Axes, node: Node) -> None:
        mean = node.inputs[3]
        node.inputs[3] = None
        entry.rule(axes, node)
        node.inputs[3] = mean
        assert mean is not None
        mean.axes = (axes.leaf(16),)

    wrong = replace(entry, rule=untied)
    monkeypatch.setitem(registry.TABLE, "batch_norm", wrong)
    with pytest.raises(CheckFailed, match="the proof fails: FAILED"):
        irprune.prune(model.eval(), (x,))


def test_what_zeros_do_not_stand_for_is_not_judged() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.mid = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 24)
            self.down = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.down(torch.sigmoid(self.mid(self.norm(self.up(x)))))
            return made

    torch.manual_seed(0)
    proof = irprune.prune(Normed(), (torch.randn(5, 6),)).report.proof
    assert proof is not None and proof.second_pass is not None and proof.passed
    second = proof.second_pass
    assert second.judge_error is not None and second.judge_error < 1e-12
    # Of 96 + 3 * 16 + 16 + 384 + 24 + 72 elements that are cut those of down and mid's bias alone
    assert 0 < second.judged < 0.5
    assert "judged" in str(proof)


class Classes(nn.Module):
    """Gives whole numbers alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.up, self.down, self.how = nn.Linear(6, 16), nn.Linear(16, 5), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.relu(self.up(x)))
        if self.how == "rounded":
            return y.round()
        return y[:, :0] if self.how == "empty" else y.detach() * float("nan")


@pytest.mark.parametrize(("how", "why"), [("rounded", "whole numbers"), ("empty", "empty")])
def test_outputs_that_cannot_differ_are_not_called_proven(how: str, why: str) -> None:
    torch.manual_seed(0)
    report = irprune.prune(Classes(how), (torch.randn(5, 6),)).report
    assert report.proof is not None and not report.proof.passed and report.proof.undecided
    assert f"proof       not proven: the outputs are {why}" in str(report)


def test_outputs_that_are_no_numbers_are_no_proof() -> None:
    torch.manual_seed(0)
    with pytest.raises(CheckFailed, match="not proven: the outputs are NaN"):
        irprune.prune(Classes("nan"), (torch.randn(5, 6),))


class Solved(nn.Module):
    """Divides by a matrix that zeros make singular."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 8)
        self.c = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.c(F.relu(self.b(x @ torch.linalg.inv(self.a))))
        return made


def test_where_zeroed_or_drawn_weights_fail_the_proof_goes_on() -> None:
    class Quantiles(Solved):
        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = torch.quantile(super().forward(x), self.a[0].sigmoid() * 0 + self.q, 1)
            return made

    torch.manual_seed(0)
    model = Quantiles()
    model.q = nn.Parameter(torch.full((6,), 0.5))
    for net in (Solved(), model):
        proof = irprune.prune(net, (torch.randn(4, 6),)).report.proof
        assert proof is not None and proof.passed and proof.second_pass is not None


class Tied(nn.Module):
    """One matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.again, self.down = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)
        self.again.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down(F.relu(self.up(x)) + F.relu(self.again(-x)))
        return made


def test_tied_weights_are_judged() -> None:
    torch.manual_seed(0)
    proof = irprune.prune(Tied().eval(), (torch.randn(8, 6),)).report.proof
    assert proof is not None and proof.second_pass is not None
    assert proof.passed and proof.second_pass.judged == 1 and not proof.notes


def test_a_small_model_is_proven_with_several_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest of six numbers stands past the third in few of the draws."""
    entry = registry.load_table()["min_dim"]
    model = next(iter(subjects(entry)))
    (fault,) = (m for m in systematic(entry) if "call 0 of freeze" in m.name)
    assert see(fault, model).by == "proof"
    monkeypatch.setattr(random_weights_proof, "_MORE", 0)
    assert see(fault, model).by == "nothing"
