"""What a file says, as Python values: element types, attributes, tensors loaded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from irprune.errors import IrpruneError
from irprune.ir.graph import TensorType
from irprune.ir.size import Size, symbol

__all__ = ["DTYPES", "NAMES", "attributes", "dtype_of", "load_model", "loader", "numpy_dtype", "value_type"]

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


# -- tensors -----------------------------------------------------------------------------------------------------------


def loader(tensor: TensorProto, folder: Path | None) -> Callable[[], NDArray[Any]]:
    """A function that gives the array of ``tensor``: from memory, or from its external file, mapped rather than read.

    Raises IrpruneError for external data that is missing, too short or outside ``folder``.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return lambda: numpy_helper.to_array(tensor)
    info = {e.key: e.value for e in tensor.external_data}
    place = info.get("location", "")
    if folder is None:
        raise IrpruneError(
            f"the data of '{tensor.name}' lies in '{place}', and a model given as an object has no folder", hint="give the path of the file"
        )
    path = inside(folder, place, tensor.name)
    offset = int(info.get("offset", 0))
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    count = int(np.prod(shape, dtype=np.int64))
    length = int(info.get("length", 0)) or count * dtype.itemsize
    if not path.is_file():
        raise IrpruneError(f"the external data of '{tensor.name}' is missing", str(path), "copy the file next to the model")
    if path.stat().st_size < offset + length:
        raise IrpruneError(f"the external data of '{tensor.name}' ends early", str(path), "copy the file again")
    if tensor.data_type in (TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1) or length != count * dtype.itemsize:
        return lambda: _read_packed(tensor, path, offset, length)

    def load() -> NDArray[Any]:
        if not count:
            return np.zeros(shape, dtype)
        flat = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(length,))
        return flat.view(dtype).reshape(shape)

    return load


def _read_packed(tensor: TensorProto, path: Path, offset: int, length: int) -> NDArray[Any]:
    full = TensorProto()
    full.CopyFrom(tensor)
    del full.external_data[:]
    full.data_location = TensorProto.DEFAULT
    with path.open("rb") as file:
        file.seek(offset)
        full.raw_data = file.read(length)
    return numpy_helper.to_array(full)


def inside(folder: Path, place: str, name: str) -> Path:
    """The external file ``place`` of tensor ``name``. Raises IrpruneError where it leaves ``folder``, by name or through a link."""
    path = Path(os.path.normpath(folder / place))
    root = folder.resolve()
    if not place or Path(place).is_absolute() or not path.resolve().is_relative_to(root):
        raise IrpruneError(
            f"the external data of '{name}' leaves the model's folder", place or "(no path)", "only files beside the model are read"
        )
    return path


def load_model(path: Path) -> onnx.ModelProto:
    """The model in ``path``, external data left where it is. Raises IrpruneError where it is no model."""
    if not path.exists():
        raise IrpruneError("no such file", str(path))
    if path.is_dir():
        raise IrpruneError("a folder, not an ONNX file", str(path))
    if path.stat().st_size == 0:
        raise IrpruneError("an empty file", str(path))
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise IrpruneError("not a complete ONNX file", str(path), f"protobuf says: {error}") from error
    if not model.HasField("graph") or not model.graph.output:
        raise IrpruneError("not an ONNX model: it has no graph with outputs", str(path))
    return model
