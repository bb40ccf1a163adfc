"""Every case of models/, small: pruned with no hint, proven, smaller by what the ratio says,
trainable, the same twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import irprune
import models
from irprune.base.tolerance import FLOAT32, FLOAT64
from irprune.errors import IrpruneError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from bench_case import digest, implied, in_float64, trains

PRUNED = [name for name in models.names() if models.get(name).refused is None]
REFUSED = [name for name in models.names() if models.get(name).refused is not None]
OTHER_RATIOS = ["resnet50", "shufflenetv2", "vit_b16", "llama", "lstm_tagger", "unet"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def built(name: str) -> tuple[torch.nn.Module, Any, Any]:
    case = models.get(name)
    torch.manual_seed(0)
    return case.build(small=True), *case.example_inputs(small=True)


def check(name: str, ratio: float, tmp_path: Path) -> irprune.Pruned:
    model, args, kwargs = built(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    pruned = irprune.prune(model, args, kwargs, ratio=ratio, calibration=False)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    proof = pruned.report.proof
    assert proof is not None
    assert not proof.vacuous
    error = proof.float32_error if proof.float32_error is not None else proof.max_error
    assert error <= FLOAT32, proof
    assert in_float64(pruned) <= FLOAT64
    fallen = pruned.report.params.before - pruned.report.params.after
    assert fallen >= 0.8 * implied(pruned.graph, ratio) > 0
    again = irprune.prune(model, args, kwargs, ratio=ratio, calibration=False)
    assert digest(pruned, tmp_path) == digest(again, tmp_path)
    assert trains(pruned.module, args, kwargs)
    return pruned


@pytest.mark.parametrize("name", PRUNED)
def test_case_at_half(name: str, tmp_path: Path) -> None:
    pruned = check(name, 0.5, tmp_path)
    left, known = pruned.report.params.left, models.get(name).left
    assert known is not None, f"models/{name}.py: say left={left:.3f} in CASE"
    assert left <= known + 0.005, "less is within reach than was"


@pytest.mark.parametrize("ratio", [0.3, 0.7])
@pytest.mark.parametrize("name", OTHER_RATIOS)
def test_case_at_other_ratios(name: str, ratio: float, tmp_path: Path) -> None:
    check(name, ratio, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_case_says_where(name: str) -> None:
    model, args, kwargs = built(name)
    with pytest.raises(IrpruneError, match=rf"{name}\.py:\d+") as refused:
        irprune.prune(model, args, kwargs, calibration=False)
    assert "\n" not in str(refused.value)
    assert refused.value.hint


def test_a_wrong_slice_does_not_pass() -> None:
    """The proof is worth something: one wrong index anywhere fails it."""
    from irprune.emit.torch.module import emit_module
    from irprune.passes.slice import Slice
    from irprune.validate.proof import Remake, prove

    model, args, kwargs = built("resnet50")
    pruned = irprune.prune(model, args, kwargs, calibration=False)
    graph = pruned.graph
    cut = graph.copy()
    Slice().run(cut)
    name = "layer1.0.conv2.weight"
    right = cut.weights[name].load()
    cut.weights[name].load = lambda: right.roll(1, 1)
    wrong = prove(graph, emit_module(cut), Remake(lambda g: cut, emit_module))
    assert not wrong.passed
    assert 1e-3 < wrong.max_error < float("inf")  # different numbers, not a crash
