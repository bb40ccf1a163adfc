"""The state of an emitted module: what stands at each name, and the code that puts and reads it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from irprune.emit.torch.code import (
    Code,
    attribute,
    call,
    is_identifier,
    literal,
    statement,
    subscript,
    variable,
)
from irprune.ir.graph import Weight
from irprune.ops.dtypes import TO_TORCH

__all__ = ["StateEntry", "held_at", "path_of", "put"]


@dataclass(frozen=True)
class StateEntry:
    """What stands at a name of the state: a weight of the graph, or a tensor that the graph does
    not read."""

    key: int
    load: Callable[[], Any]
    kind: str
    shape: list[Any]
    dtype: Any
    trainable: bool
    persistent: bool


def held_at(weight: Weight | None, entry: Any) -> StateEntry:
    if weight is not None:
        persistent = entry.persistent if entry is not None else weight.kind != "constant"
        return StateEntry(
            id(weight),
            weight.load,
            weight.kind,
            list(weight.shape),
            TO_TORCH[weight.dtype],
            weight.trainable,
            persistent,
        )
    tensor = entry.tensor
    return StateEntry(
        id(tensor),
        lambda: tensor,
        entry.kind,
        list(tensor.shape),
        tensor.dtype,
        tensor.requires_grad,
        entry.persistent,
    )


def put(place: str, item: Code, options: dict[str, Any] | None = None) -> ast.stmt:
    return statement(call("put", [variable("self"), place, item], options))


def path_of(place: str) -> Code:
    """``layer1.0.conv1`` as ``self.layer1[0].conv1``."""
    out = variable("self")
    for i, part in enumerate(place.split(".")):
        if is_identifier(part) and not part.startswith("__"):  # Python reads __x as _Model__x
            out = attribute(out, part)
        elif i and part.isascii() and part.isdigit() and str(int(part)) == part:
            out = subscript(out, [literal(int(part))])
        else:
            out = call("getattr", [out, part])
    return out
