"""``irprune opt -o``: a pipeline writes the model that it makes, with a proof of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import irprune
from irprune.cli import cli
from irprune.errors import CheckFailed
from irprune.run.session import run_session, session

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3),
        nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).eval()
    for norm in (net[1], net[4]):
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    return net, (torch.randn(2, 3, 12, 12),)
"""


@pytest.fixture(params=["module", "file"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A model as code, and as the file that it exports to."""
    code = tmp_path / f"net_{request.param}.py"
    code.write_text(NET)
    spec = f"{code}:build"
    if request.param == "module":
        return spec
    file = tmp_path / "whole.onnx"
    call = ["prune", spec, "--ratio", "0", "-o", str(file), "--no-bench"]
    assert CliRunner().invoke(cli, call).exit_code == 0
    return str(file)


def opt(model: str, pipeline: str, out: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, ["opt", model, "-p", pipeline, "-o", str(out), "--quiet", *more])


PIPELINES = [
    "prune",
    "prepare,fold-batch-norm,dead-code,analyse,decide,cut",
    "prepare,analyse,decide,cut,fold-batch-norm",
    "prepare,analyse,score{importance=fpgm},choose{ratio=0.25},cut",
]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_a_pipeline_makes_is_written_and_proven(
    model: str, pipeline: str, tmp_path: Path
) -> None:
    out = tmp_path / "small.onnx"
    done = opt(model, pipeline, out)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "exact" in done.stderr
    wide = max(t.dims[0] for t in onnx.load(out).graph.initializer if len(t.dims) == 4)
    assert wide == (18 if "0.25" in pipeline else 12)
    x = np.random.rand(3, 3, 20, 16).astype(np.float32)
    run = session(str(out), "cpu")
    (y,) = run_session(run, {run.get_inputs()[0].name: x}).values()
    assert y.shape == (3, 5)


def test_a_pipeline_that_cuts_nothing_keeps_every_output(model: str, tmp_path: Path) -> None:
    out, whole = tmp_path / "folded.onnx", tmp_path / "same.onnx"
    assert opt(model, "prepare,fold-batch-norm", out).exit_code == 0
    assert opt(model, "", whole).exit_code == 0
    x = np.random.rand(2, 3, 12, 12).astype(np.float32)
    ours, theirs = (
        next(iter(run_session(s, {s.get_inputs()[0].name: x}).values()))
        for s in (session(str(out), "cpu"), session(str(whole), "cpu"))
    )
    assert np.abs(ours - theirs).max() < 1e-5


def test_a_pass_that_changes_the_model_fails_the_proof(model: str, tmp_path: Path) -> None:
    out = tmp_path / "masked.onnx"
    done = opt(model, "mask{ratio=0.5}", out)
    assert isinstance(done.exception, CheckFailed) and not out.exists()
    assert "a pass changes what the model computes" in str(done.exception)
    assert opt(model, "mask{ratio=0.5}", out, "--no-proof").exit_code == 0 and out.exists()


def test_a_wrong_pass_of_ones_own_is_seen(model: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong_pass.py"
    wrong.write_text(
        "from dataclasses import dataclass\n"
        "from irprune.passes import PassResult\n"
        "@dataclass(frozen=True)\n"
        "class Wrong:\n"
        '    """Scale a weight after the cut."""\n'
        "    def run(self, graph):\n"
        "        w = next(w for w in graph.weights.values() if w.rank == 4)\n"
        "        old = w.load\n"
        "        w.load = lambda: old() * 1.01\n"
        "        return PassResult(True)\n"
    )
    done = opt(model, "prune,wrong", tmp_path / "o.onnx", "--load", str(wrong))
    assert isinstance(done.exception, CheckFailed)


def test_the_model_itself_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    code = tmp_path / "net_over.py"
    code.write_text(NET)
    CliRunner().invoke(cli, ["prune", f"{code}:build", "-o", str(file), "--no-bench"])
    done = opt(str(file), "prune", file)
    assert isinstance(done.exception, irprune.IrpruneError)
    assert "the output is the model itself" in str(done.exception)
