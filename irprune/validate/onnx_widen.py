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
from onnx import TensorProto, numpy_helper

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


def widen(model: onnx.ModelProto, data: Mapping[str, Loader]) -> dict[str, Loader]:
    """Make float32 of every half in ``model``, in place; returns ``data``, the tensors that lie
    apart, likewise."""
    out = dict(data)
    for tensor in _tensors(model):
        if tensor.data_type not in _HALVES:
            continue
        if tensor.name in data:
            out[tensor.name] = _wide(data[tensor.name])
            tensor.data_type = TensorProto.FLOAT
        else:
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor).astype(np.float32), tensor.name
                )
            )
    for holder in _types(model):
        if holder.elem_type in _HALVES:
            holder.elem_type = TensorProto.FLOAT
    for node in _nodes(model):
        for attribute in node.attribute:
            if (
                attribute.name in _NAMING_TYPES
                and attribute.type == onnx.AttributeProto.INT
                and attribute.i in _HALVES
            ):
                attribute.i = TensorProto.FLOAT
    return out


def widened_inputs(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """``inputs`` for the widened model."""
    return {
        k: x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x
        for k, x in inputs.items()
    }


def _wide(load: Loader) -> Loader:
    return lambda: load().astype(np.float32)


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
