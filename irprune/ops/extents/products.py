"""Products of tensors, attention and recurrent layers."""

from __future__ import annotations

from irprune.ir.graph import Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size
from irprune.ops.extents import extents
from irprune.ops.extents.helpers import broadcast
from irprune.ops.registry import lookup

__all__ = ["by_letters", "by_signature"]


def by_letters(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """What the letters of a product say: operands' dimensions of one letter are equal, 1 is
    stretched."""
    entry = lookup(node)
    assert entry is not None and entry.letters is not None
    *operands, result = entry.letters(node)
    size: dict[str, Size] = {}
    for value, letters in zip(node.inputs, operands, strict=False):
        for s, x in zip(value.shape, letters, strict=True) if value is not None else ():
            size[x] = sizes.broadcast(size[x], s) if x in size else s
    return [tuple(size.get(x, 1) for x in result)]


def by_signature(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """What the letters of a signature say."""
    entry = lookup(node)
    assert entry is not None and entry.signature is not None
    return entry.signature.shapes(node, sizes.broadcast)


@extents("scaled_dot_product_attention")
def attention(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Queries with the width of the values; the other dimensions are those of all three."""
    q, k, v = (node.operand(i).shape for i in range(3))
    sizes.meet(q[-1], k[-1])
    sizes.meet(k[-2], v[-2])
    if node.has(3):
        broadcast((node.operand(3).shape[-2:], (q[-2], k[-2])), sizes)
    if node.attrs.get("enable_gqa"):
        lead = broadcast((q[:-3], k[:-3], v[:-3]), sizes) + q[-3:-2]
    else:
        lead = broadcast((q[:-2], k[:-2], v[:-2]), sizes)
    return [(*lead, q[-2], v[-1])]


@extents("lstm", "gru", "rnn_tanh", "rnn_relu")
def layer(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Steps and samples as they come, widths from the weights; the states have no steps."""
    shape = node.operand(0).shape
    sizes.fixed(shape[-1])
    made = node.out.shape
    samples = shape[0 if node.attrs.get("batch_first") else 1]
    states = []
    for k, v in enumerate(node.outputs[1:]):
        given = node.operand(1 + k).shape
        states.append((v.shape[0], sizes.meet(samples, given[1]), v.shape[2]))
    return [(*shape[:2], made[2]), *states]


@extents("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Samples as they come, widths from the weights."""
    shape = node.operand(0).shape
    sizes.fixed(shape[-1])
    lead = [sizes.meet(a, b) for a, b in zip(shape[:-1], node.operand(1).shape[:-1], strict=True)]
    return [(*lead, v.shape[-1]) for v in node.outputs]


@extents("cross")
def cross(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Both shapes, stretched to each other."""
    return [broadcast((node.operand(0).shape, node.operand(1).shape), sizes)]
