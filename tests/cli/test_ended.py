"""A command that is told to end, or that finds no room, leaves no temporary files and says one
line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from irprune.base.atomic_write import NotWritten
from irprune.cli import run
from irprune.testing.works import made_file
from irprune.validate import onnx_run

MODEL = """
import os, signal, tempfile, time
from pathlib import Path


def build():
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as aside:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
"""


def test_a_command_that_is_terminated_takes_its_temporary_files_along(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    made = subprocess.run(
        [sys.executable, "-m", "irprune", "prune", "net.py:build", "-o", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 143, made
    assert "Traceback" not in made.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"net.py", "__pycache__"}


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_a_proof_without_room_says_so_and_is_no_verdict(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever of the models that are compared finds the disk full."""
    onnx.save(made_file(False), tmp_path / "in.onnx")
    write, calls = onnx_run.write_model, []

    def full(*args: object) -> Path:
        calls.append(args)
        if len(calls) > times:
            raise NotWritten("the disk is full", "x")
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_run, "write_model", full)
    words = ["prune", str(tmp_path / "in.onnx"), "-o", str(tmp_path / "out.onnx")]
    assert run([*words, "--no-calibration"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("irprune: the proof has no place for a copy of the weights"), said
    assert "the disk is full" in said and "TMPDIR" in said and "--no-proof" in said
    assert len(calls) == times + 1
    assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]


def test_a_sweep_asks_first_whether_it_can_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(made_file(False), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", np.zeros((4, 8), np.float32))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["sweep", str(tmp_path / "in.onnx"), "--budget", "macs=0.8"]
    assert run([*words, "--plot", str(tmp_path / "a.svg")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"irprune: matplotlib is not installed ({tmp_path / 'a.svg'}); pip install 'irprune[sweep]'"
    ]
