"""What a file says, as Python values: element types, attributes, types of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from irprune.ir.graph import TensorType
from irprune.ir.size import Size, symbol

__all__ = ["DTYPES", "NAMES", "attributes", "dtype_of", "identifier", "numpy_dtype", "value_type"]

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "f32",
    TensorProto.DOUBLE: "f64",
    TensorProto.FLOAT16: "f16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT64: "i64",
    TensorProto.INT32: "i32",
    TensorProto.INT16: "i16",
    TensorProto.INT8: "i8",
    TensorProto.UINT64: "u64",
    TensorProto.UINT32: "u32",
    TensorProto.UINT16: "u16",
    TensorProto.UINT8: "u8",
    TensorProto.BOOL: "bool",
    TensorProto.COMPLEX64: "c64",
    TensorProto.COMPLEX128: "c128",
    TensorProto.STRING: "str",
    TensorProto.FLOAT8E4M3FN: "f8e4m3fn",
    TensorProto.FLOAT8E5M2: "f8e5m2",
    TensorProto.FLOAT8E4M3FNUZ: "f8e4m3fnuz",
    TensorProto.FLOAT8E5M2FNUZ: "f8e5m2fnuz",
    TensorProto.UINT4: "u4",
    TensorProto.INT4: "i4",
    TensorProto.FLOAT4E2M1: "f4e2m1",
}
NAMES = {v: k for k, v in DTYPES.items()}


def dtype_of(elem_type: int) -> str:
    """The short name of an ONNX element type."""
    return DTYPES.get(elem_type, f"onnx{elem_type}")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The array type of a short name (``ml_dtypes`` for what numpy lacks)."""
    return helper.tensor_dtype_to_np_dtype(NAMES[name])


def identifier(name: str) -> str:
    """``name`` as a Python identifier."""
    text = "".join(c if c.isalnum() else "_" for c in name) or "n"
    return "d_" + text if text[0].isdigit() else text


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
        elif d.HasField("dim_param") and d.dim_param:
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
