"""The notebooks run from their first cell to their last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def code_of(notebook: Path) -> str:
    """Its cells of code as one program; what installs packages is left out, and what a cell ends
    with is asked for its page, as a notebook does."""
    cells = json.loads(notebook.read_text())["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    shown = [f"assert {t}._repr_html_()" if t.isidentifier() else t for t in texts]
    return "\n\n".join(t for t in shown if not t.startswith("%"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    held = json.loads(notebook.read_text())
    assert held["nbformat"] == 4 and not any(c.get("outputs") for c in held["cells"])
    made = subprocess.run(
        [sys.executable, "-c", code_of(notebook)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    assert "onnxruntime: " in made.stdout


def test_there_is_one() -> None:
    assert NOTEBOOKS
