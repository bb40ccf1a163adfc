"""What the README says is run: its Python examples and command lines; tables are current."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from irprune.cli import run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from tables import RESULTS, cells, table_of, write_table  # noqa: E402
from zoo_table import summary  # noqa: E402

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


def test_the_example_of_a_language_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    space: dict[str, object] = {}
    exec(PYTHON[1], space)
    assert "exact" in capsys.readouterr().out
    pruned = space["pruned"]
    assert not [n for n in pruned.kept if "embed" in n]  # type: ignore[attr-defined]
    assert any("q_proj" in n for n in pruned.kept)  # type: ignore[attr-defined]


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
    """Every line of the block under "An ONNX file", on files of the names that it uses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet.py").write_text(RESNET)
    made = "prune resnet.py:build --input 1x3x224x224 --ratio 0 -o model.onnx"
    assert run(made.split()) == 0
    block = next(code for _, code in BLOCKS if code.startswith("irprune inspect"))
    lines = [line.split("#")[0].split() for line in block.splitlines()]
    assert [words[1] for words in lines] == ["inspect", "explain", "prune", "bench"]
    told = {}
    for words in lines:
        capfd.readouterr()
        assert words[0] == "irprune" and run(words[1:]) == 0, words
        told[words[1]] = capfd.readouterr().out
    assert (tmp_path / "smaller.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
    assert "layer1.0.conv1.weight:0: 8 channels" in told["explain"] and "frozen:" in told["inspect"]


def test_the_headline_table_is_current() -> None:
    command = [sys.executable, str(ROOT / "tools/readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_of_the_zoo_is_that_of_its_records() -> None:
    lines = (RESULTS / "zoo.jsonl").read_text().splitlines()
    head, _, table = table_of("zoo").partition("\n\n")
    assert head.endswith(f"{len(lines)} of {len(lines)} architectures")
    assert table.strip() == summary([json.loads(line) for line in lines]).strip()


def test_a_tool_replaces_the_table_of_a_page_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text("# Speed\n\nHow.\n\n<!-- table -->\n\nold\n\n<!-- end -->\n")
    write_table(page, "| a | b |\n| --- | --- |\n| 1 | 2 |\n")
    assert page.read_text().startswith("# Speed\n\nHow.\n\n<!-- table -->\n\n| a | b |\n")
    assert "old" not in page.read_text()
    assert cells("speed", tmp_path) == [{"a": "1", "b": "2"}]
    write_table(tmp_path / "new.md", "text\n\n")
    assert (tmp_path / "new.md").read_text() == "text\n"
    with pytest.raises(ValueError, match="no table"):
        table_of("new", tmp_path)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 150
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_test_command_is_what_ci_runs() -> None:
    commands = re.findall(r"^pip install .*\[test\].*$", README, re.M)
    assert len(commands) == 1
    assert "constraints.txt" in commands[0] and "pytest" in commands[0]
