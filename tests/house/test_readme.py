"""What the README says is run: its Python example, its pass, its command lines, and its tables are
current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from irprune.cli import run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]


def test_python_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(PYTHON[0], space)
    assert "exact" in capsys.readouterr().out
    assert (tmp_path / "small.onnx").stat().st_size > 1000
    assert space["model"][0].out_channels == 8  # type: ignore[index]
    load = "import sys; sys.path.insert(0, 'small'); import model; print(model.load())"
    made = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True)
    assert "Conv2d(3, 8" in made.stdout


def test_pass_of_the_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code, saved under the name that the text gives, in the command that the text gives, does
    what the text says."""
    assert PYTHON[1] == (ROOT / "tests" / "data" / "my_pass.py").read_text()
    (tmp_path / "my_pass.py").write_text(PYTHON[1])
    (tmp_path / "models").symlink_to(ROOT / "models")
    command = next(code.strip() for _, code in BLOCKS if code.startswith("irprune opt"))
    difference = next(code for _, code in BLOCKS if code.startswith("-  %"))
    monkeypatch.chdir(tmp_path)
    assert run([w.strip('"') for w in re.findall(r'"[^"]*"|\S+', command)[1:]]) == 0
    told = capsys.readouterr()
    after = told.err.partition("+++ after protect-small")[2].partition("+++ after score")[0]
    assert all(line in after for line in difference.splitlines())
    widths = re.findall(r"%blocks\.\d\.conv1\.weight: f32\[(\d+), ", told.out)
    assert widths == ["32", "32", "32", "32"], "two of 32 as they were, two of 64 halved"


RESNET = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return nn.functional.relu(x + self.conv2(nn.functional.relu(self.norm(self.conv1(x)))))


def build():
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 8, 7, stride=16))
    net.add_module("layer1", nn.Sequential(Block(8)))
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(8, 10))
    return net
"""


def test_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every line of the block under "From the command line", on files of the names that it uses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet.py").write_text(RESNET)
    assert (
        run(
            [
                "prune",
                "resnet.py:build",
                "--input",
                "1x3x224x224",
                "--ratio",
                "0",
                "-o",
                "model.onnx",
            ]
        )
        == 0
    )
    for twin in "ab":
        (tmp_path / f"{twin}.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    block = next(code for _, code in BLOCKS if code.startswith("irprune prune"))
    lines = [line.split("#")[0].split() for line in block.splitlines()]
    assert len(lines) >= 7
    told = {}
    for words in lines:
        capfd.readouterr()
        assert words[0] == "irprune" and run(words[1:]) == 0, words
        told[words[1]] = capfd.readouterr().out
    assert (tmp_path / "small" / "model.py").exists()
    assert (tmp_path / "smaller.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
    assert "layer1.0.conv1.weight:0: 8 channels" in told["explain"] and "frozen:" in told["inspect"]


def test_tables_are_current() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools/readme.py"), "--check"], check=False)
    assert done.returncode == 0, "run python tools/readme.py"


def test_test_command_is_what_ci_runs() -> None:
    commands = re.findall(r"^pip install .*\[test\].*$", README, re.M)
    assert len(commands) == 1
    assert "constraints.txt" in commands[0] and "pytest" in commands[0]
