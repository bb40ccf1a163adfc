"""Shape arithmetic: the values of small integer tensors, with symbols for sizes known only at run
time.

Both exporters of torch compute the targets of Reshape, Expand, Slice and Resize from ``Shape``.
``fold`` follows what they write on arrays whose elements are numbers or ``Sym``; what it cannot
follow is unknown (None), never guessed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.ir.dtype import FROM_ONNX, is_integer, numpy_dtype
from irprune.ir.graph import TensorType
from irprune.ir.size import Sym, probe_of

__all__ = [
    "LIMIT",
    "SIZES",
    "cast_to",
    "fold",
    "is_cast",
    "is_choice",
    "is_constant",
    "is_copy",
    "is_filled",
    "reads_sizes",
    "symbolic",
]

SIZES = "sizes"  # the entry that computed shape arithmetic is, where it is read as a tensor
LIMIT = 64  # elements: shape arithmetic is over vectors as long as a rank; larger tensors are data
Array = NDArray[Any]


def symbolic(array: Array) -> bool:
    """Whether an element is known only at run time."""
    return array.dtype == object and any(isinstance(x, Sym) for x in array.reshape(-1))


def pack(values: Any, dtype: str) -> Array:
    """An array of ``dtype`` if all values are numbers, of objects otherwise."""
    array = np.array(values, dtype=object)
    return array if symbolic(array) else array.astype(numpy_dtype(dtype))


def fold(
    op: str,
    opset: int,
    attrs: dict[str, Any],
    types: Sequence[TensorType | None],
    known: Callable[[int], Array | None],
) -> list[Array] | None:
    """The values of the results of an ONNX operator, or None where they are not known."""
    handler = _HANDLERS.get(op)
    if handler is None:
        return None
    try:
        made = handler(opset, attrs, types, lambda i: _settled(known(i), types[i]))
    except (_Unknown, IndexError, ValueError, TypeError, ZeroDivisionError):
        return None
    many = made if isinstance(made, list) else [made]
    return None if any(a.size > LIMIT for a in many) else many


def _settled(array: Array | None, kind: TensorType | None) -> Array | None:
    """What was taken out of a shape with symbols in it, as numbers of its own type where no symbol
    came along."""
    if array is None or kind is None or array.dtype != object or symbolic(array):
        return array
    return array.astype(numpy_dtype(kind.dtype))


class _Unknown(Exception):
    pass


def _need(known: Callable[[int], Array | None], i: int) -> Array:
    array = known(i)
    if array is None:
        raise _Unknown
    return array


def _ints(known: Callable[[int], Array | None], i: int) -> list[int]:
    array = _need(known, i)
    if symbolic(array):
        raise _Unknown
    return [int(x) for x in array.reshape(-1)]


def _axes(
    opset: int,
    attrs: dict[str, Any],
    types: Sequence[TensorType | None],
    known: Callable[[int], Array | None],
    since: int,
    i: int,
) -> list[int] | None:
    if opset < since:
        return attrs.get("axes")
    return _ints(known, i) if i < len(types) and types[i] is not None else None


def _shape(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    kind = types[0]
    if kind is None or kind.shape is None:
        raise _Unknown
    return pack(list(kind.shape[attrs.get("start", 0) : attrs.get("end")]), "i64")


def _size(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    kind = types[0]
    if kind is None or kind.shape is None:
        raise _Unknown
    total: Any = 1
    for s in kind.shape:
        total = total * s
    return pack(total, "i64")


def _binary(f: Callable[[Any, Any], Any]) -> Any:
    def handler(
        opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
    ) -> Array:
        a, b = _need(known, 0), _need(known, 1)
        if symbolic(a) or symbolic(b):
            if (
                types[0] is not None
                and not is_integer(types[0].dtype)
                and f in (_quotient, _modulo, operator.pow)
            ):
                raise _Unknown
            made = np.frompyfunc(f, 2, 1)(a.astype(object), b.astype(object))
            return pack(made, types[0].dtype if types[0] else "i64")
        with np.errstate(all="ignore"):
            out = np.asarray(np.frompyfunc(f, 2, 1)(a.astype(object), b.astype(object)))
            return out.astype(np.result_type(a, b)) if a.dtype.kind in "iu" else _float(f, a, b)

    return handler


def _float(f: Callable[[Any, Any], Any], a: Array, b: Array) -> Array:
    return np.asarray(_TRUE.get(f, f)(a, b))


def _quotient(a: Any, b: Any) -> Any:
    """Integer division of ONNX rounds towards zero; sizes are never negative, so a symbol's floor
    is the same."""
    if isinstance(a, Sym) or isinstance(b, Sym):
        if probe_of(b) <= 0 or probe_of(a) < 0:
            raise _Unknown
        return a // b
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def _modulo(a: Any, b: Any) -> Any:
    return a % b


def _min(a: Any, b: Any) -> Any:
    if isinstance(a, Sym) or isinstance(b, Sym):
        if isinstance(a, int) and a >= 2**31:
            return b
        if isinstance(b, int) and b >= 2**31:
            return a
        raise _Unknown
    return min(a, b)


def _max(a: Any, b: Any) -> Any:
    if isinstance(a, Sym) or isinstance(b, Sym):
        if isinstance(a, int) and a <= 0:
            return b
        if isinstance(b, int) and b <= 0:
            return a
        if isinstance(a, Sym) and isinstance(b, Sym) and a.probe == b.probe:
            return a
        if a == 1 or b == 1:
            return b if a == 1 else a  # a size is at least 1
        raise _Unknown
    return max(a, b)


_TRUE: dict[Any, Any] = {
    _quotient: np.true_divide,
    _min: np.minimum,
    _max: np.maximum,
    _modulo: np.fmod,
}


def _variadic(f: Callable[[Any, Any], Any]) -> Any:
    two = _binary(f)

    def handler(
        opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
    ) -> Array:
        out = _need(known, 0)
        for i in range(1, len(types)):
            rest = _need(known, i)
            out = two(opset, attrs, types, lambda k, a=out, b=rest: (a, b)[k])
        return out

    return handler


def _compare(f: Callable[[Any, Any], Any]) -> Any:
    """A symbol compared with a constant: it is no particular number, and positive."""

    def one(a: Any, b: Any) -> bool:
        if isinstance(a, Sym) or isinstance(b, Sym):
            x, y = probe_of(a), probe_of(b)
            if isinstance(a, Sym) and isinstance(b, Sym):
                if x == y:
                    return bool(f(x, y))
                raise _Unknown
            if y > 0 if isinstance(a, Sym) else x > 0:
                raise _Unknown
        return bool(f(probe_of(a), probe_of(b)))

    def handler(
        opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
    ) -> Array:
        a, b = _need(known, 0), _need(known, 1)
        return np.asarray(np.frompyfunc(one, 2, 1)(a.astype(object), b.astype(object))).astype(bool)

    return handler


def _where(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    c, a, b = (_need(known, i) for i in range(3))
    kind = types[1]
    made = np.frompyfunc(lambda c, x, y: x if c else y, 3, 1)(c, a.astype(object), b.astype(object))
    return pack(made, kind.dtype if kind else "i64")


def _unary(f: Callable[[Any], Any], floats: bool = False) -> Any:
    def handler(
        opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
    ) -> Array:
        a = _need(known, 0)
        if symbolic(a):
            if floats:
                raise _Unknown
            return np.asarray(np.frompyfunc(f, 1, 1)(a))
        with np.errstate(all="ignore"):
            return np.asarray(f(a)).astype(a.dtype)

    return handler


def _cast(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    a, to = _need(known, 0), FROM_ONNX[attrs["to"]]
    if symbolic(a):
        if to[0] not in "iuf":
            raise _Unknown
        return a
    return a.astype(numpy_dtype(to))


def _gather(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    index = _need(known, 1)
    return np.asarray(
        np.take(_need(known, 0), index.astype(np.int64), axis=attrs.get("axis", 0)),
        dtype=_need(known, 0).dtype,
    )


def _concat(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    rows = [_need(known, i) for i in range(len(types))]
    if any(r.dtype == object for r in rows):
        rows = [r.astype(object) for r in rows]
    return np.concatenate(rows, axis=attrs["axis"])


def _slice(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    a = _need(known, 0)
    if opset < 10:
        starts, ends = attrs["starts"], attrs["ends"]
        axes, steps = attrs.get("axes"), None
    else:
        starts, ends = _ints(known, 1), _ints(known, 2)
        axes = _ints(known, 3) if len(types) > 3 and types[3] is not None else None
        steps = _ints(known, 4) if len(types) > 4 and types[4] is not None else None
    index = [slice(None)] * a.ndim
    for k, d in enumerate(axes if axes is not None else range(len(starts))):
        step = steps[k] if steps else 1
        end = ends[k]
        if step < 0 and end <= -(2**31):
            end = None
        index[d] = slice(starts[k], end, step)
    return a[tuple(index)]


def _unsqueeze(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    a, axes = _need(known, 0), _axes(opset, attrs, types, known, 13, 1) or []
    rank = a.ndim + len(axes)
    return np.expand_dims(a, tuple(d % rank for d in axes))


def _squeeze(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    a, axes = _need(known, 0), _axes(opset, attrs, types, known, 13, 1)
    return np.squeeze(a, None if axes is None else tuple(axes))


def _reshape(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    a, shape = _need(known, 0), _ints(known, 1)
    return a.reshape(
        [a.shape[k] if s == 0 and not attrs.get("allowzero") else s for k, s in enumerate(shape)]
    )


def _filled(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    shape = _ints(known, 0)
    if np.prod(shape, dtype=np.int64) > LIMIT:
        raise _Unknown
    from onnx import numpy_helper  # the attribute is still a message of the file

    value = numpy_helper.to_array(attrs["value"]) if "value" in attrs else np.zeros(1, np.float32)
    return np.full(shape, value.reshape(-1)[0], dtype=value.dtype)


def _range(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    start, end, step = (_need(known, i) for i in range(3))
    if any(map(symbolic, (start, end, step))):
        raise _Unknown
    if abs((float(end) - float(start)) / float(step)) > LIMIT:
        raise _Unknown
    return np.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _expand(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    a, shape = _need(known, 0), _ints(known, 1)
    if np.prod(shape, dtype=np.int64) > LIMIT:
        raise _Unknown
    return np.array(np.broadcast_to(a, np.broadcast_shapes(a.shape, tuple(shape))))


def _split(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> list[Array]:
    a, axis = _need(known, 0), attrs.get("axis", 0)
    sizes = attrs.get("split") if opset < 13 else _ints(known, 1)
    return list(np.split(a, np.cumsum(sizes)[:-1], axis=axis))  # type: ignore[arg-type]


def _transpose(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    return _need(known, 0).transpose(attrs.get("perm"))


def _prod(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    a = _need(known, 0)
    axes = _axes(opset, attrs, types, known, 18, 1)
    if a.ndim > 1 or axes not in (None, [], [0], [-1]):
        raise _Unknown
    total: Any = 1
    for x in a.reshape(-1).tolist():
        total = total * x
    return pack(
        [total] if attrs.get("keepdims", 1) and a.ndim else total,
        types[0].dtype if types[0] else "i64",
    )


def _identity(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    return _need(known, 0)


def _not(
    opset: int, attrs: dict[str, Any], types: Sequence[TensorType | None], known: Any
) -> Array:
    return ~_need(known, 0).astype(bool)


_HANDLERS: dict[str, Any] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Cast": _cast,
    "ConstantOfShape": _filled,
    "Range": _range,
    "Expand": _expand,
    "ReduceProd": _prod,
    "Where": _where,
    "Split": _split,
    "Transpose": _transpose,
    "Identity": _identity,
    "Not": _not,
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(_quotient),
    "Mod": _binary(_modulo),
    "Min": _variadic(_min),
    "Max": _variadic(_max),
    "Equal": _compare(operator.eq),
    "Greater": _compare(operator.gt),
    "Less": _compare(operator.lt),
    "GreaterOrEqual": _compare(operator.ge),
    "LessOrEqual": _compare(operator.le),
    "Neg": _unary(operator.neg),
    "Abs": _unary(abs),
    "Floor": _unary(np.floor, True),
    "Ceil": _unary(np.ceil, True),
    "Sqrt": _unary(np.sqrt, True),
    "Reciprocal": _unary(np.reciprocal, True),
    "Pow": _binary(operator.pow),
    "And": _compare(lambda a, b: a and b),
    "Or": _compare(lambda a, b: a or b),
}


# -- operators that hold or read what is known -----------------------------------------------------


def is_constant(target: str) -> bool:
    """Whether an ONNX operator holds its result as an attribute."""
    return target == "Constant"


def is_choice(op: str) -> bool:
    """Whether the operator runs one of two bodies, by its first operand."""
    return op == "If"


def is_filled(target: str) -> bool:
    """Whether an ONNX operator makes a tensor of a given shape that is one number all over."""
    return target == "ConstantOfShape"


def reads_sizes(target: str) -> bool:
    """Whether an ONNX operator reads of its operand the sizes alone."""
    return target in ("Shape", "Size")


def is_copy(target: str) -> bool:
    """Whether an ONNX operator gives back its input as it is."""
    return target == "Identity"


def is_cast(target: str) -> bool:
    """Whether an ONNX operator changes the element type alone."""
    return target == "Cast"


def cast_to(target: str, attrs: dict[str, Any]) -> int | None:
    """The ONNX number of the element type that an operator casts to, None for one that casts
    nothing."""
    return int(attrs["to"]) if is_cast(target) else None
