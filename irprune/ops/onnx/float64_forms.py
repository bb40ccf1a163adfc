"""Operators in float64 for which onnxruntime has kernels in float32 alone, written as others that
it computes in both.

A proof compares two models, so a smooth function may stand for another of the same kind as long as
it stands for it on both sides: ``Erf`` is computed as a ``Tanh``. What moves or adds up numbers is
computed as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from irprune.ops.onnx.float_forms import Uncovered

__all__ = ["DOUBLED", "FLOAT_INPUTS", "ROUNDS_TO", "SINGLE", "DoubleWriter"]

# The attribute that says in which type an operator computes
ROUNDS_TO = {"GroupNormalization": "stash_type"}
# A cut head has its scale written down, as a number in float32
SINGLE = ("Attention",)

_END = (1 << 31) - 1  # past the end of every dimension


class DoubleWriter(Protocol):
    """One node of a file, and nodes to be written in its place."""

    opset: int
    attrs: Mapping[str, Any]

    def name(self, i: int) -> str:
        """Input ``i`` as it is in the file; "" where it is not given."""

    def dims(self, i: int) -> tuple[int, ...]:
        """The shape of a stored input. Raises Uncovered where it is not stored."""

    def constant(self, value: Any) -> str:
        """An array of float64, or of int64 where it holds integers."""

    def put(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """A node of ONNX, and the name of its result."""


Rule = Callable[[DoubleWriter], str]


def _numbers(n: DoubleWriter, name: str, plain: Sequence[int]) -> list[int]:
    return [int(v) for v in n.attrs.get(name, plain)]


def _slice(n: DoubleWriter, x: str, of: Mapping[int, tuple[int, int, int]]) -> str:
    """``x`` from start to end by step along some dimensions."""
    starts, ends, steps = (n.constant(list(column)) for column in zip(*of.values(), strict=True))
    return n.put("Slice", x, starts, ends, n.constant(list(of)), steps)


def _padded(n: DoubleWriter, x: str, pads: Sequence[int]) -> str:
    if not any(pads):
        return x
    half = len(pads) // 2
    whole = [0, 0, *pads[:half], 0, 0, *pads[half:]]
    if n.opset < 11:
        return n.put("Pad", x, pads=whole, value=0.0)
    return n.put("Pad", x, n.constant(whole))


def _window(
    n: DoubleWriter,
    x: str,
    at: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> str:
    """What place ``at`` of a kernel meets in ``x``, which is padded, for each position."""
    return _windows(n, x, dict(enumerate(at)), 2, (kernel, strides, dilations))


def _windows(
    n: DoubleWriter,
    x: str,
    at: Mapping[int, int],
    first: int,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
) -> str:
    """What a kernel meets in ``x`` along the sides that ``at`` gives a place on, for each position;
    ``first`` is the dimension of side 0, ``geometry`` says kernel, strides and dilations."""
    of = {}
    for d, k in at.items():
        size, step, wide = (side[d] for side in geometry)
        behind = (size - 1 - k) * wide
        if (k * wide, behind, step) != (0, 0, 1):
            of[first + d] = (k * wide, -behind if behind else _END, step)
    return _slice(n, x, of) if of else x


def _places(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    out: list[tuple[int, ...]] = [()]
    for size in kernel:
        out = [(*at, k) for at in out for k in range(size)]
    return out


def _sum(n: DoubleWriter, many: Sequence[str]) -> str:
    return n.put("Sum", *many) if len(many) > 1 else many[0]


def _spatial(n: DoubleWriter, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads."""
    if n.attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID", "NOTSET", "VALID"):
        raise Uncovered("pads that depend on sizes")
    ones, none = [1] * rank, [0] * (2 * rank)
    return (
        _numbers(n, "strides", ones),
        _numbers(n, "dilations", ones),
        _numbers(n, "pads", none),
    )


def _conv(n: DoubleWriter) -> str:
    """A convolution as products of matrices: what the places of its longest side meet lies side by
    side in the rows of one, and the places of the other sides each give a product."""
    outs, ins, *kernel = n.dims(1)
    groups, rank = int(n.attrs.get("group", 1)), len(kernel)
    strides, dilations, pads = _spatial(n, rank)
    x = _padded(n, n.name(0), pads)
    long = max(range(rank), key=kernel.__getitem__)
    beside = _beside(n, x, 2 + long, kernel[long], strides[long], dilations[long])
    across = [d for d in range(rank) if d != long]
    flat = n.constant([0, groups, ins * kernel[long], -1])
    split = n.constant([groups, outs // groups, ins * kernel[long]])
    seen, products = beside, []
    for place in _places([kernel[d] for d in across]):
        of = dict(zip(across, place, strict=True))
        seen = _windows(n, beside, of, 3, (kernel, strides, dilations))
        w = n.name(1)
        if any(kernel[d] > 1 for d in across):
            w = _slice(n, w, {d + 2: (k, k + 1, 1) for d, k in of.items()})
        products.append(n.put("MatMul", n.put("Reshape", w, split), n.put("Reshape", seen, flat)))
    sizes = n.put("Slice", n.put("Shape", seen), *map(n.constant, ([3], [_END], [0])))
    shape = n.put("Concat", n.constant([0, outs]), sizes, axis=0)
    total = n.put("Reshape", _sum(n, products), shape)
    tail = n.constant([-1] + [1] * rank)
    return n.put("Add", total, n.put("Reshape", n.name(2), tail)) if n.name(2) else total


def _beside(n: DoubleWriter, x: str, dim: int, size: int, step: int, wide: int) -> str:
    """What a kernel of that ``size`` meets in ``x`` along ``dim``, for each position; its places
    are a new dimension, the third."""
    zero = n.constant([0])
    length = n.put("Slice", n.put("Shape", x), n.constant([dim]), n.constant([dim + 1]), zero)
    end = n.put("Squeeze", n.put("Sub", length, n.constant([(size - 1) * wide])))
    starts = n.put("Range", n.constant(0), end, n.constant(step))
    places = n.constant([[k * wide] for k in range(size)])
    found = n.put("Gather", x, n.put("Add", places, starts), axis=dim)
    if dim == 2:
        return found
    rank = len(n.dims(1)) + 1
    rest = [d for d in range(2, rank) if d != dim]
    return n.put("Transpose", found, perm=[0, 1, dim, *rest])


def _average_pool(n: DoubleWriter) -> str:
    kernel = _numbers(n, "kernel_shape", ())
    strides, dilations, pads = _spatial(n, len(kernel))
    if n.attrs.get("ceil_mode") or (any(pads) and not n.attrs.get("count_include_pad")):
        raise Uncovered("windows of several sizes")
    x, places = _padded(n, n.name(0), pads), _places(kernel)
    total = _sum(n, [_window(n, x, at, kernel, strides, dilations) for at in places])
    return n.put("Mul", total, n.constant(1.0 / len(places)))


def _global_average_pool(n: DoubleWriter) -> str:
    x = n.name(0)
    flat = n.put("Reshape", x, n.constant([0, 0, -1]))
    mean = n.put("Mul", _total(n, flat), _reciprocal_size(n, flat))
    shape = n.put("Shape", x)
    zero = n.constant([0])
    head = n.put("Slice", shape, zero, n.constant([2]), zero)
    rest = n.put("Slice", shape, n.constant([2]), n.constant([_END]), zero)
    ones = n.put("Add", n.put("Sub", rest, rest), n.constant([1]))
    return n.put("Reshape", mean, n.put("Concat", head, ones, axis=0))


def _total(n: DoubleWriter, x: str) -> str:
    if n.opset >= 13:
        return n.put("ReduceSum", x, n.constant([2]), keepdims=1)
    return n.put("ReduceSum", x, axes=[2], keepdims=1)


def _reciprocal_size(n: DoubleWriter, flat: str) -> str:
    size = n.put("Slice", n.put("Shape", flat), n.constant([2]), n.constant([3]), n.constant([0]))
    return n.put("Div", n.constant(1.0), n.put("Cast", size, to=11))


def _erf(n: DoubleWriter) -> str:
    return n.put("Tanh", n.put("Mul", n.name(0), n.constant(1.2)))


def _times_gate(n: DoubleWriter, gate: str) -> str:
    return n.put("Mul", n.name(0), gate)


def _gelu(n: DoubleWriter) -> str:
    return _times_gate(n, n.put("Sigmoid", n.put("Mul", n.name(0), n.constant(1.7))))


def _hard(n: DoubleWriter, alpha: float, beta: float) -> str:
    line = n.put("Add", n.put("Mul", n.name(0), n.constant(alpha)), n.constant(beta))
    return n.put("Max", n.put("Min", line, n.constant(1.0)), n.constant(0.0))


def _hard_sigmoid(n: DoubleWriter) -> str:
    return _hard(n, float(n.attrs.get("alpha", 0.2)), float(n.attrs.get("beta", 0.5)))


def _hard_swish(n: DoubleWriter) -> str:
    return _times_gate(n, _hard(n, 1 / 6, 0.5))


def _below(n: DoubleWriter, slope: str) -> str:
    """``x`` where it is positive, and ``slope`` times it elsewhere."""
    zero = n.constant(0.0)
    positive, negative = n.put("Max", n.name(0), zero), n.put("Min", n.name(0), zero)
    return n.put("Add", positive, n.put("Mul", slope, negative))


def _leaky_relu(n: DoubleWriter) -> str:
    return _below(n, n.constant(float(n.attrs.get("alpha", 0.01))))


def _prelu(n: DoubleWriter) -> str:
    return _below(n, n.name(1))


def _elu(n: DoubleWriter) -> str:
    zero = n.constant(0.0)
    positive, negative = n.put("Max", n.name(0), zero), n.put("Min", n.name(0), zero)
    fall = n.put("Sub", n.put("Exp", negative), n.constant(1.0))
    scaled = n.put("Mul", fall, n.constant(float(n.attrs.get("alpha", 1.0))))
    return n.put("Add", positive, scaled)


DOUBLED: Mapping[str, Rule] = {
    "Conv": _conv,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "Erf": _erf,
    "Gelu": _gelu,
    "com.microsoft::Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Elu": _elu,
}
"""How an operator is written, by its name."""

FLOAT_INPUTS: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that are float32 whatever the type of the others."""
