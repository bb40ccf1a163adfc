"""What the README says is run: its Python example, its pass, its command lines, and its tables are current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from irprune.cli import run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]


def test_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(PYTHON[0], space)
    assert "exact" in capsys.readouterr().out
    assert (tmp_path / "small.onnx").stat().st_size > 1000
    assert space["model"][0].out_channels == 8  # type: ignore[index]


def test_pass_of_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "count_params.py").write_text(PYTHON[1])
    line = next(x for _, code in BLOCKS for x in code.splitlines() if x.startswith("irprune opt"))
    words = re.findall(r'"[^"]*"|\S+', line)[1:]
    words = [w.strip('"').replace("models/digits.py", str(ROOT / "models/digits.py")) for w in words]
    monkeypatch.chdir(tmp_path)
    assert run(words) == 0
    told = capsys.readouterr()
    assert "after count-params" in told.out + told.err
    assert "axis c0" in told.out + told.err


def test_tables_are_current() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools/readme.py"), "--check"], check=False)
    assert done.returncode == 0, "run python tools/readme.py"


def test_test_command_is_what_ci_runs() -> None:
    commands = re.findall(r"^pip install .*\[test\].*$", README, re.M)
    assert len(commands) == 1
    assert "constraints.txt" in commands[0] and "pytest" in commands[0]
