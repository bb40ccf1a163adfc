"""Which modules forward treats otherwise in training, and whether the graph, which is that of eval
mode, does so too."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from irprune.frontend.torch.build import LAYERS
from irprune.frontend.torch.own_backward import real_tensors
from irprune.ir.graph import Graph, Node
from irprune.ops.registry import lookup, operand_as
from irprune.ops.torch.layer_classes import drops_inside

__all__ = ["Asked", "lost_in_training", "modes_watched", "stochastic_depth", "with_rates"]

_HERE = str(Path(__file__).parent)  # what saves modes and puts them back
Asked = dict[int, tuple[nn.Module, str]]
"""By identity the modules that asked for their mode, each with the line that did."""


@contextlib.contextmanager
def modes_watched() -> Iterator[Asked]:
    """The modules that ask for ``self.training`` meanwhile. What modules hold is not changed."""
    asked: Asked = {}

    def get(module: nn.Module) -> bool:
        frame = sys._getframe(1)
        file = frame.f_code.co_filename
        if id(module) not in asked and not file.startswith(_HERE):
            asked[id(module)] = (module, f"{file}:{frame.f_lineno}")
        return bool(module.__dict__["training"])

    def put(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    before = nn.Module.__dict__.get("training")
    nn.Module.training = property(get, put)  # type: ignore[assignment]
    try:
        yield asked
    finally:
        if before is None:
            del nn.Module.training
        else:
            nn.Module.training = before


_ROWS, _CALLS = 64, 8


def stochastic_depth(module: nn.Module, rank: int) -> tuple[float, str] | None:
    """The probability with which ``module``, which gives back its input outside of training, makes
    0 of it in training, and whether of each ``row`` or of the whole ``batch``; None where it does
    something else. Told by what it makes of ones."""
    modes = [(m, m.__dict__["training"]) for m in module.modules()]
    with real_tensors(), torch.no_grad():
        if not rank or next(module.parameters(), None) is not None:
            return None
        ones = torch.ones((_ROWS, *(2,) * (rank - 1)))
        try:
            for m, _ in modes:
                m.__dict__["training"] = True
            made = [module.forward(torch.ones_like(ones)) for _ in range(_CALLS)]
        except Exception:  # it takes other tensors than these
            return None
        finally:
            for m, mode in modes:
                m.__dict__["training"] = mode
        if any(not isinstance(t, torch.Tensor) or t.shape != ones.shape for t in made):
            return None
        rows = torch.stack(made).reshape(_CALLS, _ROWS, -1)
        kept = float(rows.max())
        whole = bool((rows == rows[:, :, :1]).all()) and bool(((rows == 0) | (rows == kept)).all())
        if not whole or kept <= 1:
            return None
        alike = bool((rows == rows[:, :1]).all()) and not bool((rows == rows[:1]).all())
        return round(1 - 1 / kept, 6), "batch" if alike else "row"


def with_rates(graph: Graph, trained: Sequence[Node]) -> set[str]:
    """Give the operators of ``graph`` that leave something out at random in training the share that
    it is there, where ``trained``, the operators of a call in training, are the same but for that.
    Returns the modules, by path, in which all operators are the same."""
    same: set[str] = set()
    own, there = _by_scope(graph.nodes), _by_scope(trained)
    for scope in there.keys() | own.keys() if trained else ():
        pairs = list(zip(own.get(scope, []), there.get(scope, []), strict=False))
        if len(own.get(scope, [])) != len(there.get(scope, [])) or any(
            a.op != b.op for a, b in pairs
        ):
            continue
        same.add(scope)
        for node, twin in pairs:
            entry = lookup(node)
            if entry is not None and entry.rate and (rate := twin.attrs.get(entry.rate)):
                node.attrs[f"training_{entry.rate}"] = rate
    return same


def _by_scope(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in nodes:
        entry = lookup(node)
        # a view that the recorder took again, or a copy, makes no difference
        idle = entry is not None and entry.idle is not None and entry.idle(node)
        if entry is None or not (entry.stops or entry.is_view or idle):
            found.setdefault(node.origin.scope, []).append(node)
    return found


def lost_in_training(
    model: nn.Module, asked: Asked, graph: Graph, same: Iterable[str] = ()
) -> Iterator[str]:
    """A line for each kind of module that would do something else in training, which the graph does
    not say. ``same`` are modules, by path, that are known not to."""
    paths = {id(m): n for n, m in model.named_modules()}
    kept = set(same)
    for node in graph.nodes:
        entry = lookup(node)
        if entry is not None and (
            entry.trains
            or entry.drops
            or operand_as(node, "mean") is not None
            or f"training_{entry.rate}" in node.attrs
        ):
            kept.add(node.origin.scope)
    found: dict[tuple[str, str], list[str]] = {}
    for module, line in asked.values():
        path = paths.get(id(module))
        if path is None or path in kept or not _matters(module, line):
            continue
        found.setdefault((type(module).__name__, line), []).append(path or "the model")
    for (kind, line), names in found.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        at = line.replace("\\", "/").rpartition("/")[2]
        yield (f"what {kind} does in training alone is not in the module: {names[0]}{more} ({at})")


def _matters(module: nn.Module, line: str) -> bool:
    """Whether what ``module`` asked its mode for is not an argument of the operator that it
    calls."""
    if not line.startswith(LAYERS):
        return True
    return drops_inside(module)
