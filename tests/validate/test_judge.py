"""The independent judge: the user's own forward, with what was dropped zeroed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune.errors import CheckFailed
from irprune.testing.random_nets import tried
from irprune.validate import judge


class Net(nn.Module):
    """Two layers; ``how(net, x)`` is what is computed."""

    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.norm = nn.LayerNorm(16)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def autocast(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net.b(F.leaky_relu(net.a(x), 0.25))
    made: Tensor = y.float()
    return made


def halves(net: Any, x: Tensor) -> Tensor:
    y = F.leaky_relu(net.a(x), 0.25).to(torch.float16)
    made: Tensor = net.b(y.to(net.b.weight.dtype))
    return made


def single(net: Any, x: Tensor) -> Tensor:
    made: Tensor = net.b(
        F.leaky_relu(
            net.a(x.double()).float() if x.dtype == torch.float64 else net.a(x.float()), 0.25
        )
    )
    return made


@pytest.mark.parametrize("how", [autocast, halves, single])
def test_types_that_forward_names_are_judged_in_float64(
    how: Callable[[Any, Tensor], Tensor],
) -> None:
    proof = irprune.prune(Net(how), (torch.randn(6, 8),)).report.proof
    assert proof is not None and proof.second_pass is not None
    assert proof.second_pass.judged == 1 and proof.second_pass.judge_tolerance < 1e-8
    assert proof.second_pass.judge_error is not None and proof.second_pass.judge_error < 1e-12


@pytest.mark.parametrize("how", [autocast, halves])
def test_a_fault_that_16_bits_would_hide_is_seen(
    how: Callable[[Any, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of the zeroed original is a little larger than it should be."""
    right = judge.zeroed

    def wrong(weight: Any, kept: Any, dtype: Any = None) -> Tensor:
        return right(weight, kept, dtype) * (1 + 1e-7 * bool(kept.choice))

    monkeypatch.setattr(judge, "zeroed", wrong)
    with pytest.raises(CheckFailed, match="zeroed by"):
        irprune.prune(Net(how), (torch.randn(6, 8),))


def constant(net: Any, x: Tensor) -> Tensor:
    slope = torch.tensor(0.3, dtype=torch.float32).exp()
    y = net.a(x).to(torch.float32)
    made: Tensor = net.b(torch.maximum(y, y * slope).to(net.b.weight.dtype))
    return made


def test_constants_of_a_narrow_type_are_no_fault() -> None:
    proof = irprune.prune(Net(constant), (torch.randn(6, 8),)).report.proof
    assert proof is not None and proof.passed and proof.second_pass is not None
    assert proof.second_pass.judged == 1 and proof.second_pass.judge_tolerance < 1e-5


def by_type(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).to(torch.bfloat16).to(x.dtype)
    if x.dtype == torch.float64:
        y = y * 2
    made: Tensor = net.b(F.relu(y))
    return made


def test_a_forward_that_goes_by_the_type_is_not_called_wrong() -> None:
    proof = irprune.prune(Net(by_type), (torch.randn(6, 8),)).report.proof
    assert proof is not None and proof.passed and proof.second_pass is not None
    assert proof.second_pass.judge_error is None
    assert any("16 bits" in note or "types of its tensors" in note for note in proof.notes)


def folded(net: Any, x: Tensor) -> Tensor:
    """The scale of a norm in the weights, and out again, as training with quantisation folds it."""
    scale = net.norm.weight / (1 + net.norm.bias**2).sqrt()
    y = F.linear(x, net.a.weight * scale[:, None]) / scale
    made: Tensor = net.b(F.relu((y + net.a.bias) * net.norm.weight))
    return made


def test_what_is_divided_by_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = irprune.prune(Net(folded), (torch.randn(6, 8),)).report.proof
    assert proof is not None and proof.second_pass is not None
    assert proof.second_pass.judged == 1 and proof.second_pass.judge_tolerance < 1e-8
    assert proof.second_pass.judge_error is not None and proof.second_pass.judge_error < 1e-12
    right = judge.zeroed
    monkeypatch.setattr(
        judge, "zeroed", lambda w, kept, dtype=None: right(w, kept, dtype) * (1 + 1e-7)
    )
    with pytest.raises(CheckFailed, match="zeroed by"):
        irprune.prune(Net(folded), (torch.randn(6, 8),))


def test_a_divisor_that_the_input_decides_is_not_left_whole() -> None:
    def shared(net: Any, x: Tensor) -> Tensor:
        made: Tensor = net.b(F.linear(x, net.a.weight) / F.linear(x, net.a.weight))
        return made

    proof = irprune.prune(Net(shared), (torch.randn(6, 8),)).report.proof
    assert proof is not None and proof.passed and proof.second_pass is not None
    assert proof.second_pass.judged == 0


def test_what_is_judged_is_tried_until_nothing_is_spoilt() -> None:
    """A maximum that is above 0 while the layer norm before it is silenced, and below it in the
    user's forward, where a norm stays whole: zeros change it there."""
    ended = tried(336, "float64")
    assert ended.how == "proven", ended.said


def badly_conditioned(net: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        raise TypeError("float32 alone")
    made: Tensor = (net.b(net.a(x)) * 1e5).sin()
    return made


def test_what_float32_rounds_away_is_not_called_judged() -> None:
    """Where forward runs in float32 alone and rounds by more than the tolerance, the judge says
    nothing; a larger fault is seen."""
    proof = irprune.prune(Net(badly_conditioned), (torch.randn(6, 8),)).report.proof
    assert proof is not None and proof.second_pass is not None
    assert proof.second_pass.judge_error is None and proof.second_pass.judged == 0
    assert any("rounds by as much as" in note for note in proof.notes)


class Several(nn.Module):
    """Outputs of which the first alone depends on what can be cut."""

    def __init__(self, classes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(8, 3)
        self.classes = classes

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.b(self.a(x).relu())
        return (y.argmax(-1) if self.classes else y), self.c(x), x * 2


@pytest.mark.parametrize("file", [False, True])
def test_outputs_that_nothing_cut_leads_to_are_counted_apart(file: bool, tmp_path: Any) -> None:
    def proof_of(net: nn.Module) -> Any:
        x = torch.randn(5, 8)
        if not file:
            return irprune.prune(net, (x,)).report.proof
        path = irprune.prune(net, (x,), ratio=0.0, proof=False).onnx(tmp_path / "m.onnx")
        return irprune.prune(str(path)).report.proof

    proof = proof_of(Several(classes=False))
    assert (proof.reached, proof.outputs) == (1, 3)
    assert "1 of 3 outputs depend on what was cut" in str(proof)
    whole = irprune.prune(Several(classes=False), (torch.randn(5, 8),), ratio=0.0).report.proof
    assert whole is not None and "outputs depend" not in str(whole)
    # Those that vary have nothing to do with the cut, and the one that has is whole numbers
    try:
        said = str(proof_of(Several(classes=True)))
    except CheckFailed as failed:
        said = str(failed)
    assert "not proven: the outputs are" in said
