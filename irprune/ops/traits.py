"""What an entry of the table says of a node beyond its axes: traits that the rest asks for instead
of comparing names.

Nothing here imports torch or onnx."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from irprune.ir.axis import Axis, factors, leaves
from irprune.ir.graph import Node, Value, Weight
from irprune.ir.size import probe_of

__all__ = [
    "ADDED",
    "CarriedFunction",
    "Convolution",
    "Kind",
    "NnLayer",
    "NnMade",
    "Options",
    "Quantised",
    "Role",
    "attention_kinds",
    "free_factors",
    "padding_pairs",
]

Role = Literal[
    "",  # nothing that is asked for
    "data",  # what flows through
    "weight",  # multiplies the data, summed over
    "bias",  # a vector added to the result
    "scale",  # multiplies what a norm made, channel by channel
    "mean",  # a running mean, subtracted
    "variance",  # a running variance, divided by its root
    "summand",  # one side of an addition
    "table",  # rows that are read by index
    "index",  # positions in another operand
    "state",  # of a recurrent network, before its first step
]
"""What an operand is to its operator."""

ADDED: tuple[Role, ...] = ("bias", "mean", "variance", "summand")
"""The roles of vectors that shift a result, or are the statistics of a norm."""

Kind = tuple[Axis, str]
"""An axis, and what it is in the field's words (``irprune.analysis.kinds.KINDS``)."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A node as a convolution of operand ``image`` [n, c, *positions] with operand ``kernel``.

    Args:
        image: position of the operand that is convolved.
        kernel: position of the weight, [outputs, inputs / groups, *kernel], or [inputs, outputs /
            groups, *kernel] where ``transposed``.
        bias: position of the vector over outputs that is added, None where the operator has none.
        stride: step of the window in each spatial dimension.
        padding: elements before and after in each spatial dimension, negative where cut.
        dilation: distance of kernel elements in each spatial dimension.
        output_padding: rows added at the end of a transposed convolution's result.
        groups: blocks of channels that do not meet.
        transposed: whether the image is spread out by ``stride`` instead of being stepped over.
        batched: whether the image has a first dimension of samples.
        linear: whether the result is the convolution itself: no activation, no other summand.
    """

    image: int
    kernel: int
    bias: int | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    linear: bool = True
    batched: bool = True


@dataclass(frozen=True, slots=True)
class CarriedFunction:
    """An ``Op.run`` that calls a function of irprune whose source emitted modules carry.

    Args:
        run: calls it: ``run(torch, node, operands)``.
        name: of the function; "" where attribute ``function`` of the node names it.
        results: how many it gives, whether or not a node names them all.
    """

    run: Callable[[Any, Node, Sequence[Any]], Any]
    name: str
    results: int = 1

    def __call__(self, torch: Any, node: Node, operands: Sequence[Any]) -> Any:
        return self.run(torch, node, operands)

    def called_by(self, node: Node) -> str:
        """The name of the function that ``node`` calls."""
        return self.name or str(node.attrs["function"])


@dataclass(frozen=True, slots=True)
class Quantised:
    """An operand that holds integers which stand for numbers: ``(operand - zero) * scale``.

    ``scale`` and ``zero`` are positions of operands, None where the operator has none; ``more``
    are further operands that the scale is multiplied by. Where they hold several numbers, those run
    along dimension ``dim`` of the operand, one for each index or one for each block. With
    ``leading`` they have the operand's first dimension as well, one row for each index of it."""

    scale: int | None
    zero: int | None
    dim: int = 0
    leading: bool = False
    more: tuple[int, ...] = ()

    def spread(self, given: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
        """Scales or zero points ``given`` in a form that broadcasts against the operand's
        ``shape``."""
        if given.size == 1:
            return given.reshape(())
        if self.leading:
            return given.reshape(given.shape[0], 1, -1)
        if given.ndim == len(shape):
            return np.repeat(given, shape[self.dim] // given.shape[self.dim], axis=self.dim)
        return given.reshape([-1 if d == self.dim else 1 for d in range(len(shape))])


Options = tuple[tuple[str, Any], ...]
"""Keyword arguments of a layer's class, where they differ from its defaults."""


@dataclass(frozen=True, slots=True)
class NnMade:
    """An instance of ``torch.nn.kind`` made with ``args`` and ``options``."""

    kind: str
    args: tuple[Any, ...]
    options: Options


@dataclass(frozen=True, slots=True)
class NnLayer:
    """The ``torch.nn`` layer that an entry is a call of.

    ``state`` names the layer's parameter in each operand, "" for what it is called with, or is a
    function of the node that does, and gives none where the node is no call of it. ``needs`` is the
    parameter that no such layer is without. ``made(node, held)`` is what it is made with, for
    the stored ``held`` parameters by name, None where no such layer computes the node."""

    state: tuple[str, ...] | Callable[[Node], tuple[str, ...]]
    made: Callable[[Node, dict[str, Weight]], NnMade | None]
    needs: str = "weight"

    def names(self, node: Node) -> tuple[str, ...]:
        """The layer's parameter in each operand of ``node``; none where it is no call of it."""
        return self.state(node) if callable(self.state) else self.state

    def data(self, node: Node) -> int:
        """The position of the operand that the layer is called with."""
        return self.names(node).index("")

    def held(self, node: Node) -> list[tuple[str, Value]]:
        """The operands that are parameters of the layer, by their names there."""
        pairs = zip(self.names(node), node.inputs, strict=False)
        return [(name, value) for name, value in pairs if name and value is not None]


def padding_pairs(
    spec: Any, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """The padding before and after in each spatial dimension, from ATen's ``padding`` argument: a
    number, one for each dimension, "same" or "valid"."""
    if spec == "valid":
        return ((0, 0),) * len(kernel)
    if spec == "same":
        whole = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((w // 2, w - w // 2) for w in whole)
    return tuple((p, p) for p in many(spec, len(kernel)))


def many(x: Any, n: int) -> tuple[int, ...]:
    """``x`` for each of ``n`` dimensions."""
    given = tuple(int(v) for v in x) if isinstance(x, (list, tuple)) else (int(x),)
    return given * n if len(given) == 1 else given


def kernel_of(value: Value) -> tuple[int, ...]:
    """The spatial sizes of a kernel [o, i, *kernel]."""
    return tuple(probe_of(s) for s in value.shape[2:])


# -- kinds of axes ---------------------------------------------------------------------------------


def free_factors(axes: Iterable[Axis]) -> list[Axis]:
    """The axes that may change size in a part; batches and windows are none of them."""
    return [a for a in axes if any(x.size != 1 and x.reason is None for x in leaves(a))]


def attention_kinds(
    query: Sequence[Axis], key: Sequence[Axis], value: Sequence[Axis]
) -> Iterable[Kind]:
    """Heads, key/value groups and head_dim of attention over operands [..., heads, positions,
    head_dim]."""
    for heads in query[:-2]:
        inner = free_factors(factors(heads))
        if len(inner) > 1:  # groups of query heads that share a key head
            yield inner[0], "kv groups"
        yield from ((a, "heads") for a in inner)
    yield from ((a, "heads") for a in free_factors(key[:-2]))
    yield from ((a, "heads") for a in (query[-3:-2] if len(query) > 3 else ()))
    yield from ((a, "head_dim") for a in (*query[-1:], *value[-1:]))
