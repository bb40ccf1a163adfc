"""Criteria: what makes an index of a group important. One file each; a class with ``scores`` joins
by ``@criterion(name)``.

``scores(graph, groups, blocks)`` returns for each group's leaf an array of its size, larger is more
important, with one row per block for leaves that may be chosen per block; groups that it can say
nothing about are left out."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from irprune.base.entry_points import load_entry_points
from irprune.base.extension import check_dataclass, check_methods, check_name, is_again
from irprune.base.near import meant
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group

__all__ = [
    "CRITERIA",
    "Importance",
    "Scores",
    "criteria",
    "criterion",
    "named",
    "refuses_nan",
]

Scores = NDArray[np.float64]


@runtime_checkable
class Importance(Protocol):
    """A criterion. Dataclass fields are its options."""

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """Scores of the groups' leaves: of shape (size,), or (size of ``blocks[leaf]``, size) for
        leaves in ``blocks``."""


CRITERIA: dict[str, Callable[..., Importance]] = {}
_REFUSING: dict[str, None] = {}
_LOADED: list[str] = []
C = TypeVar("C", bound=type[Importance])


def criterion(name: str, refuses_nan: bool = False) -> Callable[[C], C]:
    """Register a criterion under ``name``; ``refuses_nan`` says that it reads every matrix and
    kernel of a free group, and raises IrpruneError for a NaN there.

    Raises TypeError for what is no frozen dataclass with ``scores`` and defaults, and ValueError
    where the name is taken by another class."""
    check_name("criterion", name)

    def register(made: C) -> C:
        check_methods(made, "criterion", name, {"scores": ("graph", "groups", "blocks")})
        check_dataclass(made, "criterion", name)
        if name in CRITERIA and not is_again(made, CRITERIA[name]):
            raise ValueError(f"criterion {name!r} is declared twice")
        CRITERIA[name] = made
        if refuses_nan:
            _REFUSING[name] = None
        return made

    return register


def criteria() -> dict[str, Callable[..., Importance]]:
    """All criteria by name; imports the files of this folder on first use."""
    if not _LOADED:
        _LOADED.append("done")
        for info in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
            importlib.import_module(f"{__name__}.{info.name}")
        load_entry_points("irprune.criteria")
    return CRITERIA


def refuses_nan(importance: str | Importance) -> bool:
    """Whether the criterion of that name looks for NaN in matrices and kernels itself."""
    return isinstance(importance, str) and importance in criteria() and importance in _REFUSING


def named(importance: str | Importance, **options: Any) -> Importance:
    """The criterion called ``importance`` with those of ``options`` that it has; a criterion object
    is returned as it is.

    Raises IrpruneError for a name that there is none of, and for an option given (not None) that
    the criterion lacks."""
    if not isinstance(importance, str):
        return importance
    known = criteria()
    if importance not in known:
        raise IrpruneError(
            f"no criterion is called {importance!r}",
            "importance",
            meant(importance, known, "one of " + ", ".join(sorted(known))),
        )
    made = known[importance]
    has = sorted(f.name for f in fields(made))  # type: ignore[arg-type]
    given = {k: v for k, v in options.items() if v is not None}
    for option in given:
        if option not in has:
            raise IrpruneError(
                f"criterion {importance!r} has no option {option!r}",
                "importance",
                meant(option, has, f"it has {', '.join(has) or 'none'}"),
            )
    return made(**given)
