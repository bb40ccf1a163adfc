"""The model cases irprune is tested on: one file each, found by name or by tag.

Every file has the same anatomy: a docstring that says what the architecture asks of a pruner, the
modules, ``build(small=False, ...)``, ``example_inputs(small=False)`` and ``CASE``. The caller
seeds; both draw from the global generator. ``small=True`` gives the same structure with few layers
and narrow widths."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Case:
    """One architecture: how it is built, what it is called with, and what is expected of a capture.

    ``dynamic`` is a ``dynamic_shapes`` spec for ``torch.export``, keyed by the parameters of
    ``forward``. ``refused`` is the reason why no graph can be captured, for the cases that must be
    turned away. ``left`` is the share of parameters that a ratio of 0.5 leaves of the small model,
    where all that can be reached is reached: what freezes by mistake shows there."""

    name: str
    tags: tuple[str, ...]
    build: Callable[..., nn.Module]
    example_inputs: Callable[..., Inputs]
    dynamic: Mapping[str, Any] | None = None
    refused: str | None = None
    left: float | None = None

    def __repr__(self) -> str:
        return f"Case({self.name!r}, {' '.join(self.tags)})"


def names() -> list[str]:
    """The names of all cases, sorted; nothing is imported for it."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Case:
    """The case called ``name``; raises KeyError with the known names where there is none."""
    if name not in names():
        raise KeyError(f"no model case {name!r}; there are: {', '.join(names())}")
    case = importlib.import_module(f"{__name__}.{name}").CASE
    if not isinstance(case, Case) or case.name != name:
        raise TypeError(f"models/{name}.py: CASE must be a Case named {name!r}, found {case!r}")
    return case


def cases(*tags: str) -> list[Case]:
    """All cases that carry every one of ``tags``, sorted by name."""
    return [case for case in map(get, names()) if set(tags) <= set(case.tags)]
