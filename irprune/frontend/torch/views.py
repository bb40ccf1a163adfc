"""Writes in place that other views of the same storage see.

A write is a new value of the tensor that was written. What shares its storage is worked out anew
when it is read next: the new value is put back into what it is a view of, and the other views are
taken of that again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from irprune.ir.graph import TensorType, Value
from irprune.ops.torch.views import Record, put_back

__all__ = ["ViewStep", "Views", "shares"]


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

    def __init__(self, values: dict[int, Value], call: Record) -> None:
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

    def renamed(self, key: int, now: int) -> None:
        """What was known of ``key`` is known of ``now``, which has its value; ``key`` is nothing
        yet."""
        if key in self._steps:
            self._steps[now] = self._steps.pop(key)
        for child, step in self._steps.items():
            if step.parent == key:
                self._steps[child] = replace(step, parent=now)
        for known in self._fresh.values():
            if key in known:
                known.symmetric_difference_update((key, now))
        if key in self._fresh:
            self._fresh[now] = self._fresh.pop(key)
        self._latest = {
            now if root == key else root: now if at == key else at
            for root, at in self._latest.items()
        }

    def again(self, key: int, other: int) -> None:
        """``key`` is the view that ``other`` is."""
        self.made(key, self._steps[other])

    def wrote(self, key: int) -> None:
        """``key`` has just been given another value."""
        root = self.root(key)
        self._fresh[root], self._latest[root] = {key}, key

    def root(self, key: int) -> int:
        """What ``key`` is a view of, and is no view itself; ``key`` where that is none."""
        return self._path(key)[-1]

    def refresh(self, key: int) -> None:
        """Bring the value of ``key`` up to what was written into its storage. Raises
        NotInvertible where that is not known."""
        path = self._path(key)
        fresh = self._fresh.get(path[-1])
        if fresh is None or key in fresh:
            return
        at = self._latest[path[-1]]
        while not fresh.intersection(path):
            step = self._steps[at]
            if step.parent not in fresh:
                whole, piece = self._values[step.parent], self._values[at]
                self._values[step.parent] = put_back(
                    self._call,
                    step.func,
                    step.rest,
                    step.named,
                    step.types,
                    step.index,
                    whole,
                    piece,
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


def shares(a: Any, b: torch.Tensor) -> bool:
    """Whether two tensors lie in the same storage."""
    return a is b or (
        isinstance(a, torch.Tensor) and a.untyped_storage()._cdata == b.untyped_storage()._cdata
    )
