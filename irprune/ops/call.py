"""How a node runs in torch: its ATen overload and the arguments, with placeholders where operands
go.

The interpreter fills the placeholders with tensors, the source emitter with names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from irprune.ir.graph import Node
from irprune.ir.size import Sym
from irprune.ops.dtypes import torch_attribute
from irprune.ops.registry import aten_target, lookup

__all__ = ["Call", "DeviceOf", "Operand", "bind", "overload", "substitute"]


@dataclass(frozen=True, slots=True)
class Operand:
    """Stands for operand ``index`` of the node."""

    index: int


@dataclass(frozen=True, slots=True)
class DeviceOf:
    """Stands for the device the model runs on, where the capture recorded ``was``."""

    was: str


@dataclass(frozen=True, slots=True)
class Call:
    """An ATen overload with positional and keyword arguments; defaults are left out."""

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


_NONE = object()  # the default of an argument that must be given


@cache
def overload(target: str) -> Any:
    """The torch operator ``aten.name.overload`` (or of another namespace). Raises
    AttributeError where there is none."""
    space, name, variant = target.split(".")
    try:
        return getattr(getattr(getattr(torch.ops, space), name), variant)
    except AttributeError as missing:
        raise AttributeError(f"torch has no operator {target}") from missing


@cache
def _schema(target: str) -> tuple[tuple[str, str, Any, bool], ...]:
    arguments = overload(target)._schema.arguments
    return tuple(
        (a.name, str(a.type), a.default_value if a.has_default_value() else _NONE, a.kwarg_only)
        for a in arguments
    )


def _value(name: str, value: Any) -> Any:
    """An attribute as torch takes it."""
    if name == "device":
        return None if value is None else DeviceOf(value)
    if name in ("dtype", "out_dtype") and isinstance(value, str):
        return torch_attribute(name, value)
    if name in ("memory_format", "layout") and isinstance(value, str):
        return getattr(torch, value)
    return value


def bind(node: Node) -> Call:
    """The call that runs ``node``. Raises LookupError where no ATen overload does."""
    target = aten_target(node) or (node.op if node.origin.dialect == "aten" else "")
    if not target:
        raise LookupError(f"{node.op} has no ATen spelling")
    entry = lookup(node)
    rename = entry.aten.get(target, {}) if entry is not None else {}
    layout = dict(node.origin.layout) if node.origin.dialect == "aten" else None
    left = list(range(len(node.inputs)))
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    skipped = False
    for name, kind, default, kwarg_only in _schema(target):
        canonical = rename.get(name, name)
        if layout is not None and name in layout:
            spec = layout[name]
            value = (
                tuple(_operand(node, k) for k in spec)
                if isinstance(spec, tuple)
                else _operand(node, spec)
            )
            value = list(value) if isinstance(value, tuple) else value
        elif layout is None and "Tensor" in kind and left:
            if kind.startswith("List"):
                value, left = [_operand(node, k) for k in left], []
            else:
                value = _operand(node, left.pop(0))
        elif canonical in node.attrs:
            value = _value(name, node.attrs[canonical])
        else:
            value = None if default is _NONE else default
        if _equal(value, default):
            skipped = True
        elif kwarg_only or skipped:
            kwargs[name] = value
        else:
            args.append(value)
    return Call(target, tuple(args), kwargs)


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, Operand) and bool(a == b)


def _operand(node: Node, k: int | None) -> Any:
    return Operand(k) if k is not None and node.has(k) else None


def substitute(
    x: Any, operand: Callable[[int], Any], size: Callable[[Sym], Any], device: Any
) -> Any:
    """``x`` with placeholders filled: operands, sizes known at run time, the device."""
    if isinstance(x, Operand):
        return operand(x.index)
    if isinstance(x, Sym):
        return size(x)
    if isinstance(x, DeviceOf):
        return device
    if isinstance(x, (list, tuple)):
        return [substitute(v, operand, size, device) for v in x]
    return x
