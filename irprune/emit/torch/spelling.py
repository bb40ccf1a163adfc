"""How a call of an ATen overload is written in Python: ``x + y``, ``F.relu(x)``, ``x.reshape([2,
3])``, ``torch.cat([x, y], 1)``.

Only spellings that run the same overload are used; where there is none the overload is called by
its name. The generated operator tests run both and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from irprune.emit.torch.code import Code, attribute, call, infix, literal, quote, subscript
from irprune.ops.torch.python_form import python_form

__all__ = ["spell"]


def spell(target: str, args: Sequence[Any], kwargs: Mapping[str, Any], rank: int = 0) -> Code:
    """The expression that calls ``target``; operands come as ``Code``, ``rank`` is that of the
    first one (for subscripts)."""
    operand = bool(args) and isinstance(args[0], Code)
    form = python_form(target, args, kwargs, operand=operand, rank=rank)
    if form.kind == "function":
        return call(form.name, form.args, form.kwargs)
    first, *rest = form.args
    if form.kind == "infix":
        return infix(first, form.name, rest[0])
    if form.kind == "prefix":
        return quote(f"{form.name}_0", first)
    if form.kind == "attribute":
        return attribute(first, form.name)
    if form.kind == "method":
        return call(attribute(first, form.name), rest, form.kwargs)
    return subscript(first, [_part(i) for i in rest])


def _part(index: Any) -> slice | Code:
    """What stands for a dimension in a subscript."""
    if index is None:
        return slice(None)
    return index if isinstance(index, slice) else literal(index)
