"""Modules under the names that they had up to 0.1: importing one gives the module under its new
name, with a DeprecationWarning. They go with the release after the next.

The import system asks ``Moved`` before anything else, so that a package under its old name does not
load its modules a second time. Nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "Moved", "install", "names_of", "renamed", "renamed_method"]

_BY_PACKAGE = {  # package now -> modules: under their names before, and now
    "irprune.analysis": {
        "irprune.choice.blocks": "blocks",
        "irprune.choice.widths": "widths",
        "irprune.cost": "cost",
        "irprune.explain": "explain",
        "irprune.ir.kind": "kinds",
        "irprune.layers": "layers",
        "irprune.outline": "outline",
    },
    "irprune.api": {
        "irprune.arguments": "checks",
        "irprune.latency.search": "latency_search",
        "irprune.latency.whole": "latency_whole",
        "irprune.options": "options",
        "irprune.pruned": "pruned",
        "irprune.repair": "repair",
        "irprune.report": "report",
        "irprune.validate.runner": "runner",
    },
    "irprune.base": {
        "irprune.concurrent": "concurrent",
        "irprune.emit.aside": "atomic_write",
        "irprune.quiet": "quiet",
        "irprune.validate.tolerance": "tolerance",
    },
    "irprune.choice": {"irprune.plan": "plan"},
    "irprune.demo": {"irprune.digits": "digits"},
    "irprune.driver": {"irprune.ir.verify": "verify"},
    "irprune.ir": {"irprune.ir.kept": "selection"},
    "irprune.emit.bridge": {
        "irprune.emit.onnx_module": "onnx_module",
        "irprune.emit.torch_onnx": "torch_onnx",
    },
    "irprune.emit.onnx": {
        "irprune.emit.onnx_edit": "edit",
        "irprune.emit.onnx_file": "file",
    },
    "irprune.emit.torch": {
        "irprune.emit.folder": "saved",
        "irprune.emit.hugging_face": "hugging_face",
        "irprune.emit.instance": "instance",
        "irprune.emit.layers": "layers",
        "irprune.emit.module": "module",
        "irprune.emit.signature": "signature",
        "irprune.emit.source": "source",
        "irprune.emit.spell": "spelling",
    },
    "irprune.ops": {"irprune.emit.onnx_recurrent": "layered", "irprune.ops.families": "aten"},
    "irprune.ops.onnx": {"irprune.ops.onnx.spell": "importer"},
    "irprune.ops.rule": {"irprune.ops.signature": "signature"},
    "irprune.ops.torch": {"irprune.emit.torch_onnx_gaps": "onnx_gaps"},
    "irprune.run": {
        "irprune.calibration": "calibration",
        "irprune.gradients": "gradients",
        "irprune.statistics": "statistics",
        "irprune.validate.inputs": "inputs",
        "irprune.validate.interpret": "interpret",
        "irprune.validate.latency": "timing",
        "irprune.validate.meta": "meta",
        "irprune.validate.oracle": "oracle",
        "irprune.validate.precision": "precision",
    },
    "irprune.testing": {"irprune.validate.onnx_backend": "onnx_backend"},
    "irprune.training": {
        "irprune.distill": "distill",
        "irprune.iterative": "iterative",
        "irprune.sparsity": "sparsity",
    },
    "irprune.validate": {"irprune.validate.verdict": "proof_result"},
    "irprune": {"irprune.importance": "criteria"},
}
MOVED = {
    before: f"{package}.{now}"
    for package, own in _BY_PACKAGE.items()
    for before, now in own.items()
}
_CAPTURE = "irprune.capture"  # a function now; its modules went to irprune.frontend


def _now(name: str) -> str | None:
    """The name now of the module ``name``, which may lie in a package that moved."""
    if name in MOVED or not name.startswith("irprune."):
        return MOVED.get(name)
    parent, _, own = name.rpartition(".")
    moved = _now(parent)
    return None if moved is None else f"{moved}.{own}"


class Moved(MetaPathFinder, Loader):
    """Finds modules under their old names, and the modules of packages under theirs."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == _CAPTURE:
            raise ModuleNotFoundError(
                "irprune.capture is a function; its modules are in irprune.frontend", name=name
            )
        return None if _now(name) is None else ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        now = _now(spec.name)
        assert now is not None
        warnings.warn(f"{spec.name} is {now} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(now)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module ran under its new name, and keeps the specification of that."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let the import system find what has moved."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, Moved())


def names_of(package: str, now: str, names: Sequence[str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package that has the name of a module before, whose ``names`` are in
    the module ``now``."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(f"{package}.{name} is in {now} now", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(now), name)

    return get


def renamed_method(before: str, now: str) -> Callable[..., Any]:
    """A method under its name ``before``, as in ``Class.method``; it is called ``now``."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        text = f"{before} is {before.rpartition('.')[0]}.{now} now"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return getattr(self, now)(*args, **kwargs)

    return call


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module in which public names changed: ``names`` before -> now."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        text = f"{module}.{name} is called {names[name]} now"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return get
