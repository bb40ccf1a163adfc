"""Writing an ONNX model whose tensors lie apart: one after the other, so that no second copy of the
weights is ever held."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from irprune.base.atomic_write import atomic_write, content_name
from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import (
    GRAPH,
    INITIALIZER,
    LARGE,
    RAW_DATA,
    Loader,
    data_beside,
    fields,
    varint,
)
from irprune.ir.dtype import ELEMENT_TYPES

__all__ = ["fits_message", "held_bytes", "size_of", "with_arrays", "without_arrays", "write_model"]

LIMIT = 2**31 - 2**20  # bytes that one protobuf message can hold, with room for the rest
_HALF_BYTES = tuple(t.onnx for t in ELEMENT_TYPES.values() if t.bits == 4)
_CONTENT = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "external_data",
    "data_location",
)


def without_arrays(
    name: str, elem_type: int, shape: tuple[int, ...], like: TensorProto | None = None
) -> TensorProto:
    """A tensor whose data lies apart; doc string and metadata are those of ``like``."""
    made = TensorProto()
    if like is not None:
        made.CopyFrom(like)
        for kind in _CONTENT:
            made.ClearField(kind)
        if like.data_type != elem_type:
            raise IrpruneError(
                f"'{name}' changed its element type from {like.data_type} to {elem_type}"
            )
    made.name, made.data_type, made.dims[:] = name, elem_type, shape
    return made


def size_of(tensor: TensorProto) -> int:
    """Bytes that the data of ``tensor`` takes."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return (
        (count + 1) // 2
        if tensor.data_type in _HALF_BYTES
        else count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )


def with_arrays(model: onnx.ModelProto, data: Mapping[str, Loader]) -> onnx.ModelProto:
    """``model`` itself, with the arrays of ``data`` put into its initializers. Raises IrpruneError
    where one message cannot hold them."""
    if not fits_message(model, data):
        raise IrpruneError(
            "the model passes 2 GB and fits into no message", model.graph.name, "write it to a file"
        )
    for tensor in model.graph.initializer:
        if tensor.name in data:
            tensor.raw_data = _content(tensor, data[tensor.name]).tobytes()
    return model


def write_model(
    model: onnx.ModelProto,
    data: Mapping[str, Loader],
    path: Path,
    outside: Container[str] | None = None,
) -> Path:
    """Write ``model`` with the arrays of ``data``; returns the path.

    ``outside`` (None: nothing does) names tensors that lie beside the model whatever their size.
    Where there is such a list, or the file would pass 2 GB, all but small tensors go to
    ``<name>.<digest>.data``: the name follows from the content, so that a model never reads the
    numbers of another version. Written aside and renamed: whole or not at all."""
    if outside is None and not fits_message(model, data):
        outside = ()
    with atomic_write(path, data_beside) as draft:
        inside = dict(data)
        if outside is not None:
            _write_outside(model, inside, draft, path.name, outside)
        with (draft / path.name).open("wb") as file:
            for piece in _pieces(model, inside):
                file.write(piece)
    return path


def fits_message(model: onnx.ModelProto, data: Mapping[str, Loader]) -> bool:
    """Whether one protobuf message holds ``model`` with the arrays of ``data``."""
    return held_bytes(model, data) <= LIMIT


def held_bytes(model: onnx.ModelProto, data: Mapping[str, Loader]) -> int:
    """Bytes of ``model`` with the arrays of ``data``."""
    return int(model.ByteSize()) + sum(
        size_of(t) for t in model.graph.initializer if t.name in data
    )


def _content(tensor: TensorProto, load: Loader) -> NDArray[np.uint8]:
    """The bytes of ``tensor`` as ONNX stores them. Raises IrpruneError where the array is not what
    the tensor says."""
    array = load()
    if array.shape != tuple(tensor.dims) or array.dtype != helper.tensor_dtype_to_np_dtype(
        tensor.data_type
    ):
        wanted = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        raise IrpruneError(
            f"'{tensor.name}' holds {array.dtype}{list(array.shape)} and not {wanted}{list(tensor.dims)}"
        )
    if tensor.data_type in _HALF_BYTES:
        return np.frombuffer(numpy_helper.from_array(array, tensor.name).raw_data, np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _write_outside(
    model: onnx.ModelProto,
    data: dict[str, Loader],
    folder: Path,
    name: str,
    outside: Container[str],
) -> None:
    """Write a file of tensors into ``folder`` and take them out of ``data``."""
    draft = folder / f"{name}.data"
    put = [
        t
        for t in model.graph.initializer
        if t.name in data and (size_of(t) >= LARGE or t.name in outside)
    ]
    if not put:
        return
    with draft.open("wb") as file:
        for tensor in put:
            _put_outside(tensor, data.pop(tensor.name), file)
    place = content_name(draft, name, ".data")
    for tensor in put:
        tensor.external_data.add(key="location", value=place)


def _put_outside(tensor: TensorProto, load: Loader, file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % 64))
    start = file.tell()
    file.write(_content(tensor, load).data)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("offset", str(start)), ("length", str(file.tell() - start))):
        tensor.external_data.add(key=key, value=value)


def _pieces(model: onnx.ModelProto, data: Mapping[str, Loader]) -> Iterator[Any]:
    """The file, piece by piece: the message without its large tensors, and each of them at its
    place."""
    message = model.SerializeToString()
    for number, _, start, first, stop in fields(message, 0, len(message)):
        if number != GRAPH:
            yield message[start:stop]
            continue
        parts = list(_graph(message, first, stop, model.graph, data))
        yield varint(GRAPH << 3 | 2) + varint(
            sum(size_of(p) if isinstance(p, TensorProto) else len(p) for p in parts)
        )
        for part in parts:
            yield _content(part, data[part.name]).data if isinstance(part, TensorProto) else part


def _graph(
    message: bytes, at: int, end: int, graph: onnx.GraphProto, data: Mapping[str, Loader]
) -> Iterator[bytes | TensorProto]:
    """The content of the graph, with a tensor where its data belongs."""
    tensors = iter(graph.initializer)
    for number, _, start, first, stop in fields(message, at, end):
        tensor = next(tensors) if number == INITIALIZER else None
        if tensor is None or tensor.name not in data:
            yield message[start:stop]
            continue
        split = next(
            (begin for n, _, begin, _, _ in fields(message, first, stop) if n > RAW_DATA), stop
        )
        head = varint(RAW_DATA << 3 | 2) + varint(size_of(tensor))
        yield varint(INITIALIZER << 3 | 2) + varint(stop - first + len(head) + size_of(tensor))
        yield message[first:split] + head
        yield tensor
        yield message[split:stop]
