"""Modules under the names that they had before are found for one release, with a warning."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import irprune
from irprune.analysis.layers import layer_of
from irprune.base.moved import MOVED, Moved, install
from irprune.validate.proof_result import Proof


def python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_everything_that_moved_is_where_the_table_says() -> None:
    root = Path(irprune.__file__).parent
    for before, now in MOVED.items():
        assert importlib.util.find_spec(now) is not None, now
        old = root.joinpath(*before.split(".")[1:])
        assert not old.with_suffix(".py").exists() and not (old / "__init__.py").exists(), before


@pytest.mark.parametrize("before", sorted(MOVED))
def test_an_old_name_is_the_module_itself_with_a_warning(before: str) -> None:
    sys.modules.pop(before, None)
    with pytest.warns(DeprecationWarning, match=f"^{before} is {MOVED[before]} now$") as told:
        module = importlib.import_module(before)
    assert module is importlib.import_module(MOVED[before])
    assert module.__name__ == MOVED[before] and module.__spec__ is not None
    assert module.__spec__.name == MOVED[before]
    assert len([w for w in told if w.category is DeprecationWarning]) == 1
    sys.modules.pop(before)


def test_a_module_of_a_package_that_moved_is_loaded_once() -> None:
    code = (
        "from irprune.importance.magnitude import Magnitude; import irprune.criteria.magnitude as m; "
        "from irprune.criteria import criteria; print(Magnitude is m.Magnitude, len(criteria()) > 5)"
    )
    made = python(code)
    assert (made.returncode, made.stdout.strip()) == (0, "True True"), made.stderr


def test_the_warning_names_the_line_that_imports() -> None:
    made = python("import irprune.plan\nprint('went on')", "-W", "default")
    assert made.stdout.strip() == "went on"
    assert "<string>:1: DeprecationWarning: irprune.plan is irprune.choice.plan now" in made.stderr


def test_names_of_modules_that_are_packages_now() -> None:
    with pytest.warns(DeprecationWarning, match="emit_onnx is in irprune.emit.onnx.emitter now"):
        from irprune.emit.onnx import emit_onnx  # type: ignore[attr-defined]
    assert callable(emit_onnx)
    with pytest.warns(DeprecationWarning, match="run_demo is in irprune.demo.run now"):
        from irprune.demo import run_demo  # type: ignore[attr-defined]
    assert callable(run_demo)
    with pytest.raises(ImportError, match="no_such"):
        from irprune.demo import no_such  # type: ignore[attr-defined]  # noqa: F401


def test_names_that_have_another_form_now() -> None:
    with pytest.warns(DeprecationWarning, match=r"METHODS is irprune\.passes\.repairs"):
        from irprune.api.repair import METHODS  # type: ignore[attr-defined]
    assert "least_squares" in METHODS
    with pytest.warns(DeprecationWarning, match="SecondPass"):
        from irprune.validate.proof_result import Shaken  # type: ignore[attr-defined]
    second = Shaken(1e-12, 1e-9, "float64")
    proof = Proof(0.0, 1e-4, second_pass=second)
    with pytest.warns(DeprecationWarning, match="Proof.second_pass"):
        assert proof.shaken is second
    assert proof.as_dict()["shaken"] == proof.as_dict()["second_pass"]


def test_methods_that_have_another_name_now() -> None:
    layer = layer_of(irprune.capture(torch.nn.Linear(3, 2), (torch.ones(1, 3),)).nodes[0])
    assert layer is not None
    with pytest.warns(DeprecationWarning, match=r"Layer\.held is Layer\.load_matrix now"):
        assert torch.equal(layer.held(), layer.load_matrix())


def test_capture_stays_the_function() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"its modules are in irprune\.frontend"):
        importlib.import_module("irprune.capture.onnx")
    assert callable(irprune.capture) and irprune.capture.__name__ == "capture"


def test_what_never_was_is_not_found_and_asking_loads_nothing() -> None:
    install()
    assert sum(isinstance(finder, Moved) for finder in sys.meta_path) == 1
    for name in ("irprune.no_such", "irprune.importance.no_such", "no_such"):
        with pytest.raises(ModuleNotFoundError), pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **kwargs: None)
            importlib.import_module(name)
    made = python(
        "import irprune, sys; print([m for m in ('torch', 'onnx', 'numpy') if m in sys.modules])"
    )
    assert (made.returncode, made.stdout.strip()) == (0, "[]"), made.stderr
