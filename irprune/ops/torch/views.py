"""Which ATen calls give views, and how what was written into a view is put back into what it is a
view of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch

from irprune.ir.dtype import element_type
from irprune.ir.graph import TensorType, Value

__all__ = ["NotInvertible", "Record", "may_alias", "put_back"]

Record = Callable[[Any, Sequence[Any], dict[str, Any], Any], Any]
"""Records a call: ``record(overload, args, kwargs, type of the result)`` gives the result."""
TO_REAL = {"c32": "f16", "c64": "f32", "c128": "f64"}  # the type of real and imaginary parts

# composite operators whose schema does not say that they may return their input or a view of it
_UNDECLARED = frozenset(
    "broadcast_tensors broadcast_to chunk contiguous dropout expand_as feature_dropout flatten "
    "meshgrid movedim numpy_T reshape reshape_as split squeeze swapaxes tensor_split to type_as "
    "unflatten view_as".split()
)
# views of the same elements where the type is the same as well
_SAME = frozenset(
    "alias detach contiguous to type_as expand expand_as dropout feature_dropout lift_fresh view "
    "reshape slice view_as reshape_as".split()
)
_REGROUPED = frozenset(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as".split()
)
_PERMUTED = frozenset("permute transpose t movedim swapaxes swapdims moveaxis numpy_T".split())
_ONE_INDEX = frozenset("select unbind".split())
_RANGES = frozenset("narrow split split_with_sizes chunk".split())


class NotInvertible(Exception):
    """A write through a view whose place in the whole is not known; the text says which."""


@cache
def may_alias(func: Any) -> bool:
    """Whether a result of the overload ``func`` may share storage with its first tensor."""
    if func._schema.is_mutable or any(r.alias_info is not None for r in func._schema.returns):
        return True
    return _name(func) in _UNDECLARED


def put_back(
    record: Record,
    func: Any,
    rest: Sequence[Any],
    named: Mapping[str, Any],
    types: TensorType | list[TensorType],
    index: int,
    whole: Value,
    piece: Value,
) -> Value:
    """``whole`` with ``piece`` written into it.

    Args:
        record: Records the calls that this takes.
        func: The overload that gave the view: ``piece`` is result ``index`` of
            ``func(whole, *rest, **named)``.
        rest: Positional arguments after the first.
        named: Arguments by keyword.
        types: The types of the results, a list if several.
        index: Which of the results it is.
        whole: What it is a view of.
        piece: The new value of the view.

    Returns:
        The new value of the whole.

    Raises:
        NotInvertible: Where it is not known which elements of ``whole`` the view shows.
    """
    aten, name = torch.ops.aten, _name(func)
    arguments = (a.name for a in func._schema.arguments[1:])
    given = dict(zip(arguments, rest, strict=False)) | dict(named)
    dim = given.get("dim", 0)
    if piece.type == whole.type and name in _SAME:
        return piece
    if name in _REGROUPED:
        return _made(record, aten.reshape.default, (piece, list(whole.shape)), whole.type)
    if name in _PERMUTED:
        shape = tuple(range(2, 2 + whole.rank))  # a size of its own marks each dimension
        marked = func(torch.empty(shape, device="meta"), *rest, **named)
        order = [n - 2 for n in marked.shape]
        back = [order.index(d) for d in range(whole.rank)]
        return _made(record, aten.permute.default, (piece, back), whole.type)
    if name in _ONE_INDEX:
        at = (dim, given.get("index", index))
        return _put(record, aten.select_scatter.default, whole, piece, at)
    if name == "slice":
        bounds = (dim, given.get("start"), given.get("end"), given.get("step", 1))
        return _put(record, aten.slice_scatter.default, whole, piece, bounds)
    if name in _RANGES:
        sizes = [t.known[dim] for t in types] if isinstance(types, list) else []
        start = given["start"] if name == "narrow" else [0, *accumulate(sizes)][index]
        bounds = (dim, start, start + piece.shape[dim], 1)
        return _put(record, aten.slice_scatter.default, whole, piece, bounds)
    raise NotInvertible(
        f"what {func} shows of a tensor is changed in place, and the tensor is read afterwards"
    )


def _name(func: Any) -> str:
    return str(func._schema.name.split("::")[1])


def _put(record: Record, func: Any, whole: Value, piece: Value, at: tuple[Any, ...]) -> Value:
    """``piece`` written into ``whole`` by ``func``, which has no derivative for complex numbers:
    those are written as pairs of real ones."""
    if not element_type(whole.dtype).is_complex:
        return _made(record, func, (whole, piece, *at), whole.type)
    real, aten = TO_REAL[whole.dtype], torch.ops.aten
    parts = [
        _made(record, aten.view_as_real.default, (v,), TensorType(real, (*v.shape, 2)))
        for v in (whole, piece)
    ]
    dim = at[0] if at[0] >= 0 else at[0] + whole.rank
    made = _made(record, func, (*parts, dim, *at[1:]), parts[0].type)
    return _made(record, aten.view_as_complex.default, (made,), whole.type)


def _made(record: Record, func: Any, args: Sequence[Any], kind: TensorType) -> Value:
    made: Value = record(func, args, {}, kind)
    return made
