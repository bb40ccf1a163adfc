"""Pruning to a metric: the smallest cut that keeps it, few evaluations, trials that are kept, and
the user's function with the model as it asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import irprune
from irprune.api.judges import Agreement

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5)
    ).eval()


def width(model: nn.Module) -> float:
    """A metric that falls with the first width: 1 for the original."""
    return sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in net().parameters())


def exported(folder: Path) -> Path:
    irprune.prune(net(), (X[:2],), ratio=0.0).onnx(folder / "m.onnx")
    return folder / "m.onnx"


def test_the_smallest_model_that_keeps_the_metric_is_found_in_a_few_trials() -> None:
    seen: list[float] = []

    def score(model: nn.Module) -> float:
        seen.append(width(model))
        return seen[-1]

    pruned = irprune.prune(
        net(), (X[:2],), evaluate=score, max_drop=0.3, minimise="params", points=6
    )
    trials = pruned.trials
    assert trials is not None and len(seen) <= 7 and seen[0] == 1
    assert trials.worst == pytest.approx(0.7) and trials.best.metric >= 0.7
    assert width(pruned.module) == pytest.approx(trials.best.metric) and width(pruned.module) < 0.75
    assert [t.passed for t in trials] == [t.metric >= 0.7 for t in trials]
    assert pruned.report.proof is not None and pruned.report.proof.passed
    assert trials.best.left == pytest.approx(pruned.report.params.left)
    # What fails is smaller than what passes, here: the metric falls with the size
    assert max(t.left for t in trials if not t.passed) < trials.best.left
    assert "metric      score 1 -> 0.7" in str(pruned.report)
    assert len(trials.pareto) == len(trials) and trials.pareto[0].left < trials.pareto[-1].left


def test_an_error_is_better_when_it_is_less_and_a_target_is_a_value() -> None:
    pruned = irprune.prune(
        net(),
        (X[:2],),
        evaluate=lambda model: 2 - width(model),
        target_metric=1.5,
        lower_is_better=True,
        minimise="params",
    )
    assert pruned.trials is not None
    assert 1.45 < pruned.trials.best.metric <= 1.5
    with pytest.raises(irprune.IrpruneError, match="own metric is 1"):
        irprune.prune(net(), (X[:2],), evaluate=width, target_metric=1.5)


def test_trials_are_kept_and_a_search_goes_on_from_them(tmp_path: Path) -> None:
    calls: list[int] = []

    def score(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return width(model)

    wanted: dict[str, Any] = {"max_drop": 0.3, "minimise": "params", "trials": tmp_path / "t.json"}
    with pytest.raises(KeyboardInterrupt):
        irprune.prune(net(), (X[:2],), evaluate=score, **wanted)
    first = irprune.prune(net(), (X[:2],), evaluate=score, **wanted)
    assert first.trials is not None
    assert [t.again for t in first.trials[:2]] == [True, True]  # the third call was interrupted
    many = len(calls)
    again = irprune.prune(net(), (X[:2],), evaluate=score, **wanted)
    assert len(calls) == many and again.trials is not None
    assert again.trials.as_dict() == first.trials.as_dict()
    other = net()
    with torch.no_grad():
        other[0].weight *= 2  # another model: nothing of it is known
    irprune.prune(other, (X[:2],), evaluate=score, **wanted)
    assert len(calls) > many
    (tmp_path / "t.json").write_text(json.dumps({"irprune": "plan"}))
    with pytest.raises(irprune.IrpruneError, match="the trials cannot be read"):
        irprune.prune(net(), (X[:2],), evaluate=score, **wanted)


def test_the_model_comes_as_the_function_asks_for_it(tmp_path: Path) -> None:
    file = exported(tmp_path)
    got: list[type] = []

    def bare(model: Any) -> float:
        got.append(type(model))
        return 1.0

    def session(model: onnxruntime.InferenceSession) -> float:
        return bare(model)

    def module(model: nn.Module) -> float:
        return bare(model)

    def path(model: Path) -> float:
        assert onnx.load(model).graph.node
        return bare(model)

    def message(model: onnx.ModelProto) -> float:
        return bare(model)

    def texts(model: list[str]) -> float:
        return 1.0

    for function, kind in (
        (bare, onnxruntime.InferenceSession),
        (session, onnxruntime.InferenceSession),
        (module, nn.Module),
        (path, Path),
        (message, onnx.ModelProto),
    ):
        irprune.prune(str(file), evaluate=function, max_drop="1%", points=1)
        assert issubclass(got.pop(), kind)
    irprune.prune(net(), (X[:2],), evaluate=session, max_drop=0.01, points=1)
    assert got[-1] is onnxruntime.InferenceSession
    with pytest.raises(irprune.IrpruneError, match="wants a model as list"):
        irprune.prune(net(), (X[:2],), evaluate=texts, max_drop=0.01)
    with pytest.raises(irprune.IrpruneError, match="cannot be called with a model"):
        irprune.prune(net(), (X[:2],), evaluate=lambda: 1.0, max_drop=0.01)


def test_without_a_function_the_metric_is_agreement_on_the_calibration_data(tmp_path: Path) -> None:
    for model, args in ((net(), (X[:2],)), (str(exported(tmp_path)), ())):
        pruned = irprune.prune(model, args, calibration=X, max_drop=0.05, points=3)
        trials = pruned.trials
        assert trials is not None and trials.metric == "top1"
        assert trials.original.metric == 1 and trials.best.metric >= 0.95
        with torch.no_grad():
            same = (pruned.module(X).argmax(1) == net()(X).argmax(1)).float().mean()
        assert float(same) == pytest.approx(trials.best.metric, abs=1 / 64)
    cosine = irprune.prune(net(), (X[:2],), calibration=X, max_drop=0.2, metric="cosine", points=2)
    assert cosine.trials is not None and cosine.trials.metric == "cosine"


def test_statistics_are_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from irprune.passes.score import Score

    scored: list[int] = []
    run = Score.run

    def counted(self: Score, graph: Any) -> Any:
        scored.append(1)
        return run(self, graph)

    monkeypatch.setattr(Score, "run", counted)
    irprune.prune(net(), (X[:2],), calibration=X, max_drop=0.1, points=4)
    assert len(scored) == 1


def test_a_latency_is_predicted_for_each_trial_and_measured_at_the_end() -> None:
    pruned = irprune.prune(
        net(), (X[:2],), evaluate=width, max_drop=0.5, minimise="latency", points=2, threads=1
    )
    assert pruned.trials is not None and pruned.report.latency is not None
    assert all(t.latency == t.left for t in pruned.trials)
    assert pruned.report.latency.after.median > 0


def test_a_metric_that_no_smaller_model_keeps_leaves_the_model_whole() -> None:
    pruned = irprune.prune(
        net(), (X[:2],), evaluate=lambda m: float(width(m) == 1), max_drop=0.5, points=3
    )
    assert pruned.report.cuts_nothing and pruned.trials is not None
    assert pruned.trials.best is pruned.trials.original


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_drop": 0.1, "ratio": 0.5}, "ratio=0.5 and max_drop=0.1 are both given"),
        ({"max_drop": 0.1, "budget": {"macs": 0.5}}, "are both given"),
        ({"ratio": 0.3, "budget": {"macs": 0.5}}, "ratio=0.3 and budget="),
        ({"max_drop": 0.1}, "needs a metric; give evaluate, or calibration"),
        ({"max_drop": 1.5, "evaluate": width}, "max_drop is 1.5"),
        ({"max_drop": "much", "evaluate": width}, "'much' is no share"),
        ({"evaluate": width}, "evaluate is given without max_drop"),
        ({"max_drop": 0.1, "evaluate": width, "metric": "top1"}, "evaluate and metric are both"),
        ({"max_drop": 0.1, "calibration": X, "metric": "beauty"}, "no metric is called 'beauty'"),
        ({"max_drop": 0.1, "evaluate": lambda m: float("nan")}, "the original's metric is nan"),
        ({"max_drop": 0.1, "evaluate": lambda m: "good"}, "gave a str; it returns one number"),
        ({"max_drop": 0.1, "calibration": X, "metric": "perplexity"}, "no language model"),
        ({"max_drop": 0.1, "calibration": X, "metric": "snr"}, "metric is inf"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(irprune.IrpruneError, match=text.replace("(", r"\(")):
        irprune.prune(net(), (X[:2],), **options)


def test_an_error_in_the_function_is_one_line_with_its_place() -> None:
    def fails(model: nn.Module) -> float:
        raise ValueError("no data here")

    with pytest.raises(
        irprune.IrpruneError, match=r"fails\(\) fails: ValueError.*test_metric.py:\d+"
    ):
        irprune.prune(net(), (X[:2],), evaluate=fails, max_drop=0.1)


def test_the_original_is_run_again_where_its_outputs_are_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = irprune.prune(net(), (X[:2],), calibration=X, max_drop=0.05, points=3).trials
    monkeypatch.setattr("irprune.api.judges.MEMORY", 0)
    assert Agreement.value is not None
    again = irprune.prune(net(), (X[:2],), calibration=X, max_drop=0.05, points=3).trials
    assert whole is not None and again is not None and whole.as_dict() == again.as_dict()
