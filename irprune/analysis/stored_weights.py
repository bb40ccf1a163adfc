"""Operands as numbers: what a stored weight stands for, whether it is stored as numbers or as the
integers of a quantised type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from irprune.ir.dtype import numpy_dtype
from irprune.ir.graph import Node, Value, Weight
from irprune.ops.registry import lookup, quantised_in
from irprune.ops.traits import Quantised
from irprune.run.statistics import load_as, store

__all__ = ["Stored", "numbers_of", "stored_in"]


@dataclass(frozen=True)
class Stored:
    """An operand that is a stored ``weight``, or the numbers that its integers stand for.

    ``within`` is the node in which ``how`` says what stands for what: the reader of the integers,
    or the dequantisation before it; both None for a weight of floating point. ``direct`` says that
    the reader's operand is the weight itself."""

    weight: Weight
    within: Node | None = None
    how: Quantised | None = None
    direct: bool = True

    def load(self) -> torch.Tensor:
        """The numbers in float64, of the weight's shape."""
        held = load_as(self.weight)
        scale, zero = self._steps()
        return (held - zero) * scale

    def store(self, numbers: torch.Tensor) -> None:
        """Let the weight stand for ``numbers``; integers for the nearest that they can."""
        store(self.weight, self._held(numbers))

    def operand(self, numbers: torch.Tensor) -> torch.Tensor:
        """What the reader's operand holds where the weight stands for ``numbers``."""
        return self._held(numbers) if self.direct else numbers

    def _held(self, numbers: torch.Tensor) -> torch.Tensor:
        if self.how is None:
            return numbers
        scale, zero = self._steps()
        bounds = np.iinfo(numpy_dtype(self.weight.dtype))
        return (numbers / scale + zero).round().clamp(bounds.min, bounds.max)

    def _steps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point, 1 and 0 where they are not stored: the numbers are in steps
        then."""
        one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        if self.how is None or self.within is None:
            return one, none
        arrays = [_array(self.within, i) for i in (self.how.scale, self.how.zero)]
        for i in self.how.more:
            factor = _array(self.within, i)
            arrays[0] = None if arrays[0] is None or factor is None else arrays[0] * factor
        shape = tuple(int(s) for s in self.weight.shape)  # type: ignore[arg-type]
        scale, zero = (
            None if a is None else torch.from_numpy(self.how.spread(a, shape)) for a in arrays
        )
        return one if scale is None else scale, none if zero is None else zero


def _array(node: Node, i: int | None) -> Any:
    value = node.inputs[i] if i is not None and node.has(i) else None
    return load_as(value).numpy() if isinstance(value, Weight) else None


def stored_in(node: Node, i: int) -> Stored | None:
    """Operand ``i`` of ``node`` as a stored weight, also behind a dequantisation; None where it is
    computed."""
    value = node.inputs[i] if node.has(i) else None
    if isinstance(value, Weight):
        how = quantised_in(node).get(i)
        return Stored(value) if how is None else Stored(value, node, how)
    made = value.producer if value is not None else None
    entry = lookup(made) if made is not None else None
    if made is None or entry is None or not entry.dequantises:
        return None
    source = made.inputs[0]
    return (
        Stored(source, made, quantised_in(made)[0], False) if isinstance(source, Weight) else None
    )


def alone(value: Value | None) -> bool:
    """Whether one operand of one node reads ``value``, and what it is the numbers of."""
    while value is not None:
        if sum(value.users.values()) != 1 or (isinstance(value, Weight) and value.aliases):
            return False
        made = value.producer
        value = made.inputs[0] if made is not None and _dequantises(made) else None
    return True


def _dequantises(node: Node) -> bool:
    """Whether ``node`` dequantises a stored weight."""
    entry = lookup(node)
    return entry is not None and entry.dequantises and isinstance(node.inputs[0], Weight)


def numbers_of(node: Node, i: int, tensor: torch.Tensor, operands: Sequence[Any]) -> torch.Tensor:
    """``tensor``, which operand ``i`` of ``node`` (-1: its result) holds, as the numbers that it
    stands for; ``operands`` are those that the node runs with."""
    how = quantised_in(node).get(i)
    if how is None:
        return tensor

    def given(k: int | None) -> Any:
        held = operands[k] if k is not None and k < len(operands) else None
        return None if held is None else np.asarray(held.double().cpu())

    out = tensor.double()
    shape = tuple(tensor.shape)
    zero = given(how.zero)
    if zero is not None:
        out = out - torch.from_numpy(how.spread(zero, shape)).to(out.device)
    for factor in (given(k) for k in (how.scale, *how.more)):
        if factor is not None:
            out = out * torch.from_numpy(how.spread(factor, shape)).to(out.device)
    return out
