"""Types of results, with sizes that may be symbolic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from irprune.ir.graph import Node, Origin, TensorType, Value
from irprune.ir.size import Size, Sym, probe_of, same
from irprune.ops.aten.elementwise import broadcast as broadcast_rule
from irprune.ops.onnx.importer import OnnxNode, Step, UnsupportedUse
from irprune.ops.registry import TABLE

__all__ = ["broadcast", "like", "padded", "position", "reduced_type", "result_type", "window"]


def position(dim: int, rank: int) -> int:
    """``dim`` counted from the front. Raises UnsupportedUse where it is out of range."""
    if not -rank <= dim < max(rank, 1):
        raise UnsupportedUse(f"axis {dim} of a tensor of rank {rank}")
    return dim + rank if dim < 0 else dim


def like(
    node: OnnxNode, i: int = 0, dtype: str | None = None, shape: Sequence[Size] | None = None
) -> TensorType:
    """The type of input ``i`` with another element type or shape."""
    own = node.type(i)
    return TensorType(dtype or own.dtype, own.known if shape is None else tuple(shape))


def broadcast(shapes: Iterable[Sequence[Size]]) -> tuple[Size, ...]:
    """The shape that all ``shapes`` broadcast to. Raises UnsupportedUse where two known sizes
    disagree."""
    rows = [tuple(s) for s in shapes]
    rank = max((len(r) for r in rows), default=0)
    out: list[Size] = []
    for k in range(rank):
        best: Size = 1
        for r in rows:
            j = k - rank + len(r)
            if j < 0 or r[j] == 1:
                continue
            size = r[j]
            if best == 1:
                best = size
            elif isinstance(best, Sym) and isinstance(size, int):
                best = size  # the symbol must be this or 1
            elif isinstance(best, int) and isinstance(size, int) and best != size:
                raise UnsupportedUse(f"shapes {[list(map(str, r)) for r in rows]} do not broadcast")
        out.append(best)
    return tuple(out)


def result_type(step: Step, operands: Sequence[TensorType | None]) -> TensorType | None:
    """The type of the result of ``step`` as the axis rule of its entry has it.

    Args:
        step: the step; its entry multiplies its operands (``Op.letters``) or is element-wise.
        operands: the types of its operands, None for those that are left out.

    Returns:
        The type, of unknown rank where an operand's is; None for entries of other kinds.

    Raises:
        UnsupportedUse: where the operands do not fit.
    """
    entry = TABLE.get(step.op)
    given = [t for t in operands if t is not None]
    if entry is None or not given or (entry.letters is None and entry.rule is not broadcast_rule):
        return None
    if any(t.shape is None for t in given):
        return TensorType(given[0].dtype, None)
    if entry.letters is None:
        return TensorType(given[0].dtype, broadcast(t.known for t in given))
    values = [None if t is None else Value("", t) for t in operands]
    while values and values[-1] is None:
        values.pop()
    *terms, out = entry.letters(Node(step.op, values, dict(step.attrs), [], Origin()))
    sizes: dict[str, Size] = {}
    for value, term in zip(values, terms, strict=False):
        if value is None:
            continue
        if len(term) != value.rank:
            raise UnsupportedUse(f"{step.op} over an operand of shape {value.type}")
        for x, size in zip(term, value.shape, strict=True):
            was = sizes.get(x, 1)
            sizes[x] = size if was == 1 or (isinstance(was, Sym) and isinstance(size, int)) else was
    return TensorType(given[0].dtype, tuple(sizes[x] for x in out))


def reduced_type(
    node: OnnxNode, dims: Iterable[int], keepdim: bool, dtype: str | None = None
) -> TensorType:
    gone = set(dims)
    own = node.type(0)
    return TensorType(
        dtype or own.dtype,
        tuple(1 if k in gone else s for k, s in enumerate(own.known) if keepdim or k not in gone),
    )


def window(
    size: Size, kernel: int, stride: int, dilation: int, begin: int, end: int, ceil: bool = False
) -> Size:
    """How many places a sliding window takes along a dimension; with ``ceil`` the last one may hang
    over, but must begin inside."""
    span = size + (begin + end - dilation * (kernel - 1) - 1)
    if not ceil:
        return span // stride + 1 if stride != 1 else span + 1
    count = (span + (stride - 1)) // stride + 1
    if isinstance(size, int) and isinstance(count, int) and (count - 1) * stride >= size + begin:
        count -= 1
    return count


def padded(
    node: OnnxNode, kernel: Sequence[int], x: Sequence[Size] | None = None
) -> tuple[list[int], list[int], list[int], list[int]]:
    """``strides, dilations, begins, ends`` of a window operator. Raises UnsupportedUse where
    ``auto_pad`` depends on a dynamic size."""
    n = len(kernel)
    strides = list(node.attrs.get("strides") or [1] * n)
    dilations = list(node.attrs.get("dilations") or [1] * n)
    pads = list(node.attrs.get("pads") or [0] * (2 * n))
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return strides, dilations, pads[:n], pads[n:]
    if auto == "VALID":
        return strides, dilations, [0] * n, [0] * n
    begins, ends = [], []
    for size, k, s, d in zip(
        (node.shape(0) if x is None else x)[-n:] if n else (),
        kernel,
        strides,
        dilations,
        strict=True,
    ):
        if isinstance(size, Sym):
            if s != 1:
                raise UnsupportedUse(f"auto_pad={auto} over a dynamic size")
            total = d * (k - 1)
        else:
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return strides, dilations, begins, ends


def agree(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """Whether two shapes are equal."""
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def numel(shape: Iterable[Size]) -> int:
    n = 1
    for s in shape:
        n *= probe_of(s)
    return n
