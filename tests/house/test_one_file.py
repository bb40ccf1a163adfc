"""A criterion, a repair, a pass, an operator and a model case are each one new file, and nothing
else is to be touched: each is put into a copy of the house, and found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CRITERION = '''
"""even: even indices matter."""
from dataclasses import dataclass

import numpy as np

from irprune.criteria import criterion


@criterion("even")
@dataclass(frozen=True)
class Even:
    """One for even indices, zero for odd ones."""

    def scores(self, graph, groups, blocks):
        return {g.axis: 1.0 - np.arange(g.size) % 2 for g in groups if g.axis not in blocks}
'''
REPAIR = '''
"""repair-nothing: leave the model as it is."""
from dataclasses import dataclass
from typing import Any

from irprune.passes import PassResult
from irprune.passes.repairs import repair


@repair("nothing")
@dataclass(frozen=True)
class RepairNothing:
    """Leave the model as it is."""

    original: Any
    calibration: Any

    def run(self, graph):
        return PassResult(False, ("nothing was done",))
'''
PASS = '''
"""count-nodes: say how many nodes there are."""
from dataclasses import dataclass

from irprune.passes import PassResult


@dataclass(frozen=True)
class CountNodes:
    """Say how many nodes there are."""

    word: str = "nodes"

    def run(self, graph):
        return PassResult(False, (f"{len(graph.nodes)} {self.word}",))
'''
OPERATOR = '''
"""Fading: each element on its own."""
from irprune.ops.registry import Arg, Sample, op

op(
    "fade",
    "*d -> *d",
    aten=("fade.default",),
    family="fading",
    samples=(Sample((Arg((2, 3)),)),),
)
'''
CASE = '''
"""two-layers: two layers."""
import torch
from torch import nn

from models import Case


def build(small=False):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def example_inputs(small=False):
    return (torch.randn(2, 4),), {}


CASE = Case("two_layers", ("mlp",), build, example_inputs)
'''
LINEAR = "models/two_layers.py:build"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for name in ("irprune", "passes", "models"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    (tmp_path / "models" / "two_layers.py").write_text(CASE)
    return tmp_path


def python(house: Path, code: str, *argv: str) -> str:
    made = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout + made.stderr


def irprune(house: Path, *argv: str) -> str:
    code = "import sys, irprune.cli as c; sys.exit(c.run(sys.argv[1:]))"
    return python(house, code, *argv)


def test_a_model_case(house: Path) -> None:
    code = "import models; print(models.get('two_layers'), 'two_layers' in models.names())"
    assert python(house, code).strip() == "Case('two_layers', mlp) True"


def test_a_criterion(house: Path) -> None:
    (house / "irprune" / "criteria" / "even.py").write_text(CRITERION)
    assert " even," in " ".join(irprune(house, "prune", "--help").split())
    code = (
        "import irprune, models; c = models.get('two_layers'); m = c.build(); a, k = c.example_inputs(); "
        "print(irprune.prune(m, a, importance='even').kept['0.weight'][0])"
    )
    assert python(house, code).strip() == "[0, 2, 4, 6]"
    text = irprune(
        house, "opt", LINEAR, "--input", "2x4", "-p", "analyse,score{importance=even},choose"
    )
    assert "keep=[0, 2, 4, 6]" in text or "keep=[0:8:2]" in text, text


def test_a_repair(house: Path) -> None:
    (house / "passes" / "repair_nothing.py").write_text(REPAIR)
    assert " nothing " in " ".join(irprune(house, "prune", "--help").split())
    code = (
        "import irprune, models, torch; c = models.get('two_layers'); m = c.build(); "
        "a, k = c.example_inputs(); print('nothing (' in irprune.prune.__doc__ or 'nothing,' in irprune.prune.__doc__); "
        "print(irprune.prune(m, a, repair='nothing', calibration=torch.randn(8, 4)).report.repair.notes)"
    )
    assert python(house, code).splitlines() == ["True", "['nothing was done']"]


def test_a_pass(house: Path) -> None:
    (house / "passes" / "count_nodes.py").write_text(PASS)
    assert "count-nodes" in irprune(house, "passes")
    told = irprune(
        house, "opt", LINEAR, "--input", "2x4", "-p", "count-nodes{word=steps}", "--quiet"
    )
    assert "note: count-nodes: 3 steps" in told


def test_an_operator(house: Path) -> None:
    (house / "irprune" / "ops" / "aten" / "fade.py").write_text(OPERATOR)
    lines = irprune(house, "ops", "fade").splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["fading"],
        ["fade", "aten:", "fade.default"],
        ["*d", "->", "*d"],
    ]
