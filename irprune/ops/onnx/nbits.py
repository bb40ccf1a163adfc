"""``com.microsoft::MatMulNBits``: a product with a matrix of 2, 4 or 8 bits a number, of which
blocks along a row share a scale.

The matrix is stored by rows, one for each output: ``N`` rows of blocks of ``block_size`` numbers.
Rows go one by one; inputs go in whole blocks, unless the zero points of several blocks are packed
in one byte."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node, Value
from irprune.ops.aten.contraction import zeroed
from irprune.ops.onnx.importer import (
    Edit,
    OnnxNode,
    Step,
    UnsupportedUse,
    runs,
    sampled,
    spell,
    use,
)
from irprune.ops.onnx.types import like
from irprune.ops.registry import Arg, Cut, Sample, Unsupported
from irprune.ops.registry import op as declare

op = partial(declare, family="nbits")

__all__: list[str] = []


def _rule(axes: Axes, node: Node) -> None:
    x, (rows, blocks, packed) = axes.of(node.operand(0)), axes.of(node.operand(1))
    axes.freeze(packed, "numbers packed in bytes")
    zeros = node.operand(3) if node.has(3) else None
    if x[-1].size != node.attrs["block_size"] * blocks.size:
        _whole(axes, x[-1], blocks, "a last block that is not full")
    elif zeros is not None and zeros.dtype == "u8" and node.attrs["bits"] < 8:
        _whole(axes, x[-1], blocks, "zero points of several blocks in a byte")
    else:
        outer, inner = axes.split(x[-1], blocks.size)
        if outer is None or inner is None:
            raise Unsupported("inputs that are grouped otherwise than in blocks")
        axes.freeze(inner, "a block of numbers that share a scale")
        axes.unify(blocks, outer)
    for value in (node.operand(2), zeros):
        if value is not None:
            _per_block(axes, value, rows, blocks)
    if node.has(5):
        axes.unify(axes.of(node.operand(5))[0], rows)
    node.out.axes = (*x[:-1], rows)


def _whole(axes: Axes, a: Axis, blocks: Axis, why: str) -> None:
    axes.freeze(a, why)
    axes.freeze(blocks, why)


def _per_block(axes: Axes, value: Value, rows: Axis, blocks: Axis) -> None:
    """Scales or zero points: a row for each output, as one dimension or two; packed ones are fewer
    than blocks."""
    own = axes.of(value)
    count = value.shape[-1] if value.rank == 2 else value.shape[0] // rows.size
    inner = blocks if count == blocks.size else axes.frozen(count, "zero points packed in bytes")
    for a, b in zip(
        own, (rows, inner) if value.rank == 2 else (axes.product((rows, inner)),), strict=True
    ):
        axes.unify(a, b)


def _read(node: OnnxNode) -> Step:
    a = node.attrs
    if node.has(4):
        raise UnsupportedUse("a MatMulNBits whose inputs are reordered")
    if a.get("bits", 4) not in (2, 4, 8) or node.rank(1) != 3:
        raise UnsupportedUse("a MatMulNBits of an unusual layout")
    attrs = {"n": a["N"], "k": a["K"], "bits": a.get("bits", 4), "block_size": a["block_size"]}
    return Step("matmul_nbits", None, attrs, [like(node, shape=(*node.shape()[:-1], a["N"]))])


def _resize(node: Node, cut: Cut) -> None:
    node.attrs["n"], node.attrs["k"] = (
        cut.size((node.out.axes or ())[-1]),
        cut.size((node.operand(0).axes or ())[-1]),
    )


def _write(edit: Edit, node: Node) -> None:
    for name, size in (("N", node.attrs["n"]), ("K", node.attrs["k"])):
        if edit.attrs[name] != size:
            edit.attr(name, size)


def _silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    return run(
        zeroed(torch, operands[0], present(node.operand(0), [node.operand(0).rank - 1])),
        *operands[1:],
    )


def _macs(node: Node) -> tuple[tuple[Axis, ...], ...]:
    return ((*(node.out.axes or ()), (node.operand(0).axes or ())[-1]),)


_ATTRS = {"n": 6, "k": 32, "bits": 4, "block_size": 16}
_MATRIX, _SCALES = Arg((6, 2, 8), "u8", 0, 256), Arg((12,), low=0.5)
op(
    "matmul_nbits",
    _rule,
    run=runs("matmul_nbits"),
    resize=_resize,
    silence=_silence,
    macs=_macs,
    samples=(
        Sample((Arg((3, 32)), _MATRIX, _SCALES), _ATTRS, free=3),
        Sample(
            (
                Arg((3, 32)),
                _MATRIX,
                Arg((6, 2), low=0.5),
                Arg((6, 1), "u8", 0, 256),
                None,
                Arg((6,)),
            ),
            _ATTRS,
            free=2,
        ),
        Sample(
            (Arg((3, 32)), Arg((6, 2, 16), "u8", 0, 256), _SCALES, Arg((12,), "u8", 0, 256)),
            {**_ATTRS, "bits": 8},
            free=3,
        ),
    ),
    operands=("data", "weight", "", "", "", "bias"),
)
spell("matmul_nbits", "com.microsoft::MatMulNBits", read=_read, write=_write)

# -- samples ---------------------------------------------------------------------------------------

_BYTES, _ROWS = Arg((6, 2, 8), "u8", 0, 256, stored=True), Arg((12,), low=0.5, stored=True)
sampled(
    "com.microsoft::MatMulNBits",
    use(Arg((3, 32)), _BYTES, _ROWS, free=3, N=6, K=32, bits=4, block_size=16),
    use(
        Arg((3, 32)),
        _BYTES,
        _ROWS,
        Arg((6,), "u8", 0, 256, stored=True),
        free=2,
        N=6,
        K=32,
        bits=4,
        block_size=16,
    ),
)
