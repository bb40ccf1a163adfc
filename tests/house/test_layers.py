"""The walls of the house: imports go down the layers, without circles, and those inside functions
spare what is slow to load, as torch and onnx are, or what need not be installed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLOW = frozenset("torch onnx onnxruntime onnx_graphsurgeon onnxscript rich irprune.api".split())
"""What takes long to load, so that a command that does without it starts without it."""
IMPORTED_AS = {"scikit-learn": "sklearn", "pillow": "PIL"}
EXTRAS = frozenset(
    IMPORTED_AS.get(name, name).replace("-", "_")
    for wanted in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ].values()
    for name in (re.split(r"[\[<>=]", requirement)[0] for requirement in wanted)
)
"""What a user may not have installed."""
HEAVY = SLOW | EXTRAS


# -- the layers ------------------------------------------------------------------------------------


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of what the contracts are about, to plant a fault in."""
    shutil.copytree(ROOT / "irprune", tmp_path / "irprune", symlinks=True)
    shutil.copytree(ROOT / "passes", tmp_path / "passes")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_down_the_layers_without_circles() -> None:
    made = lint(ROOT)
    assert made.returncode == 0, made.stdout
    assert "3 kept, 0 broken" in made.stdout


@pytest.mark.parametrize(
    "module, line, broken",
    [
        ("irprune/ir/size.py", "import irprune.ops.registry", "Imports go down the layers BROKEN"),
        (
            "passes/slice.py",
            "import irprune.emit.torch.module",
            "Imports go down the layers BROKEN",
        ),
        ("irprune/ir/size.py", "import irprune.ir.axis", "No circles within a package BROKEN"),
        ("irprune/ir/size.py", "import torch", "The graph knows neither torch nor onnx BROKEN"),
        ("irprune/loose.py", "", "Imports go down the layers BROKEN"),
    ],
)
def test_an_arrow_upwards_and_a_circle_are_found(
    house: Path, module: str, line: str, broken: str
) -> None:
    path = house / module
    text = path.read_text() if path.exists() else ""
    path.write_text(f"{text}\n{line}\n")
    made = lint(house)
    assert made.returncode == 1
    assert broken in made.stdout or "is not listed" in made.stdout or "exhaustive" in made.stdout


def test_nothing_lies_loose() -> None:
    assert sorted(p.name for p in (ROOT / "irprune").glob("*.py")) == [
        "__init__.py",
        "__main__.py",
        "errors.py",
    ]


# -- imports inside functions ----------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """An import of ``target``; ``late`` says that it stands inside a function."""

    module: str
    target: str
    line: int
    late: bool


def modules(root: Path) -> dict[str, Path]:
    files = [*(root / "irprune").rglob("*.py"), *(root / "passes").glob("*.py")]
    out = {}
    for path in files:
        parts = list(path.relative_to(root).with_suffix("").parts)
        parts = ["irprune", *parts] if parts[0] == "passes" else parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def imports(name: str, tree: ast.AST, known: dict[str, Path]) -> Iterator[Import]:
    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and child.module:
                for a in child.names:
                    full = f"{child.module}.{a.name}"
                    yield Import(name, full if full in known else child.module, child.lineno, late)
            elif isinstance(child, ast.Import):
                for a in child.names:
                    yield Import(name, a.name, child.lineno, late)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, late or inside)

    return walk(tree, False)


def idle_late_imports(root: Path) -> list[str]:
    """Imports inside functions that spare nothing: the module has it, or it is quick to load and
    always there."""
    known = modules(root)
    found = [i for n, p in known.items() for i in imports(n, ast.parse(p.read_text()), known)]
    early: dict[str, list[str]] = {name: [] for name in known}
    for i in found:
        if not i.late:
            early[i.module].append(i.target)

    def parents(name: str) -> list[str]:
        return [name.rsplit(".", k)[0] for k in range(1, name.count(".") + 1)]

    def heavy(name: str) -> set[str]:
        """What is loaded with ``name`` and is heavy."""
        seen, todo = {name}, [name]
        while todo:
            at = todo.pop()
            new = {*early.get(at, ()), *parents(at)} - seen
            seen |= new
            todo += sorted(new)
        return {part for at in seen for part in (at, *parents(at))} & HEAVY

    return [
        f"{i.module}:{i.line}: {i.target}"
        for i in found
        if i.late and not heavy(i.target) - heavy(i.module)
    ]


def test_imports_inside_functions_spare_what_is_slow_or_optional() -> None:
    assert idle_late_imports(ROOT) == []


def test_an_idle_late_import_is_found(house: Path) -> None:
    path = house / "irprune" / "ir" / "size.py"
    path.write_text(f"{path.read_text()}\n\ndef late() -> None:\n    import irprune.errors\n")
    assert [line.split(":")[0] for line in idle_late_imports(house)] == ["irprune.ir.size"]
