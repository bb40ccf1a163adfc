"""``com.microsoft::MatMulNBits`` and ``MatMulBnb4``: a product with a matrix of 2, 4 or 8 bits a
number, of which blocks along a row share a scale.

The matrix is stored by rows, one for each output: ``N`` rows of blocks of ``block_size`` numbers.
Rows go one by one; inputs go in whole blocks, unless the zero points of several blocks are packed
in one byte."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node, Value
from irprune.ops.aten.contraction import row_macs, zeroed
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


_ATTRS = {"n": 6, "k": 32, "bits": 4, "block_size": 16}
_MATRIX, _SCALES = Arg((6, 2, 8), "u8", 0, 256), Arg((12,), low=0.5)
op(
    "matmul_nbits",
    _rule,
    run=runs("matmul_nbits"),
    resize=_resize,
    silence=_silence,
    macs=row_macs,
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

# -- places in a table of 16 numbers ---------------------------------------------------------------

# bitsandbytes' tables: https://github.com/bitsandbytes-foundation/bitsandbytes (csrc/kernels.cu)
_TABLES = (
    (0.0, 5.208333333e-03, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25)
    + (-0.0, -5.208333333e-03, -2 / 3, -1.0, -1 / 3, -0.5, -1 / 6, -0.25),
    (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453)
    + (-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0)
    + (0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224)
    + (0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def _table_rule(axes: Axes, node: Node) -> None:
    """Outputs go one by one where no block crosses from one to the next, inputs in whole blocks."""
    x, size = axes.of(node.operand(0)), node.attrs["block_size"]
    matrix, scales = axes.of(node.operand(1)), axes.of(node.operand(2))
    n, k = node.attrs["n"], node.attrs["k"]
    for a in (*matrix[1:], *scales[1:]):
        axes.freeze(a, "numbers packed in bytes")
    rows, packed = axes.split(matrix[0], n)
    also, blocks = axes.split(scales[0], n)
    if k % size or size % 2 or None in (rows, packed, also, blocks):
        for a in (x[-1], matrix[0], scales[0]):
            axes.freeze(a, "blocks that cross from one output to the next")
        node.out.axes = (*x[:-1], axes.frozen(n, "blocks that cross from one output to the next"))
        return
    axes.unify(rows, also)  # type: ignore[arg-type]
    outer, inner = axes.split(x[-1], k // size)
    by_block, in_block = axes.split(packed, k // size)  # type: ignore[arg-type]
    if outer is None or inner is None or by_block is None or in_block is None:
        raise Unsupported("inputs that are grouped otherwise than in blocks")
    axes.freeze(inner, "a block of numbers that share a scale")
    axes.freeze(in_block, "a block of numbers that share a scale")
    axes.unify(blocks, outer)  # type: ignore[arg-type]
    axes.unify(by_block, outer)
    node.out.axes = (*x[:-1], rows)  # type: ignore[arg-type]


def _read_table(node: OnnxNode) -> Step:
    a = node.attrs
    kind = a["quant_type"]
    if kind not in (0, 1) or a.get("training_mode", 0) or a.get("transB", 1) != 1:
        raise UnsupportedUse("a MatMulBnb4 of an unusual layout")
    attrs = {"n": a["N"], "k": a["K"], "block_size": a["block_size"], "table": list(_TABLES[kind])}
    return Step("matmul_bnb4", None, attrs, [like(node, shape=(*node.shape()[:-1], a["N"]))])


_IN_TABLE = {"n": 6, "k": 32, "block_size": 16, "table": list(_TABLES[1])}
op(
    "matmul_bnb4",
    _table_rule,
    run=runs("matmul_bnb4"),
    resize=_resize,
    silence=_silence,
    macs=row_macs,
    samples=(
        Sample((Arg((3, 32)), Arg((96,), "u8", 0, 256), Arg((12,), low=0.5)), _IN_TABLE, free=3),
        Sample(
            (Arg((3, 32)), Arg((96,), "u8", 0, 256), Arg((3,), low=0.5)),
            {**_IN_TABLE, "block_size": 64},
            free=1,
        ),
    ),
    operands=("data", "weight"),
)
spell("matmul_bnb4", "com.microsoft::MatMulBnb4", read=_read_table, write=_write)

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
_HALVES = Arg((96,), "u8", 0, 256, stored=True)
sampled(
    "com.microsoft::MatMulBnb4",
    use(Arg((3, 32)), _HALVES, _ROWS, free=3, N=6, K=32, block_size=16, quant_type=1),
    use(Arg((3, 32)), _HALVES, _ROWS, free=3, N=6, K=32, block_size=16, quant_type=0),
    use(
        Arg((3, 32)),
        _HALVES,
        Arg((3,), low=0.5, stored=True),
        free=1,
        N=6,
        K=32,
        block_size=64,
        quant_type=1,
    ),
)
