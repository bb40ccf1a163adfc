"""Layers as plain linear maps: what repair and data-driven criteria need of a linear, a convolution
or a matrix product.

Whatever the operator and however its weight lies, a layer is seen as ``y[n, b, o] = sum_k x[n, b,
k] * w[b, k, o] + bias[b, o]``: samples (with positions) n, blocks b (groups of a convolution,
experts), inputs k (with kernel positions) and outputs o."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from irprune.ir.graph import Graph, Node, Weight
from irprune.ir.size import Sym, probe_of
from irprune.ops.registry import lookup

__all__ = ["Bias", "Layer", "layer_of", "layers"]


@dataclass(frozen=True)
class Bias:
    """Where an offset of a layer's results may be put: ``weight``, added with ``sign`` (-1 for the
    running mean of a batch norm)."""

    weight: Weight
    sign: int = 1


class Rows(Protocol):
    """What turns an activation into rows, all of them or those numbered by ``at`` [n]."""

    def __call__(self, x: torch.Tensor, at: torch.Tensor | None = None) -> torch.Tensor: ...


@dataclass(frozen=True)
class Layer:
    """A node that maps ``x`` (operand ``at``) linearly by ``weight`` (operand ``by``).

    ``rows(x)`` is [n, b, k], ``targets(y)`` [n, b, o], both also for some row numbers alone, which
    is cheaper than to choose among all rows; ``matrix(w)`` is [b, k, o] and ``array(m)`` its
    inverse; ``inputs`` is the dimension of the weight that is summed over, None where there is none
    (depthwise). Layers of equal ``reads`` make the same rows of the same activation."""

    node: Node
    at: int
    by: int
    weight: Weight
    bias: Bias | None
    inputs: tuple[int, ...]
    reads: tuple[Any, ...]
    rows: Rows
    targets: Rows
    matrix: Callable[[torch.Tensor], torch.Tensor]
    array: Callable[[torch.Tensor], torch.Tensor]

    def shared(self) -> bool:
        """Whether other nodes, or other operands of this one, read the weight too, or the user
        knows it under several names."""
        return sum(self.weight.users.values()) > 1 or bool(self.weight.aliases)


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
    if node.op in ("conv", "conv_transpose", "convolution"):
        return _convolution(node)
    entry = lookup(node)
    if entry is not None and entry.letters is not None:
        return _contraction(node, entry.letters(node))
    return None


def _numbered(view: torch.Tensor, lead: int, at: torch.Tensor | None) -> torch.Tensor:
    """``view`` itself, or those of its rows that ``at`` numbers along its first ``lead`` dimensions
    in row-major order."""
    if at is None:
        return view
    return view[torch.unravel_index(at.to(view.device), view.shape[:lead])]


# -- bias ------------------------------------------------------------------------------------------


def _own(value: Any) -> Weight | None:
    """A weight that this one reader has to itself."""
    return (
        value
        if isinstance(value, Weight) and sum(value.users.values()) == 1 and not value.aliases
        else None
    )


def _bias(node: Node, place: int | None, channel: int) -> Bias | None:
    """The bias operand, else the running mean of a batch norm or the summand of an addition that
    alone read the result.

    ``channel`` is the dimension of the result that a vector of offsets runs over, counted from the
    end."""
    if place is not None and node.has(place):
        own = _own(node.inputs[place])
        return Bias(own) if own is not None and own.rank == 1 else None
    users = list(node.out.users)
    if (
        len(users) != 1
        or node.out.users[users[0]] != 1
        or any(v is node.out for v in _outputs(node))
    ):
        return None
    user = users[0]
    if (
        user.op == "batch_norm"
        and user.has(3)
        and user.inputs[0] is node.out
        and channel == -(node.out.rank - 1)
    ):
        mean = _own(user.inputs[3])
        return Bias(mean, -1) if mean is not None else None
    if user.op == "add" and len(user.inputs) == 2 and user.attrs.get("alpha", 1) == 1:
        other = _own(user.inputs[1] if user.inputs[0] is node.out else user.inputs[0])
        if other is not None and user.out.shape == node.out.shape:
            shape: list[Any] = [1] * other.rank
            if other.rank >= -channel:
                shape[channel] = node.out.shape[channel]
                if list(other.shape) == shape:
                    return Bias(other)
    return None


def _outputs(node: Node) -> list[Any]:
    return node.graph.outputs if node.graph is not None else []


# -- products of tensors ---------------------------------------------------------------------------


def _contraction(node: Node, letters: tuple[list[str], ...]) -> Layer | None:
    """An activation times one weight, in whatever order their letters stand."""
    *terms, out = letters
    held = [
        i
        for i, t in enumerate(terms)
        if t and i < len(node.inputs) and isinstance(node.inputs[i], Weight)
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
    value, weight = node.operand(moving[0]), node.operand(summed[0])
    assert isinstance(weight, Weight)
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
        weight,
        _bias(node, added[0] if added else None, channel) if channel else None,
        tuple(w.index(a) for a in inner),
        ("contraction", *to_x, b, k),
        lambda t, at=None: _numbered(t.permute(to_x), len(samples), at).reshape(-1, b, k),
        lambda t, at=None: _numbered(t.permute(to_y), len(samples), at).reshape(-1, b, o),
        lambda t: t.permute(to_w).reshape(b, k, o),
        lambda m: m.reshape(shape).permute(back),
    )


# -- convolutions ----------------------------------------------------------------------------------


def _many(x: Any, n: int) -> list[int]:
    many = list(x) if isinstance(x, (list, tuple)) else [x]
    return many * n if len(many) == 1 else many


def _convolution(node: Node) -> Layer | None:
    weight = node.inputs[1]
    if (
        not isinstance(weight, Weight)
        or isinstance(node.inputs[0], Weight)
        or node.operand(0).rank != weight.rank
    ):
        return None
    if node.op == "conv_transpose" or node.attrs.get("transposed"):
        return _transposed(node, weight)
    n = weight.rank - 2
    groups = int(node.attrs.get("groups", 1))
    stride, dilation = (
        _many(node.attrs.get("stride", 1), n),
        _many(node.attrs.get("dilation", 1), n),
    )
    outs, ins, *kernel = map(probe_of, weight.shape)
    padding = _paddings(node.attrs.get("padding", 0), kernel, dilation)
    return Layer(
        node,
        0,
        1,
        weight,
        _bias(node, 2, -(n + 1)),
        (1,),
        ("conv", *kernel, *stride, *dilation, *padding, groups),
        lambda x, at=None: _patches(x, kernel, stride, dilation, padding, groups, at),
        lambda y, at=None: _numbered(y.movedim(1, -1), n + 1, at).reshape(
            -1, groups, outs // groups
        ),
        lambda w: w.reshape(groups, outs // groups, -1).transpose(1, 2),
        lambda m: m.transpose(1, 2).reshape(outs, ins, *kernel),
    )


def _paddings(spec: Any, kernel: list[int], dilation: list[int]) -> list[tuple[int, int]]:
    if spec == "valid":
        return [(0, 0)] * len(kernel)
    if spec == "same":
        whole = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(w // 2, w - w // 2) for w in whole]
    return [(p, p) for p in _many(spec, len(kernel))]


def _patches(
    x: torch.Tensor,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    padding: list[tuple[int, int]],
    groups: int,
    at: torch.Tensor | None = None,
) -> torch.Tensor:
    """[samples × positions, groups, channels × kernel] of an input [samples, channels, ...]: im2col
    for any number of dimensions, of all positions or of those numbered by ``at``."""
    wide = x.shape[1] // groups * math.prod(kernel)
    if any(p != (0, 0) for p in padding):
        x = F.pad(x, list(itertools.chain.from_iterable(reversed(padding))))
    n = len(kernel)
    for d, (k, s, e) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        x = x.unfold(d, e * (k - 1) + 1, s)[..., ::e]
    x = x.permute(0, *range(2, 2 + n), 1, *range(2 + n, 2 + 2 * n))  # nothing is copied so far
    return _numbered(x, n + 1, at).reshape(-1, groups, wide)


def _transposed(node: Node, weight: Weight) -> Layer:
    """A transposed convolution is a plain one, with the kernel turned around, of the input spread
    out with zeros."""
    n = weight.rank - 2
    groups = int(node.attrs.get("groups", 1))
    stride, dilation = (
        _many(node.attrs.get("stride", 1), n),
        _many(node.attrs.get("dilation", 1), n),
    )
    pad, extra = (
        _many(node.attrs.get("padding", 0), n),
        _many(node.attrs.get("output_padding", 0), n),
    )
    ins, outs, *kernel = map(probe_of, weight.shape)
    whole = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = [(w - p, w - p + e) for w, p, e in zip(whole, pad, extra, strict=True)]
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
        0,
        1,
        weight,
        _bias(node, 2, -(n + 1)),
        (0,),
        ("conv_transpose", *kernel, *stride, *dilation, *padding, groups),
        rows,
        lambda y, at=None: _numbered(y.movedim(1, -1), n + 1, at).reshape(-1, groups, outs),
        matrix,
        array,
    )
