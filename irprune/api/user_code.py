"""The user's own code: a module at a file's path or of a dotted name, and a callable in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from irprune.errors import IrpruneError, gist, users_line

__all__ = ["callable_at", "import_place", "must_be_file"]


def must_be_file(path: Path) -> None:
    """Raises IrpruneError where ``path`` is no file, or an empty one."""
    if not path.exists():
        raise IrpruneError("no such file", str(path), "check the path")
    if path.is_dir():
        raise IrpruneError("this is a folder, not a file", str(path), "give the file in it")
    if path.stat().st_size == 0:
        raise IrpruneError("the file is empty", str(path), "make it again")


def callable_at(spec: str) -> Callable[..., Any]:
    """The function that ``file.py:name`` or ``package.module:name`` names. Raises IrpruneError
    where there is none."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise IrpruneError("no function is named", spec, "write FILE.py:NAME")
    found = getattr(import_place(place, "name a Python file, or a module"), name, None)
    if not callable(found):
        raise IrpruneError(f"there is no function {name!r}", place, "write FILE.py:NAME")
    made: Callable[..., Any] = found
    return made


def import_place(place: str, hint: str) -> ModuleType:
    """The module at the path of a file, or of a dotted name. Raises IrpruneError, with ``hint``
    where there is none."""
    path = Path(place)
    try:
        if path.suffix == ".py":
            must_be_file(path)
            return _import_file(path.resolve())
        if not all(part.isidentifier() for part in place.split(".")):
            raise IrpruneError("no such file or module", place, hint)
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    except ModuleNotFoundError as missing:
        raise IrpruneError(
            f"no module {missing.name!r}", place, f"install it; or else {hint}"
        ) from missing
    except IrpruneError:
        raise
    except Exception as broken:  # whatever the user's code raises
        raise IrpruneError(
            f"cannot be imported: {gist(broken)}",
            users_line(broken) or place,
            "it must import on its own",
        ) from broken


def _import_file(path: Path) -> ModuleType:
    """A file as the module it is: inside a package by its dotted name, so that its own imports
    work."""
    parts = [path.stem]
    root = path.parent
    while (root / "__init__.py").exists():
        parts.insert(0, root.name)
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(parts)
    if len(parts) > 1:
        return importlib.import_module(name)
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if name not in sys.modules:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
