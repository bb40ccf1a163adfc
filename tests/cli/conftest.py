"""Fixtures of the command line: a call, a user's file, a folder in which nothing may change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import NET, Result

from irprune.cli import run


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a command in a wide terminal and give its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run_it(*argv: object) -> Result:
        capfd.readouterr()
        code = run([str(a) for a in argv])
        out, err = capfd.readouterr()
        return code, out, err

    return run_it


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:build"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[set[str]]:
    """What lies in the folder must be the same afterwards."""
    before = {p.name for p in tmp_path.rglob("*") if "__pycache__" not in str(p)}
    yield before
    assert {p.name for p in tmp_path.rglob("*") if "__pycache__" not in str(p)} - {
        "net.py"
    } == before - {"net.py"}
