"""Layers as plain linear maps: what repair and data-driven criteria need of a linear, a convolution
or a matrix product.

Whatever the operator and however its weight lies, a layer is seen as ``y[n, b, o] = sum_k x[n, b,
k] * w[b, k, o] + bias[b, o]``: samples (with positions) n, blocks b (groups of a convolution,
experts), inputs k (with kernel positions) and outputs o."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from irprune.analysis.stored_weights import Stored, alone, numbers_of, stored_in
from irprune.base.moved import renamed_method
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.size import Sym, probe_of
from irprune.ops.registry import convolution_of, is_fixed_norm, is_sum, lookup, operand_as, role_of
from irprune.ops.traits import Convolution

__all__ = ["Bias", "Layer", "layer_of", "layers"]


@dataclass(frozen=True)
class Bias:
    """Where an offset of a layer's results may be put: ``stored``, operand ``at`` of ``node``,
    added with ``sign`` (-1 for the running mean of a batch norm)."""

    stored: Stored
    node: Node
    at: int
    sign: int = 1

    def move(self, offset: torch.Tensor) -> None:
        """Add ``offset`` (of as many elements) to the results."""
        held = self.stored.load()
        self.stored.store(held + self.sign * offset.reshape(held.shape))

    @property
    def weight(self) -> Weight:
        """The array that holds it."""
        return self.stored.weight


class Rows(Protocol):
    """What turns an activation into rows, all of them or those numbered by ``at`` [n]."""

    def __call__(self, x: torch.Tensor, at: torch.Tensor | None = None) -> torch.Tensor: ...


@dataclass(frozen=True)
class Layer:
    """A node that maps ``x`` (operand ``at``) linearly by ``stored`` (operand ``by``).

    The operands and the result may be the integers of a quantised type: the map is one of the
    numbers that they stand for. ``rows(x)`` is [n, b, k], ``targets(y)`` [n, b, o], both also for
    some row numbers alone, which is cheaper than to choose among all rows; ``matrix(w)`` is [b, k,
    o] and ``array(m)`` its inverse; ``inputs`` is the dimension of the weight that is summed over,
    None where there is none (depthwise). Layers of equal ``reads`` make the same rows of the same
    activation."""

    node: Node
    at: int
    by: int
    stored: Stored
    bias: Bias | None
    inputs: tuple[int, ...]
    reads: tuple[Any, ...]
    rows: Rows
    targets: Rows
    matrix: Callable[[torch.Tensor], torch.Tensor]
    array: Callable[[torch.Tensor], torch.Tensor]

    @property
    def weight(self) -> Weight:
        """The array that holds the matrix."""
        return self.stored.weight

    @property
    def unfolds(self) -> bool:
        """Whether its rows are windows of the operand, as those of a convolution."""
        return bool(self.reads[0] != "rows")

    def shared(self) -> bool:
        """Whether other nodes, or other operands of this one, read the weight too, or the user
        knows it under several names."""
        return not alone(self.node.inputs[self.by])

    def load_matrix(self) -> torch.Tensor:
        """The matrix [b, k, o] in float64."""
        return self.matrix(self.stored.load())

    def store_matrix(self, matrix: torch.Tensor) -> None:
        """Let the weight hold ``matrix`` [b, k, o]; one of integers the nearest that it can."""
        self.stored.store(self.array(matrix))

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Blocks, inputs of each and outputs of each: the shape of the matrix."""
        shape = tuple(map(probe_of, self.weight.shape))
        b, k, o = self.matrix(torch.empty(shape, device="meta")).shape
        return b, k, o

    def input_rows(self, operands: Sequence[Any], at: torch.Tensor | None = None) -> torch.Tensor:
        """The rows [n, b, k] of what the node reads when it runs on ``operands``; those that ``at``
        numbers, or all."""
        return self.rows(numbers_of(self.node, self.at, operands[self.at], operands), at)

    def output_rows(
        self, result: torch.Tensor, operands: Sequence[Any], at: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The rows [n, b, o] of a ``result`` of the node, whose scales are among ``operands``;
        those that ``at`` numbers, or all."""
        return self.targets(numbers_of(self.node, -1, result, operands), at)

    held = renamed_method("Layer.held", "load_matrix")
    put = renamed_method("Layer.put", "store_matrix")
    read = renamed_method("Layer.read", "input_rows")
    gave = renamed_method("Layer.gave", "output_rows")

    def offset(self, operands: Sequence[Any]) -> torch.Tensor | None:
        """What the node itself adds to the product, as a vector over outputs; None where it adds
        nothing."""
        for i, v in enumerate(self.node.inputs):
            if v is not None and operands[i] is not None and role_of(self.node, i) == "bias":
                return numbers_of(self.node, i, operands[i], operands).reshape(-1)
        return None


def layers(graph: Graph) -> Iterator[Layer]:
    """The layers of ``graph`` in its order."""
    for node in graph.nodes:
        layer = layer_of(node)
        if layer is not None:
            yield layer


def layer_of(node: Node) -> Layer | None:
    """``node`` as a linear map by one stored weight, or None where it is no such thing."""
    if len(node.outputs) != 1:
        return None
    geometry = convolution_of(node)
    if geometry is not None:
        plain = geometry.linear and geometry.batched
        return _convolution(node, geometry) if plain else None
    entry = lookup(node)
    if entry is not None and entry.letters is not None:
        if entry.linear is not None and not entry.linear(node):
            return None
        return _contraction(node, entry.letters(node))
    return None


def _numbered(view: torch.Tensor, lead: int, at: torch.Tensor | None) -> torch.Tensor:
    """``view`` itself, or those of its rows that ``at`` numbers along its first ``lead`` dimensions
    in row-major order."""
    if at is None:
        return view
    return view[torch.unravel_index(at.to(view.device), view.shape[:lead])]


# -- bias ------------------------------------------------------------------------------------------


def _own(node: Node, i: int) -> Stored | None:
    """Operand ``i`` of ``node`` where it is a stored weight that it has to itself."""
    return stored_in(node, i) if alone(node.inputs[i]) else None


def _bias(node: Node, place: int | None, channel: int) -> Bias | None:
    """The bias operand, else the running mean of a batch norm or the summand of an addition that
    alone read the result.

    ``channel`` is the dimension of the result that a vector of offsets runs over, counted from the
    end."""
    if place is not None and node.has(place):
        own = _own(node, place)
        return Bias(own, node, place) if own is not None and own.weight.rank == 1 else None
    users = list(node.out.users)
    if (
        len(users) != 1
        or node.out.users[users[0]] != 1
        or any(v is node.out for v in _outputs(node))
    ):
        return None
    user = users[0]
    mean = operand_as(user, "mean") if is_fixed_norm(user) else None
    if mean is not None and user.inputs[0] is node.out and channel == -(node.out.rank - 1):
        at = _place(user, mean)
        own = _own(user, at)
        return Bias(own, user, at, -1) if own is not None else None
    if is_sum(user):
        at = 1 if user.inputs[0] is node.out else 0
        own = _own(user, at)
        if own is not None and user.out.shape == node.out.shape:
            other = own.weight
            shape: list[Any] = [1] * other.rank
            if other.rank >= -channel:
                shape[channel] = node.out.shape[channel]
                if list(other.shape) == shape:
                    return Bias(own, user, at)
    return None


def _place(node: Node, value: Value) -> int:
    return next(i for i, v in enumerate(node.inputs) if v is value)


def _outputs(node: Node) -> list[Any]:
    return node.graph.outputs if node.graph is not None else []


# -- products of tensors ---------------------------------------------------------------------------


def _contraction(node: Node, letters: tuple[list[str], ...]) -> Layer | None:
    """An activation times one weight, in whatever order their letters stand."""
    *terms, out = letters
    held = [
        i
        for i, t in enumerate(terms)
        if t and i < len(node.inputs) and stored_in(node, i) is not None
    ]
    moving = [
        i
        for i, t in enumerate(terms)
        if t and i < len(node.inputs) and node.inputs[i] is not None and i not in held
    ]
    if len(moving) != 1:
        return None
    x = terms[moving[0]]
    summed = [i for i in held if any(a in x and a not in out for a in terms[i])]
    added = [i for i in held if i not in summed]
    if len(summed) != 1 or len(added) > 1:
        return None
    w = terms[summed[0]]
    if any(len(set(term)) != len(term) for term in (x, w, out)) or any(
        node.attrs.get(k, 1) != 1 for k in ("alpha", "beta")
    ):
        return None
    value, stored = node.operand(moving[0]), stored_in(node, summed[0])
    assert stored is not None
    weight = stored.weight
    inner = [a for a in w if a in x and a not in out]
    blocks = [a for a in w if a in x and a in out]
    outer = [a for a in w if a not in x and a in out]
    samples = [a for a in x if a in out and a not in blocks]
    if any(a not in x and a not in out for a in w) or any(
        a not in out and a not in inner for a in x
    ):
        return None
    sizes = dict(zip(w, weight.shape, strict=True))
    if any(isinstance(s, Sym) for s in sizes.values()) or sorted(
        samples + blocks + outer
    ) != sorted(out):
        return None
    if any(value.shape[x.index(a)] != sizes[a] for a in (*inner, *blocks)):
        return None  # broadcast
    shape = [probe_of(sizes[a]) for a in (*blocks, *inner, *outer)]
    b, k, o = (math.prod(probe_of(sizes[a]) for a in many) for many in (blocks, inner, outer))
    to_x = [x.index(a) for a in (*samples, *blocks, *inner)]
    to_y = [out.index(a) for a in (*samples, *blocks, *outer)]
    to_w = [w.index(a) for a in (*blocks, *inner, *outer)]
    back = [to_w.index(i) for i in range(len(w))]
    channel = out.index(outer[0]) - len(out) if len(outer) == 1 and not blocks else 0
    return Layer(
        node,
        moving[0],
        summed[0],
        stored,
        _bias(node, added[0] if added else None, channel) if channel else None,
        tuple(w.index(a) for a in inner),
        ("rows", *to_x, b, k),
        lambda t, at=None: _numbered(t.permute(to_x), len(samples), at).reshape(-1, b, k),
        lambda t, at=None: _numbered(t.permute(to_y), len(samples), at).reshape(-1, b, o),
        lambda t: t.permute(to_w).reshape(b, k, o),
        lambda m: m.reshape(shape).permute(back),
    )


# -- convolutions ----------------------------------------------------------------------------------


def _convolution(node: Node, geometry: Convolution) -> Layer | None:
    stored = stored_in(node, geometry.kernel)
    if stored is None or stored_in(node, geometry.image) is not None:
        return None
    if geometry.transposed:
        return _transposed(node, stored, geometry)
    weight, groups = stored.weight, geometry.groups
    outs, ins, *kernel = map(probe_of, weight.shape)
    return Layer(
        node,
        geometry.image,
        geometry.kernel,
        stored,
        _bias(node, geometry.bias, -(weight.rank - 1)),
        (1,),
        ("windows", *kernel, *_steps(geometry), *geometry.padding, groups),
        lambda x, at=None: _patches(
            x, kernel, geometry.stride, geometry.dilation, geometry.padding, groups, at
        ),
        lambda y, at=None: _numbered(y.movedim(1, -1), y.dim() - 1, at).reshape(
            -1, groups, outs // groups
        ),
        lambda w: w.reshape(groups, outs // groups, -1).transpose(1, 2),
        lambda m: m.transpose(1, 2).reshape(outs, ins, *kernel),
    )


def _patches(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
    groups: int,
    at: torch.Tensor | None,
) -> torch.Tensor:
    """[samples × positions, groups, channels × kernel] of an input [samples, channels, ...]: im2col
    for any number of dimensions, of all positions or of those numbered by ``at``."""
    wide = x.shape[1] // groups * math.prod(kernel)
    if any(p != (0, 0) for p in padding):
        x = F.pad(x, list(itertools.chain.from_iterable(reversed(list(padding)))))
    n = len(kernel)
    for d, (k, s, e) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        x = x.unfold(d, e * (k - 1) + 1, s)[..., ::e]
    x = x.permute(0, *range(2, 2 + n), 1, *range(2 + n, 2 + 2 * n))  # nothing is copied so far
    return _numbered(x, n + 1, at).reshape(-1, groups, wide)


def _steps(geometry: Convolution) -> tuple[int, ...]:
    return (*geometry.stride, *geometry.dilation)


def _transposed(node: Node, stored: Stored, geometry: Convolution) -> Layer:
    """A transposed convolution is a plain one, with the kernel turned around, of the input spread
    out with zeros."""
    groups, stride, dilation = geometry.groups, geometry.stride, geometry.dilation
    ins, outs, *kernel = map(probe_of, stored.weight.shape)
    n = len(kernel)
    whole = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = [
        (w - before, w - after + extra)
        for w, (before, after), extra in zip(
            whole, geometry.padding, geometry.output_padding, strict=True
        )
    ]
    flip = list(range(3, 3 + n))

    def rows(x: torch.Tensor, at: torch.Tensor | None = None) -> torch.Tensor:
        spread = x.new_zeros(
            *x.shape[:2], *((m - 1) * s + 1 for m, s in zip(x.shape[2:], stride, strict=True))
        )
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
        return _patches(spread, kernel, [1] * n, dilation, padding, groups, at)

    def matrix(w: torch.Tensor) -> torch.Tensor:  # [g i, o, *k] -> [g, i *k, o]
        return (
            w.reshape(groups, ins // groups, outs, *kernel)
            .flip(flip)
            .movedim(2, -1)
            .reshape(groups, -1, outs)
        )

    def array(m: torch.Tensor) -> torch.Tensor:
        return (
            m.reshape(groups, ins // groups, *kernel, outs)
            .movedim(-1, 2)
            .flip(flip)
            .reshape(ins, outs, *kernel)
        )

    return Layer(
        node,
        geometry.image,
        geometry.kernel,
        stored,
        _bias(node, geometry.bias, -(n + 1)),
        (0,),
        ("spread windows", *kernel, *_steps(geometry), *padding, groups),
        rows,
        lambda y, at=None: _numbered(y.movedim(1, -1), n + 1, at).reshape(-1, groups, outs),
        matrix,
        array,
    )
