"""Writes in place that other views of the same storage see.

A write is a new value of the tensor that was written. What shares its storage is worked out anew
when it is read next: the new value is put back into what it is a view of, and the other views are
taken of that again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from irprune.ir.dtype import element_type
from irprune.ir.graph import TensorType, Value

__all__ = ["NotInvertible", "ViewStep", "Views", "shares"]

TO_REAL = {"c32": "f16", "c64": "f32", "c128": "f64"}  # the type of real and imaginary parts
Call = Callable[[Any, Sequence[Any], dict[str, Any], Any], Any]


class NotInvertible(Exception):
    """A write through a view whose place in the whole is not known; the text says which."""


@dataclass(frozen=True)
class ViewStep:
    """How a view was made: result ``index`` of ``func(parent, *rest, **named)``; ``types`` are
    those of the results, a list if several."""

    parent: int
    func: Any
    rest: tuple[Any, ...]
    named: dict[str, Any]
    types: TensorType | list[TensorType]
    index: int = 0


class Views:
    """The views among the tensors of a run. ``values`` is what each tensor, by a key of its own,
    stands for; ``call`` records a call."""

    def __init__(self, values: dict[int, Value], call: Call) -> None:
        self._values, self._call = values, call
        self._steps: dict[int, ViewStep] = {}
        self._fresh: dict[
            int, set[int]
        ] = {}  # root -> the tensors that saw every write; none where nothing was written
        self._latest: dict[int, int] = {}  # root -> the tensor written last

    def made(self, key: int, step: ViewStep) -> None:
        """``key`` is a view, just taken."""
        self._steps[key] = step
        fresh = self._fresh.get(self._path(key)[-1])
        if fresh is not None:
            fresh.add(key)

    def wrote(self, key: int) -> None:
        """``key`` has just been given another value."""
        root = self.root(key)
        self._fresh[root], self._latest[root] = {key}, key

    def root(self, key: int) -> int:
        """What ``key`` is a view of, and is no view itself; ``key`` where that is none."""
        return self._path(key)[-1]

    def refresh(self, key: int) -> None:
        """Bring the value of ``key`` up to what was written into its storage. Raises NoWayBack
        where that is not known."""
        path = self._path(key)
        fresh = self._fresh.get(path[-1])
        if fresh is None or key in fresh:
            return
        at = self._latest[path[-1]]
        while not fresh.intersection(path):
            step = self._steps[at]
            if step.parent not in fresh:
                self._values[step.parent] = self._back(
                    step, self._values[step.parent], self._values[at]
                )
                fresh.add(step.parent)
            at = step.parent
        for child in reversed(path[: next(i for i, k in enumerate(path) if k in fresh)]):
            step = self._steps[child]
            made = self._call(
                step.func, (self._values[step.parent], *step.rest), step.named, step.types
            )
            self._values[child] = made[step.index] if isinstance(made, list) else made
            fresh.add(child)

    def _path(self, key: int) -> list[int]:
        """``key``, what it is a view of, and so on to the tensor that is none."""
        out = [key]
        while out[-1] in self._steps:
            out.append(self._steps[out[-1]].parent)
        return out

    def _back(self, step: ViewStep, whole: Value, piece: Value) -> Value:
        """``whole`` with ``piece``, a view of it as ``step`` says, written into it."""
        aten, name = torch.ops.aten, step.func._schema.name.split("::")[1]
        given = (
            dict(zip((a.name for a in step.func._schema.arguments[1:]), step.rest, strict=False))
            | step.named
        )
        dim = given.get("dim", 0)
        if piece.type == whole.type and name in _SAME:
            return piece
        if name in _REGROUPED:
            return self._made(aten.reshape.default, (piece, list(whole.shape)), whole.type)
        if name in _PERMUTED:
            marked = step.func(
                torch.empty(tuple(range(2, 2 + whole.rank)), device="meta"),
                *step.rest,
                **step.named,
            )
            order = [n - 2 for n in marked.shape]
            return self._made(
                aten.permute.default,
                (piece, [order.index(d) for d in range(whole.rank)]),
                whole.type,
            )
        if name in ("select", "unbind"):
            at = (dim, given.get("index", step.index))
            return self._put(aten.select_scatter.default, whole, piece, at)
        if name == "slice":
            bounds = (dim, given.get("start"), given.get("end"), given.get("step", 1))
            return self._put(aten.slice_scatter.default, whole, piece, bounds)
        if name in ("narrow", "split", "split_with_sizes", "chunk"):
            sizes = [t.known[dim] for t in step.types] if isinstance(step.types, list) else []
            start = given["start"] if name == "narrow" else [0, *accumulate(sizes)][step.index]
            bounds = (dim, start, start + piece.shape[dim], 1)
            return self._put(aten.slice_scatter.default, whole, piece, bounds)
        raise NotInvertible(
            f"what {step.func} shows of a tensor is changed in place, and the tensor is read afterwards"
        )

    def _put(self, func: Any, whole: Value, piece: Value, at: tuple[Any, ...]) -> Value:
        """``piece`` written into ``whole`` by ``func``, which has no derivative for complex
        numbers: those are written as pairs of real ones."""
        if not element_type(whole.dtype).is_complex:
            return self._made(func, (whole, piece, *at), whole.type)
        real = TO_REAL[whole.dtype]
        parts = [
            self._made(
                torch.ops.aten.view_as_real.default,
                (v,),
                TensorType(real, (*v.shape, 2)),
            )
            for v in (whole, piece)
        ]
        dim = at[0] if at[0] >= 0 else at[0] + whole.rank
        made = self._made(func, (*parts, dim, *at[1:]), parts[0].type)
        return self._made(torch.ops.aten.view_as_complex.default, (made,), whole.type)

    def _made(self, func: Any, args: Sequence[Any], kind: TensorType) -> Value:
        made: Value = self._call(func, args, {}, kind)
        return made


_SAME = {
    "alias",
    "detach",
    "contiguous",
    "to",
    "type_as",
    "expand",
    "expand_as",
    "dropout",
    "feature_dropout",
    "lift_fresh",
    "view",
    "reshape",
    "slice",
    "view_as",
    "reshape_as",
}
_REGROUPED = {
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "view_as",
    "reshape_as",
}
_PERMUTED = {"permute", "transpose", "t", "movedim", "swapaxes", "swapdims", "moveaxis", "numpy_T"}


def shares(a: Any, b: torch.Tensor) -> bool:
    """Whether two tensors lie in the same storage."""
    return a is b or (
        isinstance(a, torch.Tensor) and a.untyped_storage()._cdata == b.untyped_storage()._cdata
    )
