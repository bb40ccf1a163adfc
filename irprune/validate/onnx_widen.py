"""Models in half precision, computed in float32: a proof is about structure, and where halves are
rounded differs from kernel to kernel.

onnxruntime has no bfloat16 on the CPU at all, and float16 only as casts around float32 that its
optimiser partly removes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from irprune.frontend.onnx.file import Loader

__all__ = ["widen", "widened_inputs"]

Array = NDArray[Any]
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Attributes that hold an element type
_NAMING_TYPES = (
    "to",
    "dtype",
    "output_dtype",
    "stash_type",
    "softmax_precision",
)


def widen(
    model: onnx.ModelProto, data: Mapping[str, Loader], to: int = TensorProto.FLOAT
) -> dict[str, Loader]:
    """Make float32 of every half in ``model``, in place, or float64 of every half and float32,
    where ``to`` says so; returns ``data``, the tensors that lie apart, likewise."""
    out = dict(data)
    narrow = _HALVES if to == TensorProto.FLOAT else (*_HALVES, TensorProto.FLOAT)
    dtype = helper.tensor_dtype_to_np_dtype(to)
    for tensor in _tensors(model):
        if tensor.data_type not in narrow:
            continue
        if tensor.name in data:
            out[tensor.name] = _wide(data[tensor.name], dtype)
            tensor.data_type = to
        else:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name)
            )
    for holder in _types(model):
        if holder.elem_type in narrow:
            holder.elem_type = to
    for node in _nodes(model):
        for attribute in node.attribute:
            if (
                attribute.name in _NAMING_TYPES
                and attribute.type == onnx.AttributeProto.INT
                and attribute.i in narrow
            ):
                attribute.i = to
    return out


def widened_inputs(inputs: Mapping[str, Array], to: int = TensorProto.FLOAT) -> dict[str, Array]:
    """``inputs`` for the model that was widened so."""
    narrow = ("float16", "bfloat16", *(("float32",) if to == TensorProto.DOUBLE else ()))
    dtype = helper.tensor_dtype_to_np_dtype(to)
    return {k: x.astype(dtype) if x.dtype.name in narrow else x for k, x in inputs.items()}


def _wide(load: Loader, dtype: np.dtype[Any]) -> Loader:
    return lambda: load().astype(dtype)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield model.graph
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    waiting = [n for holder in (model.graph, *model.functions) for n in holder.node]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += [n for g in (attribute.g, *attribute.graphs) for n in g.node]


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(model):
        yield from graph.initializer
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _types(model: onnx.ModelProto) -> Iterator[Any]:
    """Every message that says the element type of a value."""
    values = [v for g in _graphs(model) for v in (*g.input, *g.output, *g.value_info)]
    waiting = [v.type for v in (*values, *(v for f in model.functions for v in f.value_info))]
    while waiting:
        kind = waiting.pop()
        which = kind.WhichOneof("value")
        if which in ("tensor_type", "sparse_tensor_type"):
            yield getattr(kind, which)
        elif which in ("sequence_type", "optional_type"):
            waiting.append(getattr(kind, which).elem_type)
