"""Several strategies at once: what is chosen, what is judged, what is kept, and that none of it
depends on how many processes there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ranks import torchrun
from torch import nn

import irprune
from irprune.api import sweep_bench as module
from irprune.api.sweep_result import Sweep
from irprune.cli import run
from irprune.errors import IrpruneError

SCORE = """
import numpy as np
import onnxruntime


def score(model: onnxruntime.InferenceSession) -> float:
    x = np.linspace(-1, 1, 6 * 8, dtype=np.float32).reshape(6, 8)
    (y,) = model.run(None, {model.get_inputs()[0].name: x})
    return float(np.abs(y).sum())
"""
STRATEGIES = {
    "importance": ["magnitude", "random"],
    "scope": ["local", "global"],
    "budget": {"macs": [0.8, "50%"]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ONNX file, a function that judges it, and calibration data."""
    folder = tmp_path_factory.mktemp("sweep")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    whole = irprune.prune(net, (torch.randn(2, 8),), ratio=0.0, proof=False)
    whole.onnx(folder / "net.onnx", parity=False)
    (folder / "score.py").write_text(SCORE)
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32))
    return folder


def swept(place: Path, **more: object) -> Sweep:
    given = {
        "evaluate": f"{place / 'score.py'}:score",
        "options": {"calibration": str(place / "x.npy")},
    }
    return irprune.sweep(str(place / "net.onnx"), **{**STRATEGIES, **given, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(place: Path) -> Sweep:
    return swept(place)


def test_every_combination_is_judged_as_its_plan_replays(place: Path, found: Sweep) -> None:
    assert len(found) == 1 + 2 * 2 * 2 and found[0].name == "original"
    assert [r.name for r in found[1:3]] == [
        "magnitude, local, macs 80%",
        "magnitude, local, macs 50%",
    ]
    assert found.metric == "score" and found.higher
    for row in found[1:]:
        assert row.left <= row.share + 1e-9 and row.left == row.macs
    last = found[-1]
    pruned = irprune.apply_plan(
        str(place / "net.onnx"), last.plan, calibration=str(place / "x.npy"), repair=None
    )
    assert pruned.report.proof is not None and pruned.report.proof.passed
    assert pruned.report.macs.left == pytest.approx(last.macs)


def test_any_number_of_processes_gives_the_same(place: Path, found: Sweep) -> None:
    other = swept(place, workers=2)
    assert other.as_dict() == found.as_dict()
    assert [r.plan for r in other] == [r.plan for r in found]


NET = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))


def example_inputs():
    return torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
"""
WORDS = ["--importance", "fisher,random", "--scope", "local,global", "--budget", "macs=0.8,50%"]


def on_command_line(place: Path, size: int, *more: str) -> subprocess.CompletedProcess[str]:
    """A sweep of the command line on so many ranks."""
    (place / "net.py").write_text(NET)
    command = ["-m", "irprune", "sweep", "net.py:net", *WORDS, "--calibration", "x.npy", "--json"]
    return torchrun(size, [*command, *more], place)


def test_ranks_judge_beside_each_other_and_say_the_same(place: Path, tmp_path: Path) -> None:
    told = {}
    for size in (1, 2, 3):
        plans = tmp_path / f"plans{size}"
        made = on_command_line(place, size, "--plans", str(plans))
        assert made.returncode == 0, made.stderr
        files = sorted(plans.iterdir())
        told[size] = json.loads(made.stdout), [(p.name, p.read_text()) for p in files]
        assert len(told[size][0]["trials"]) == 9 and files
    assert told[2] == told[1] and told[3] == told[1]


def test_ranks_keep_trials_in_one_journal(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    keep = ["--storage", str(tmp_path / "sweep.journal")]
    first, second = (on_command_line(place, n, *keep) for n in (2, 1))
    assert first.returncode == 0 and second.returncode == 0, (first.stderr, second.stderr)
    assert first.stdout == second.stdout and "6 of 6: " in first.stderr
    assert " of 6: " not in second.stderr  # all of them are known


def test_ranks_and_workers_are_not_both_asked_for(place: Path) -> None:
    made = on_command_line(place, 2, "--workers", "2")
    said = [line for line in made.stderr.splitlines() if line.startswith("irprune: ")]
    assert made.returncode and len(said) == 1 and "on 2 ranks" in said[0], made.stderr


def test_an_engine_that_is_none_or_missing_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IrpruneError, match=r"engine is 'dask'.*one of processes, ray"):
        swept(place, engine="dask")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(IrpruneError, match=r"ray is not installed.*irprune\[ray\]"):
        swept(place, engine="ray")


def test_ray_gives_the_same(place: Path, found: Sweep) -> None:
    pytest.importorskip("ray")
    other = swept(place, engine="ray", workers=2)
    assert other.as_dict() == found.as_dict()


def test_the_front_holds_what_no_other_beats(found: Sweep) -> None:
    front = found.pareto
    assert front[-1].metric == max(r.metric for r in found)
    for row in found:
        beaten = any(
            o.macs <= row.macs
            and o.metric >= row.metric
            and (o.macs, o.metric) != (row.macs, row.metric)
            for o in found
        )
        assert beaten != any(o.macs == row.macs and o.metric == row.metric for o in front)
    assert found.table().count("\n*") + found.table().startswith("*") == len(front)


def test_a_journal_keeps_trials(
    place: Path, found: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip("optuna")
    journal = tmp_path / "sweep.journal"
    first = swept(place, storage=journal)
    assert not any(r.known for r in first) and first.as_dict() == found.as_dict()
    judged: list[object] = []
    value = module.Bench.value
    monkeypatch.setattr(module.Bench, "value", lambda s, p: judged.append(p) or value(s, p))
    second = swept(place, storage=journal)
    assert len(judged) == 1, "the original alone is judged again"
    assert all(r.known for r in second) and second.as_dict() == found.as_dict()
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(journal))
    )
    (study,) = optuna.study.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=study.study_name, storage=storage).best_trials
    assert {(t.values[0], t.values[1]) for t in trials} == {
        (r.macs, r.metric) for r in found.pareto
    }


def test_agreement_where_there_is_no_function(place: Path) -> None:
    made = irprune.sweep(
        str(place / "net.onnx"),
        importance=["magnitude"],
        budget={"params": [0.6]},
        metric="cosine",
        options={"calibration": str(place / "x.npy")},
    )
    assert made.metric == "cosine" and made[0].metric == pytest.approx(1)
    assert 0 < made[1].metric < 1 and made[1].left == made[1].params <= 0.6


def test_the_command_line(
    place: Path, found: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", str(place / "net.onnx"), "--importance", "magnitude,random"]
    words += ["--scope", "local,global", "--budget", "macs=0.8,50%", "--json"]
    words += ["--eval", f"{place / 'score.py'}:score", "--calibration", str(place / "x.npy")]
    assert run([*words, "--plans", str(tmp_path / "plans")]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["trials"] == found.as_dict()["trials"]
    plan = next(iter(sorted((tmp_path / "plans").glob("*.json"))))
    out = tmp_path / "small.onnx"
    assert run(["prune", str(place / "net.onnx"), "--plan", str(plan), "-o", str(out)]) == 0
    onnx.checker.check_model(str(out))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"importance": ["magnitud"]}, "no criterion is called 'magnitud'"),
        ({"budget": {"macs": [1.5]}}, "the share of macs is 1.5"),
        ({"budget": {"latency": [0.5]}}, "a sweep cannot have a budget on 'latency'"),
        ({"budget": {}}, "no budget is given"),
        ({"workers": 0}, "workers is 0"),
        ({"evaluate": None, "options": {}}, "nothing says how good a model is"),
        ({"options": {"ratio": 0.5}}, "a sweep has no option ratio"),
    ],
)
def test_bad_use_is_one_line(place: Path, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(IrpruneError, match=said):
        swept(place, **wrong)  # type: ignore[arg-type]


def test_what_cannot_be_sent_is_said() -> None:
    class Local(nn.Sequential):
        """Not in a module, so that no other process finds it."""

    with pytest.raises(IrpruneError, match="the model is sent to processes"):
        irprune.sweep(
            Local(nn.Linear(4, 16), nn.Linear(16, 4)),
            (torch.randn(1, 4),),
            budget={"macs": [0.7, 0.4]},
            evaluate=lambda model: 1.0,
            workers=2,
        )
