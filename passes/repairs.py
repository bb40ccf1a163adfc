"""Repairs by name: passes that make a cut graph compute again what the original computed. One file
each, ``repair_*.py``; a class joins by ``@repair(name)``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from irprune import passes
from irprune.base.entry_points import load_entry_points
from irprune.base.extension import check_dataclass, check_methods, check_name, is_again
from irprune.base.near import meant
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.passes.result import PassResult

if TYPE_CHECKING:
    from irprune.run.calibration import Calibration

__all__ = ["Repair", "repair", "repair_of", "repairs"]


class Repair(Protocol):
    """A pass over the cut graph. Its first two fields are ``original``, the analysed graph with its
    choice, and ``calibration``, the data; further ones are options with defaults."""

    def __init__(self, original: Graph, calibration: Calibration, **options: Any) -> None: ...

    def run(self, graph: Graph) -> PassResult:
        """Change the weights of ``graph``."""


_REPAIRS: dict[str, type[Repair]] = {}
_LOADED: list[str] = []
R = TypeVar("R", bound=type[Repair])


def repair(name: str) -> Callable[[R], R]:
    """Register a repair under ``name``.

    Raises TypeError for what is no frozen dataclass with ``run`` and the fields of a ``Repair``,
    and ValueError where the name is taken by another class."""
    check_name("repair", name)

    def register(made: R) -> R:
        check_methods(made, "repair", name, {"run": ("graph",)})
        check_dataclass(made, "repair", name, ("original", "calibration"))
        if name in _REPAIRS and not is_again(made, _REPAIRS[name]):
            raise ValueError(f"repair {name!r} is declared twice")
        _REPAIRS[name] = made
        return made

    return register


def repairs() -> dict[str, type[Repair]]:
    """All repairs, sorted by name; imports the ``repair_*.py`` of this folder on first use."""
    if not _LOADED:
        _LOADED.append("done")
        for info in sorted(pkgutil.iter_modules(passes.__path__), key=lambda m: m.name):
            if info.name.startswith("repair_"):
                importlib.import_module(f"{passes.__name__}.{info.name}")
        load_entry_points("irprune.repairs")
    return dict(sorted(_REPAIRS.items()))


def repair_of(name: str) -> type[Repair]:
    """The repair called ``name``. Raises IrpruneError where there is none."""
    known = repairs()
    if name not in known:
        hint = meant(name, known, "one of " + ", ".join(known))
        raise IrpruneError(f"no repair is called {name!r}", "repair", hint)
    return known[name]
