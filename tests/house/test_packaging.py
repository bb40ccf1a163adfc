"""What is installed: the packages listed are the folders there are, and ``passes`` goes by one
name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python(code: str, where: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=where,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_list_of_packages_matches_the_folders() -> None:
    """Every folder with Python files in irprune/, and passes/ under its installed name."""
    setuptools = project()["tool"]["setuptools"]
    folders = {p.parent for p in (ROOT / "irprune").rglob("*.py")}
    there = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert setuptools["package-dir"] == {"irprune.passes": "passes"}
    assert sorted(setuptools["packages"]) == sorted(there | {"irprune.passes"})
    assert all((folder / "__init__.py").exists() for folder in folders)
    assert not [p for p in (ROOT / "passes").rglob("*.py") if p.parent != ROOT / "passes"], (
        "passes lie in one folder"
    )


def test_files_that_are_read_at_run_time_are_installed() -> None:
    data = project()["tool"]["setuptools"].get("package-data", {})
    listed = {
        f
        for name, patterns in data.items()
        for p in patterns
        for f in (ROOT / name.replace(".", "/")).glob(p)
    }
    there = {
        f for f in (ROOT / "irprune").rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")
    }
    assert there == listed


def test_passes_are_imported_under_their_installed_name() -> None:
    """From the root of the repository the folder would also be found as ``passes``: every class
    would then exist twice."""
    made = python("import passes", ROOT)
    assert made.returncode == 1
    assert (
        made.stderr.strip()
        .splitlines()[-1]
        .startswith("ImportError: this folder is the package irprune.passes: `pip install -e .`")
    )
    made = python("import irprune.passes.slice, sys; print('passes' in sys.modules)", ROOT)
    assert (made.returncode, made.stdout.strip()) == (0, "False")


def test_importing_irprune_loads_neither_torch_nor_onnx(tmp_path: Path) -> None:
    """What stands on the graph alone starts light: the IR, the table, the passes and the driver."""
    modules = [
        "irprune",
        "irprune.errors",
        "irprune.ir.text",
        "irprune.ir.parse",
        "irprune.driver.verify",
        "irprune.ops.registry",
        "irprune.cli",
        "irprune.cli.opt",
        "irprune.cli.tables",
        "irprune.driver.run",
    ]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
from irprune.driver.registry import standard
from irprune.ops.registry import load_table
print(len(standard().passes) > 5, len(load_table()) > 100, [m for m in ("torch", "onnx", "onnxruntime") if m in sys.modules])
"""
    made = python(code, tmp_path)
    assert (made.returncode, made.stdout.strip()) == (0, "True True []"), made.stderr


def test_the_entry_points_name_what_there_is() -> None:
    scripts = project()["project"]["scripts"]
    assert list(scripts) == ["irprune"]
    place, _, name = scripts["irprune"].partition(":")
    made = python(f"from {place} import {name} as main; print(callable(main))", ROOT)
    assert made.stdout.strip() == "True", made.stderr


@pytest.mark.parametrize("name", ["models", "tests"])
def test_nothing_that_is_installed_needs_what_is_not(name: str) -> None:
    guilty = [
        p
        for p in [*(ROOT / "irprune").rglob("*.py"), *(ROOT / "passes").glob("*.py")]
        if any(
            line.split()[:2] in (["import", name], ["from", name])
            for line in p.read_text(encoding="utf-8").splitlines()
        )
    ]
    assert guilty == []


def test_a_wheel_holds_every_module(tmp_path: Path) -> None:
    """Built from a copy, without the network."""
    pytest.importorskip("setuptools", minversion="77")
    for name in ("irprune", "passes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    made = python("from setuptools import build_meta; build_meta.build_wheel('.')", tmp_path)
    assert made.returncode == 0, made.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("irprune/")}
    own = {
        f"irprune/{p.relative_to(ROOT / 'irprune').as_posix()}"
        for p in (ROOT / "irprune").rglob("*.py")
    }
    assert packed == own | {f"irprune/passes/{p.name}" for p in (ROOT / "passes").glob("*.py")}
