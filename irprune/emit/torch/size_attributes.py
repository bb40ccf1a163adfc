"""Sizes that a user's modules hold in attributes of their own (``self.num_heads``): which of them
the cut changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from irprune.ir.graph import Graph
from irprune.ops.torch.layer_classes import layer_sizes

__all__ = ["SizeAttribute", "candidates", "stale"]


Changes = dict[str, tuple[dict[int, set[int]], dict[int, set[int]]]]
"""Old sizes -> new ones by module path: in attributes of nodes, and in shapes of values."""


@dataclass(frozen=True)
class SizeAttribute:
    """An attribute that may hold a size: ``key`` is the same for all instances of a class, which
    are decided together."""

    module: Any
    path: str
    name: str
    old: Any
    new: Any
    sure: bool

    @property
    def key(self) -> tuple[type, str]:
        return type(self.module), self.name


def candidates(model: nn.Module, whole: Graph, cut: Graph) -> Iterator[SizeAttribute]:
    """Integers (alone or in tuples and lists) of modules that equal a size which the cut changed in
    that module; layers whose sizes are known have none."""
    changes = _changes(whole, cut)
    for path, module in model.named_modules():
        own = type(module).__module__.startswith(("torch.nn.", "transformers.pytorch_utils"))
        if own and any(True for _ in layer_sizes(module, None)):
            continue
        told, seen = _below(changes, path)
        for name, value in list(vars(module).items()):
            if name.startswith("_") or name == "training":
                continue
            for change, sure in ((told, True), (seen, False)):
                new = _renewed(value, change)
                if new is not None and new != value:
                    yield SizeAttribute(module, path, name, value, new, sure)
                    break


def _below(changes: Changes, path: str) -> tuple[dict[int, int], dict[int, int]]:
    """Old size -> new size in the module at ``path`` and below, from attributes of nodes and from
    shapes. Ambiguous ones are left out."""
    return _at(
        changes, *(s for s in changes if s == path or path == "" or s.startswith(f"{path}."))
    )


def _at(changes: Changes, *scopes: str) -> tuple[dict[int, int], dict[int, int]]:
    """The same of these modules alone."""
    merged: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
    for scope in scopes:
        if maps := changes.get(scope):
            for into, one in zip(merged, maps, strict=True):
                for old, new in one.items():
                    into.setdefault(old, set()).update(new)
    return tuple({old: min(new) for old, new in m.items() if len(new - {old}) == 1} for m in merged)  # type: ignore[return-value]


def _changes(whole: Graph, cut: Graph) -> Changes:
    """For each module path the sizes before and after, in the attributes of its nodes and in the
    shapes of their values."""
    after = {node.outputs[0].name: node for node in cut.nodes if node.outputs}
    out: Changes = {}
    for node in whole.nodes:
        twin = after.get(node.outputs[0].name) if node.outputs else None
        if twin is None:
            continue
        told, seen = out.setdefault(node.origin.scope, ({}, {}))
        for name, value in node.attrs.items():
            for a, b in _pairs(value, twin.attrs.get(name)):
                told.setdefault(a, set()).add(b)
        for v, w in (
            *zip(node.inputs, twin.inputs, strict=False),
            *zip(node.outputs, twin.outputs, strict=False),
        ):
            if v is not None and w is not None:
                for a, b in _pairs(list(v.type.shape or ()), list(w.type.shape or ())):
                    seen.setdefault(a, set()).add(b)
    return out


def _pairs(a: Any, b: Any) -> Iterator[tuple[int, int]]:
    if isinstance(a, int) and isinstance(b, int) and not isinstance(a, bool):
        yield a, b
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from _pairs(x, y)


def _renewed(value: Any, change: dict[int, int]) -> Any:
    """``value`` with its sizes replaced; None where it is nothing that holds sizes."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return change.get(value, value)
    if (
        type(value) in (list, tuple)
        and value
        and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
    ):
        return type(value)(change.get(x, x) for x in value)
    return None


# -- attributes that forward does not read ---------------------------------------------------------

_WIDTH = re.compile(
    r"(^|_)(features|channels|chs|planes|inplanes|width|dim|d_model|n_embd|"
    r"(hidden|head_hidden|embed|embedding|intermediate|head)_size)$"
)


def stale(model: nn.Module, whole: Graph, cut: Graph) -> Iterator[SizeAttribute | str]:
    """Attributes by the name of a width (``num_features``, ``embed_dim``) that still hold a size
    which the cut changed: with the new size where there is one, else a text that names it.

    Descriptions of stages (a list of dictionaries with ``module`` and ``num_chs``) are among
    them."""
    changes = _changes(whole, cut)
    for path, module in model.named_modules():
        if any(True for _ in layer_sizes(module, None)):
            continue
        maps = (*_at(changes, path), *_below(changes, path))
        read = _read_by_layers(whole, cut, path)
        old_sizes = _all_below(changes, path)
        for name, value in list(vars(module).items()):
            if isinstance(value, int) and not isinstance(value, bool) and _WIDTH.search(name):
                if len(read.get(value, ())) == 1:
                    new = min(read[value])
                elif value in read:
                    new = None
                else:
                    new = next((m[value] for m in maps if value in m), None)
                if new is not None and new != value:
                    yield SizeAttribute(module, path, name, value, new, False)
                elif new is None and value in old_sizes:
                    yield f"{path}.{name}" if path else name
            elif isinstance(value, list) and value and all(map(_is_stage, value)):
                made = [_renewed_stage(changes, path, stage) for stage in value]
                if made != value:
                    yield SizeAttribute(module, path, name, value, made, False)


def _read_by_layers(whole: Graph, cut: Graph, path: str) -> dict[int, set[int]]:
    """Old widths -> new ones of what the layers read that lie in the module at ``path`` itself: a
    head's input tells of two stages that had one width which was meant."""
    out: dict[int, set[int]] = {}
    start = f"{path}." if path else ""
    for name, weight in whole.weights.items():
        inside = name.removeprefix(start)
        plain = name.startswith(start) and inside.count(".") == 1 and inside.endswith(".weight")
        if plain and weight.rank > 1 and (twin := cut.weights.get(name)) is not None:
            for a, b in _pairs([weight.shape[1]], [twin.shape[1]]):
                out.setdefault(a, set()).add(b)
    return out


def _all_below(changes: Changes, path: str) -> set[int]:
    """The sizes in the module at ``path`` and below that the cut changed somewhere."""
    return {
        old
        for scope, maps in changes.items()
        if scope == path or path == "" or scope.startswith(f"{path}.")
        for one in maps
        for old, new in one.items()
        if new != {old}
    }


def _is_stage(x: Any) -> bool:
    return (
        isinstance(x, dict)
        and isinstance(x.get("module"), str)
        and isinstance(x.get("num_chs"), int)
    )


def _renewed_stage(changes: Changes, path: str, stage: dict[str, Any]) -> dict[str, Any]:
    place = f"{path}.{stage['module']}" if path else stage["module"]
    told, seen = _below(changes, place)
    old = stage["num_chs"]
    return {**stage, "num_chs": told.get(old, seen.get(old, old))}
