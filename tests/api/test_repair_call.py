"""The call of a repair: what it is given, what it says, and when it is taken back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from repair_models import (
    captured,
    dropped,
    inputs,
    redundant,
    trained_statistics,
    weights_of,
)
from torch import nn

import irprune
from irprune import api
from irprune.api.repair import repair
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.passes import repairs as repairs_module
from irprune.passes.repairs import repairs
from irprune.passes.result import PassResult
from irprune.run.calibration import Calibration
from irprune.run.statistics import load_as, store


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_noise_warns_above_a_half_alone() -> None:
    x = torch.randn(64, 6)
    graph = captured(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).eval(), x[:2])
    for kept, warned in ((8, False), (6, True)):
        cut = dropped(graph, {"0.weight:0": range(kept)})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            done = repair(graph, cut)
        assert bool(caught) == warned and done.after < done.before
        assert any("no calibration data" in n for n in done.notes)


def test_a_repair_that_does_not_help_is_taken_back() -> None:
    """Statistics of nothing but one constant input are worse than those that were there."""
    graph = captured(trained_statistics(), inputs(2))
    cut = graph.copy()
    graph.kept = Selection({})
    before = weights_of(cut)
    done = repair(graph, cut, torch.ones(4, 2, 6, 6) * 5, "batch_norm")
    assert done.methods == () and any("taken back" in n for n in done.notes)
    assert all(torch.equal(before[n], t) for n, t in weights_of(cut).items())


def test_a_repair_in_a_file_of_its_own_is_called_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repairs_module, "_REPAIRS", dict(repairs()))

    @repairs_module.repair("doubled")
    @dataclass(frozen=True)
    class Doubled:
        """Multiply the last bias."""

        original: Graph
        calibration: Calibration
        times: float = 2.0

        def run(self, graph: Graph) -> PassResult:
            bias = graph.weights["2.bias"]
            store(bias, load_as(bias) * self.times)
            return PassResult(True, ("told",))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(16, 6)
    pruned = irprune.prune(model, (x,), repair="doubled", calibration=x)
    assert pruned.report.repair is not None and "told" in pruned.report.repair.notes
    with pytest.raises(ValueError, match="declared twice"):
        repairs_module.repair("doubled")(repairs_module.repair_of("bias"))
    with pytest.raises(IrpruneError, match=r"no repair is called 'tripled' .*doubled"):
        irprune.prune(model, (x,), repair="tripled", calibration=x)


def test_bad_use_is_one_clear_line() -> None:
    graph = captured(redundant(), torch.randn(2, 6))
    cut = dropped(graph, {"0.weight:0": range(4)})
    with pytest.raises(IrpruneError, match=r"no repair is called 'magic'.*least_squares"):
        repair(graph, cut, None, "magic")
    with pytest.raises(IrpruneError, match="no option 'lambda_'"):
        repair(graph, cut, torch.randn(8, 6), lambda_=3)
    with pytest.raises(IrpruneError, match="yield nothing"):
        repair(graph, cut, [])
    graph.kept = None
    with pytest.raises(IrpruneError, match="with its choice"):
        repair(graph, cut, torch.randn(8, 6))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repair": "magic"}, "no repair is called 'magic'"),
        ({"repair": ["bias", "none"]}, "no repair is called 'none'"),
        ({"importance": "taylr"}, "no criterion is called 'taylr'"),
        ({"importance": "wanda", "reduce": "sum"}, "has no option 'reduce'"),
    ],
)
def test_names_are_refused_before_a_model_is_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(IrpruneError, match=said):
        api.prune("no-such-file.onnx", calibration="no-such-folder", **options)
    if "repair" in options:
        with pytest.raises(IrpruneError, match=said):
            api.apply_plan("no-such-file.onnx", "no-such-plan.json", **options)


def test_nan_activations_are_named() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    graph = captured(model, torch.randn(2, 6))
    cut = dropped(graph, {"0.weight:0": range(4)})
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    with pytest.raises(IrpruneError, match="NaN or infinite"):
        repair(graph, cut, torch.randn(8, 6))


def test_prune_repairs_and_says_that_the_proof_came_before() -> None:
    net, x = trained_statistics(), inputs(128)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    pruned = api.prune(
        net, (x[:2],), ratio=0.5, importance="magnitude", repair="least_squares", calibration=x
    )
    plain = api.prune(net, (x[:2],), ratio=0.5, calibration=False)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    assert pruned.report.repair is not None and "the proof is of the model before repair" in str(
        pruned.report
    )
    fresh = inputs(64)
    with torch.no_grad():
        then, with_, without = net(fresh), pruned.module(fresh), plain.module(fresh)
    assert float((with_ - then).norm()) < 0.7 * float((without - then).norm())
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert pruned.plan == plain.plan


def test_calibration_data_choose_the_criterion_and_the_repair_where_nothing_is_said() -> None:
    net, x = trained_statistics(), inputs(128)
    # Read twice
    pruned = api.prune(
        net, (x[:2],), calibration=(x[i : i + 32] for i in range(0, 128, 32)), proof=False
    )
    said = api.prune(
        net,
        (x[:2],),
        importance="osscar",
        scope="local",
        repair="least_squares",
        calibration=x,
        proof=False,
    )
    assert pruned.plan == said.plan
    assert pruned.report.repair is not None and pruned.report.repair.methods == ("least_squares",)
    # Other chunks
    assert pruned.report.repair.after == pytest.approx(said.report.repair.after, rel=0.02)
    assert api.prune(net, (x[:2],), calibration=x, repair=False, proof=False).report.repair is None
    plain = api.prune(net, (x[:2],), calibration=False, proof=False)
    assert plain.report.repair is None and plain.options.importance == "magnitude"
    half: dict[str, Any] = {"budget": {"macs": 0.5}, "proof": False}
    assert (
        api.prune(net, (x[:2],), calibration=x, **half).plan
        == api.prune(
            net,
            (x[:2],),
            importance="osscar",
            scope="knapsack",
            normalise="measured",
            calibration=x,
            repair=False,
            **half,
        ).plan
    )
    usual = api.prune(net, (x[:2],), calibration=x, **half).plan
    for option, other in (("scope", "global"), ("normalise", "mean"), ("importance", "magnitude")):
        assert api.prune(net, (x[:2],), calibration=x, **half, **{option: other}).plan != usual
    without = api.prune(net, (x[:2],), calibration=False, **half)
    assert without.options.scope == pruned.options.scope == "local"
