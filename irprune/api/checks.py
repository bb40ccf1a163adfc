"""What the public calls are given, checked by type at the door: one line for each mistake, before
anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from irprune.errors import IrpruneError
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.passes.repairs import repairs

__all__ = ["check_options", "check_repairs", "check_replay", "check_weights", "ranked"]


def _texts(x: Any) -> bool:
    return isinstance(x, str) or (
        isinstance(x, Iterable)
        and not isinstance(x, Mapping)
        and all(isinstance(p, str) for p in x)
    )


def _shares(x: Any) -> bool:
    return isinstance(x, Mapping) and all(
        isinstance(k, str) and isinstance(v, Real) and not isinstance(v, bool) for k, v in x.items()
    )


def _budget(x: Any) -> bool:
    return isinstance(x, Mapping) and _shares(
        {k: v for k, v in x.items() if k != "latency" or not isinstance(v, str)}
    )


_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "keep": (_texts, 'patterns over weights, groups and modules, as in ["head*"]'),
    "ratios": (_shares, 'ratios by pattern, as in {"layer1*": 0.25}'),
    "budget": (lambda x: x is None or _budget(x), 'what to keep, as in {"macs": 0.5}'),
    "importance": (
        lambda x: x is None or isinstance(x, str) or callable(getattr(x, "scores", None)),
        "the name of a criterion, or an object with scores(graph, groups, blocks)",
    ),
    "repair": (
        lambda x: x is None or isinstance(x, bool) or _texts(x),
        'names of repairs, as in ["least_squares"]',
    ),
    "seed": (
        lambda x: x is None or (isinstance(x, int) and not isinstance(x, bool)),
        "a whole number",
    ),
    "loss": (
        lambda x: x is None or callable(x),
        "a function of outputs and batch that gives a number",
    ),
}


def check_options(options: Any) -> None:
    """Raises IrpruneError for an option that holds another kind of thing than it takes."""
    for name, (fits, takes) in _OPTIONS.items():
        value = getattr(options, name)
        if not fits(value):
            raise IrpruneError(f"{name} is {value!r}", "", f"it takes {takes}")
    if not (options.repair is None or isinstance(options.repair, bool)):
        check_repairs((options.repair,) if isinstance(options.repair, str) else options.repair)


def check_repairs(names: Iterable[str]) -> None:
    """Raises IrpruneError for a repair that there is none of."""
    for name in names:
        if name not in repairs():
            raise IrpruneError(
                f"no repair is called {name!r}", "repair", "one of " + ", ".join(repairs())
            )


_REPLAYED = ("device", "dynamic_shapes", "calibration", "repair", "strict")


def check_replay(settings: Mapping[str, Any]) -> None:
    """Raises IrpruneError for an option that a plan has decided already."""
    for name in settings:
        if name not in _REPLAYED:
            raise IrpruneError(
                f"a plan is replayed without the option {name!r}",
                "",
                f"it takes {', '.join(('proof', *_REPLAYED))}",
            )


def check_weights(graph: Graph, skip: Iterable[str] = ()) -> None:
    """Raises IrpruneError for a parameter that holds a NaN: no importance can be told from it;
    ``skip`` names those checked elsewhere."""
    passed = set(skip)
    for weight in graph.weights.values():
        if weight.name in passed or weight.kind != "parameter" or not is_real(weight.dtype):
            continue
        if _has_nan(weight.load()):
            raise IrpruneError(
                "a weight holds NaN",
                weight.name,
                "train or load the model again: NaN weights cannot be ranked",
            )


def ranked(graph: Graph) -> list[str]:
    """The weights that magnitude reads whole, and refuses with NaN in them: matrices and kernels in
    a free group."""
    held = {m.weight.name: m.weight for g in groups_of(graph) if not g.frozen for m in g.members}
    return [
        name
        for name, w in held.items()
        if w.kind == "parameter" and sum(s != 1 for s in w.shape) > 1
    ]


def _has_nan(array: Any) -> bool:
    """Whether ``array`` (torch or numpy) holds a NaN; the sum is NaN then, and seldom otherwise."""
    if getattr(array, "is_meta", False):
        return False
    array = array.detach() if hasattr(array, "detach") else array
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a mask of the largest negative numbers is no news
        total = float(array.sum())
    return total != total and bool((array != array).any())
