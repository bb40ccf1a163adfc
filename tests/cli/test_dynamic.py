"""``--dynamic`` on the commands that capture a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from irprune.cli import cli
from irprune.errors import IrpruneError

SOURCE = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    file = tmp_path / "net_of_sizes.py"
    file.write_text(SOURCE)
    return f"{file}:build"


def call(*words: str) -> Any:
    return CliRunner().invoke(cli, [*words, "--input", "3x6"])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ((), "f32[input_0, 6]"),
        (("--dynamic", "all"), "f32[input_0, 6]"),
        (("--dynamic", "batch"), "f32[input_0, 6]"),
        (("--dynamic", "none"), "f32[3, 6]"),
        (("--dynamic", "input:0"), "f32[input_0, 6]"),
    ],
)
def test_opt_prints_the_sizes_that_are_open(model: str, said: tuple[str, ...], shown: str) -> None:
    made = call("opt", model, *said)
    assert made.exit_code == 0, made.output
    assert f"{shown} = input" in made.output


@pytest.mark.parametrize("command", [("inspect",), ("bench", "--seconds", "0.01"), ("explain",)])
def test_the_others_take_it(model: str, command: tuple[str, ...]) -> None:
    name, *more = command
    words = [name, model, *more, *(["0.weight"] if name == "explain" else [])]
    counts = []
    for said in ("none", "batch", "all"):
        made = call(*words, "--dynamic", said, "--json")
        assert made.exit_code == 0, made.output
        counts.append(json.loads(made.stdout).get("macs"))
    assert len(set(counts)) == 1
    wrong = call(*words, "--dynamic", "input:7")
    assert isinstance(wrong.exception, IrpruneError)
    assert "dynamic names (7,); write none, batch, all" in str(wrong.exception)
