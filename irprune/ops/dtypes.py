"""Element types as torch knows them, derived from the table in ``irprune.ir.dtype``."""

from __future__ import annotations

from typing import Any

import torch

from irprune.ir.dtype import ELEMENT_TYPES

__all__ = ["FROM_TORCH", "TO_TORCH", "torch_attribute"]

TO_TORCH: dict[str, torch.dtype] = {
    t.name: getattr(torch, t.torch) for t in ELEMENT_TYPES.values() if t.torch
}
"""torch's type of each short name that torch computes with."""

FROM_TORCH: dict[torch.dtype, str] = {v: k for k, v in TO_TORCH.items()}
"""The short name of each of torch's types."""

_NAMING_TYPES = ("dtype", "out_dtype", "to")


def torch_attribute(name: str, value: Any) -> Any:
    """An attribute of a node as torch takes it: the short name of an element type becomes torch's
    type. ``empty`` lists a type and a shape for each result that a loop stacks."""
    if name in _NAMING_TYPES and isinstance(value, str):
        return TO_TORCH[value]
    if name == "empty":
        return [[TO_TORCH[dtype], shape] for dtype, shape in value]
    return value
