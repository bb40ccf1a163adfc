"""What a file says, as Python values: element types, attributes, constants, types of values."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from typing import Any
from zlib import crc32

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from irprune.ir.dtype import FROM_ONNX, TO_ONNX
from irprune.ir.graph import TensorType
from irprune.ir.size import Size, Sym, symbol

__all__ = [
    "attributes",
    "constant_array",
    "constant_type",
    "dense",
    "dtype_of",
    "identifier",
    "tensor_of",
    "type_proto",
    "value_type",
]

Array = NDArray[Any]


def tensor_of(name: str, array: Array, elem_type: int) -> onnx.TensorProto:
    """A tensor message that holds ``array`` in an ONNX element type."""
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    made: onnx.TensorProto = numpy_helper.from_array(
        np.ascontiguousarray(array.astype(dtype)), name
    )
    return made


def dtype_of(elem_type: int) -> str:
    """The short name of an ONNX element type."""
    return FROM_ONNX.get(elem_type, f"onnx{elem_type}")


def identifier(name: str) -> str:
    """``name`` as a Python identifier in ASCII; what is changed on the way carries a number that
    tells it from others, so that two names never become one."""
    if name.isascii() and name.isidentifier() and name not in _TAKEN:
        return name
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    return f"d_{text[:40]}_{crc32(name.encode('utf-8', 'surrogatepass')):08x}"


_TAKEN = frozenset(keyword.kwlist) | {"max", "min", "int", "math"}  # what sizes are written with


def is_named(dim: str) -> bool:
    """Whether ``dim`` names a size: what says "unknown" wherever it stands, as PaddlePaddle writes
    it, makes no two sizes the same."""
    return dim not in ("", "?", "-1", "None")


def value_type(proto: onnx.TypeProto, fresh: Callable[[], Size]) -> TensorType:
    """The type of a value; ``fresh()`` gives a symbol for each dimension that has no name."""
    if not proto.HasField("tensor_type"):
        return TensorType(proto.WhichOneof("value") or "?", None)
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(dtype_of(tensor.elem_type), None)
    shape: list[Size] = []
    for d in tensor.shape.dim:
        if d.HasField("dim_value") and d.dim_value >= 0:
            shape.append(d.dim_value)
        elif d.HasField("dim_param") and is_named(d.dim_param):
            shape.append(symbol(identifier(d.dim_param)))
        else:
            shape.append(fresh())
    return TensorType(dtype_of(tensor.elem_type), tuple(shape))


def shortest(x: float) -> float:
    """The shortest decimal that is the same 32-bit number: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(x)))


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes as Python values; tensors as arrays, graphs as they are."""
    out: dict[str, Any] = {}
    for a in node.attribute:
        if a.ref_attr_name:
            continue
        kind = a.type
        if kind == onnx.AttributeProto.FLOAT:
            out[a.name] = shortest(a.f)
        elif kind == onnx.AttributeProto.INT:
            out[a.name] = a.i
        elif kind == onnx.AttributeProto.STRING:
            out[a.name] = a.s.decode("utf-8", "replace")
        elif kind == onnx.AttributeProto.INTS:
            out[a.name] = list(a.ints)
        elif kind == onnx.AttributeProto.FLOATS:
            out[a.name] = [shortest(x) for x in a.floats]
        elif kind == onnx.AttributeProto.STRINGS:
            out[a.name] = [s.decode("utf-8", "replace") for s in a.strings]
        elif kind == onnx.AttributeProto.TENSOR:
            out[a.name] = a.t
        else:
            out[a.name] = helper.get_attribute_value(a)
    return out


def type_proto(kind: TensorType, symbols: dict[str, Sym]) -> onnx.TypeProto:
    """``kind`` as ONNX says it; the expression of a symbolic size is its ``dim_param``, and is
    noted in ``symbols``."""
    if kind.dtype not in TO_ONNX:
        return onnx.TypeProto()
    if kind.shape is None:
        return onnx.helper.make_tensor_type_proto(TO_ONNX[kind.dtype], None)
    shape: list[int | str] = []
    for s in kind.shape:
        if isinstance(s, Sym):
            symbols[str(s)] = s
            shape.append(str(s))
        else:
            shape.append(s)
    return onnx.helper.make_tensor_type_proto(TO_ONNX[kind.dtype], shape)


def constant_array(node: onnx.NodeProto) -> Callable[[], Array] | None:
    """The array of a Constant node; None for what is no dense tensor of numbers."""
    a = next(iter(node.attribute), None)
    if a is None or a.ref_attr_name:
        return None
    if a.name == "value":
        return (
            None if a.t.data_type == onnx.TensorProto.STRING else lambda: numpy_helper.to_array(a.t)
        )
    if a.name == "value_int":
        return lambda: np.array(a.i, np.int64)
    if a.name == "value_ints":
        return lambda: np.array(a.ints, np.int64)
    if a.name == "value_float":
        return lambda: np.array(a.f, np.float32)
    if a.name == "value_floats":
        return lambda: np.array(a.floats, np.float32)
    return None


def constant_type(node: onnx.NodeProto) -> TensorType:
    """The type of what a Constant node holds."""
    a = node.attribute[0]
    if a.name == "value":
        return TensorType(dtype_of(a.t.data_type), tuple(a.t.dims))
    dtype = "i64" if "int" in a.name else "f32"
    return TensorType(dtype, (len(a.ints) + len(a.floats),) if a.name.endswith("s") else ())


def dense(sparse: onnx.SparseTensorProto) -> Array:
    """The whole array of a sparse tensor."""
    values, at = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), values.dtype)
    if at.ndim == 1:
        out.reshape(-1)[at] = values
    else:
        out[tuple(at.T)] = values
    return out
