"""What is installed: the packages listed are the folders there are, and ``passes`` goes by one
name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pages import blocks

ROOT = Path(__file__).parents[2]
GUIDES = {  # a page, and the file on it that a contributor begins with
    "docs/guides/pass.md": "my_pass.py",
    "docs/guides/criterion.md": "my_criterion.py",
    "docs/guides/operator.md": "expand_dims.py",
    "CONTRIBUTING.md": "repair_rescale.py",
}


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
    assert (ROOT / "irprune" / "passes").readlink() == Path("../passes")
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


# -- what is built, installed and used -------------------------------------------------------------

USER = """
import irprune
import irprune.passes.slice
from irprune.passes import PassResult

reveal_type(irprune.passes.slice.Slice)
reveal_type(irprune.prune)
result: PassResult = irprune.passes.slice.Slice().run(irprune.capture(None))
pruned = irprune.prune("m.onnx", ratio=0.25, keep=["head*"], budget={"macs": 0.5})
pruned.save("folder")
irprune.apply_plan("m.onnx", pruned.plan, device="cpu", repair="bias")
"""
WRONG = {  # a line, and what is said of it
    'irprune.prune("m.onnx", ratio="half")': 'Argument "ratio" to "prune" has incompatible type',
    'irprune.prune("m.onnx", ration=0.5)': 'Unexpected keyword argument "ration" for "prune"',
    'irprune.prune("m.onnx", budget=0.5)': 'Argument "budget" to "prune" has incompatible type',
    'irprune.apply_plan("m", {}, ratio=0.5)': 'Unexpected keyword argument "ratio"',
    "irprune.Options(seed=1.5)": 'Argument "seed" to "Options" has incompatible type',
    "irprune.passes.slice.Slice(1)": 'Too many arguments for "Slice"',
    "irprune.schedule(None, steps='5')": 'Argument "steps" to "schedule" has incompatible type',
}


def members(folder: Path) -> set[str]:
    """The modules that belong into a wheel, and the file that says that they are typed."""
    own = {
        f"irprune/{p.relative_to(folder / 'irprune').as_posix()}"
        for p in (folder / "irprune").rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }
    return (
        own
        | {f"irprune/passes/{p.name}" for p in (folder / "passes").glob("*.py")}
        | {"irprune/py.typed"}
    )


def build(kind: str, where: Path) -> Path:
    """Build ``where`` into its folder dist, without the network."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    made = python(code, where)
    assert made.returncode == 0, made.stderr[-2000:]
    return where / "dist" / made.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of a copy, and the wheel that is built of it."""
    pytest.importorskip("setuptools", minversion="77")
    copy, unpacked = (tmp_path_factory.mktemp(name) for name in ("copy", "unpacked"))
    for name in ("irprune", "passes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    sdist = build("sdist", copy)
    with tarfile.open(sdist) as packed:
        packed.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return sdist, build("wheel", source)


def test_sdist_and_wheel_hold_every_module_once(built: tuple[Path, Path]) -> None:
    wheel = [n for n in zipfile.ZipFile(built[1]).namelist() if n.startswith("irprune/")]
    assert len(wheel) == len(set(wheel))
    assert set(wheel) == members(ROOT)


def test_an_editable_installation_is_a_path(tmp_path: Path) -> None:
    """A folder named irprune where a script lies, the clone for one, must not stand before the
    package, as it does where a finder of imports maps names to folders."""
    pytest.importorskip("setuptools", minversion="77")
    for name in ("irprune", "passes"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    wheel = zipfile.ZipFile(build("editable", tmp_path))
    (path,) = (n for n in wheel.namelist() if n.endswith(".pth"))
    assert wheel.read(path).decode().strip() == str(tmp_path)


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which sees the packages that run this test."""
    venv = tmp_path_factory.mktemp("venv")
    made = subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=False)
    assert made.returncode == 0
    (packages,) = venv.glob("lib/python*/site-packages")
    with zipfile.ZipFile(built[1]) as wheel:  # of pure Python: to install it is to unpack it
        wheel.extractall(packages)
    seen = [p for p in sys.path if p.endswith("site-packages")]
    (packages / "seen.pth").write_text("\n".join(seen))
    return venv / "bin" / "python"


def test_what_is_installed_works(installed: Path, tmp_path: Path) -> None:
    code = (
        "import irprune.cli, irprune.passes.slice as s, sys; print(s.__file__); "
        "sys.exit(irprune.cli.run(['passes']))"
    )
    made = subprocess.run(
        [installed, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    where, *rest = made.stdout.splitlines()
    assert Path(where).is_relative_to(installed.parents[1]) and "slice" in "".join(rest)


def strictly(installed: Path, folder: Path, *scripts: str) -> str:
    """What mypy --strict says of scripts in a folder beside the installed package."""
    heavy = "torch.* onnx.* numpy.* onnxruntime.* safetensors.* click.* rich.*".split()
    settings = folder / "mypy.ini"
    settings.write_text("[mypy]\n" + "".join(f"[mypy-{m}]\nfollow_imports = skip\n" for m in heavy))
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed)]
    command += ["--config-file", str(settings), "--cache-dir", str(folder), *scripts]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("page", GUIDES)
def test_what_the_guides_show_is_typed(page: str, installed: Path, tmp_path: Path) -> None:
    shown = {b.title: b.text for b in blocks((ROOT / page).read_text())}
    (tmp_path / GUIDES[page]).write_text(shown[GUIDES[page]])
    said = strictly(installed, tmp_path, GUIDES[page])
    assert said.startswith("Success"), said


def test_a_users_script_is_checked_by_mypy(installed: Path, tmp_path: Path) -> None:
    """What is right passes, each wrong line is found, and a pass is no Any."""
    script = tmp_path / "script.py"
    script.write_text(USER + "\n".join(WRONG) + "\n")
    made = strictly(installed, tmp_path, "script.py")
    told: dict[int, list[str]] = {}
    for line in made.splitlines()[:-1]:
        file, number, *_ = line.split(":")
        assert file == "script.py", line
        told.setdefault(int(number), []).append(line)
    first = USER.count("\n") + 1
    types = [line for n in sorted(told) if n < first for line in told.pop(n)]
    assert len(types) == 2 and all(": note: Revealed type is" in line for line in types), types
    assert "irprune.passes.slice.Slice" in types[0] and 'Any"' not in types[0]
    assert "'ratio'?: float" in types[1] and types[1].endswith('irprune.api.pruned.Pruned"')
    for number, (line, said) in enumerate(WRONG.items(), first):
        assert any(said in text for text in told.get(number, [])), (line, told.get(number))
