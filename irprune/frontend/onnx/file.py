"""An ONNX file on disk: read without its weights, which are taken from it one by one when they are
asked for.

A large initializer inside the file becomes a tensor whose external data is the file itself, so that
tensors inside and beside the model are read by the same code, and a model takes no more memory than
its largest tensor. The layout is that of protobuf
(https://protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import weakref
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from irprune.errors import IrpruneError, first_line, printable

__all__ = [
    "GRAPH",
    "INITIALIZER",
    "LARGE",
    "RAW_DATA",
    "Files",
    "Loader",
    "data_beside",
    "fields",
    "locations",
    "read_model",
    "varint",
]

Array = NDArray[Any]
Loader = Callable[[], Array]
LARGE = 1024  # bytes: smaller tensors stay in the message
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # field numbers in ModelProto, GraphProto, TensorProto
_BYTES = 2  # the wire type of what has a length
_PACKED = (TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1)


def read_model(path: Path) -> onnx.ModelProto:
    """The model in ``path``; the data of large initializers, inside the file or beside it, is left
    where it is.

    Raises IrpruneError where it is no model.
    """
    if not path.exists():
        raise IrpruneError("no such file", str(path))
    if path.is_dir():
        raise IrpruneError("a folder, not an ONNX file", str(path))
    if path.stat().st_size == 0:
        raise IrpruneError("an empty file", str(path))
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model: onnx.ModelProto = onnx.ModelProto.FromString(
                b"".join(_light_model(data, path.name))
            )
    except DecodeError as error:
        raise IrpruneError(
            "not a complete ONNX file", str(path), f"protobuf says: {error}"
        ) from error
    except OSError as error:
        raise IrpruneError(f"cannot be read: {error.strerror or error}", str(path)) from error
    if not model.HasField("graph") or not model.graph.output:
        raise IrpruneError("not an ONNX model: it has no graph with outputs", str(path))
    return model


def locations(path: Path) -> set[str]:
    """The files beside the model ``path`` that hold data of it, as it names them. Raises
    IrpruneError where it is no model."""
    tensors = [t for t in read_model(path).graph.initializer if t.external_data]
    return {_place(t)[0] for t in tensors} - {path.name, ""}


def data_beside(path: Path) -> set[str]:
    """The files beside the model ``path`` that irprune wrote for it: those that are named by their
    content, whether the model reads them or an interrupted run left them, and ``<name>.data`` where
    the model reads it."""
    named = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    found = {p.name for p in path.parent.iterdir() if named.fullmatch(p.name)}
    plain = f"{path.name}.data"
    if path.is_file() and (path.parent / plain).is_file():
        with contextlib.suppress(IrpruneError):  # it was no model
            found |= locations(path) & {plain}
    return found


# -- the layout ------------------------------------------------------------------------------------


def fields(data: Any, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of the message in ``data[at:end]``: number, wire type, where the field starts,
    where its content starts and ends.

    Raises DecodeError where the message ends early or is no protobuf.
    """
    while at < end:
        start = at
        key, at = _read_varint(data, at, end)
        kind = key & 7
        if kind == _BYTES:
            size, at = _read_varint(data, at, end)
            stop = at + size
        elif kind == 0:
            stop = _read_varint(data, at, end)[1]
        elif kind in (1, 5):
            stop = at + (8 if kind == 1 else 4)
        else:
            raise DecodeError("no protobuf message")
        if stop > end or key < 8:
            raise DecodeError("the message ends early")
        yield key >> 3, kind, start, at, stop
        at = stop


def _read_varint(data: Any, at: int, end: int) -> tuple[int, int]:
    out = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        out |= (byte & 127) << shift
        if byte < 128:
            return out, at
        shift += 7
    raise DecodeError("the message ends early")


def varint(n: int) -> bytes:
    """``n`` as protobuf writes a length."""
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def _light_model(data: Any, name: str) -> Iterator[bytes]:
    for number, kind, start, at, stop in fields(data, 0, len(data)):
        if number == GRAPH and kind == _BYTES:
            graph = b"".join(_light_graph(data, at, stop, name))
            yield varint(GRAPH << 3 | _BYTES) + varint(len(graph))
            yield graph
        else:
            yield data[start:stop]


def _light_graph(data: Any, at: int, end: int, name: str) -> Iterator[bytes]:
    for number, kind, start, first, stop in fields(data, at, end):
        if number == INITIALIZER and kind == _BYTES and stop - first > LARGE:
            tensor = _light_tensor(data, first, stop, name)
            yield varint(INITIALIZER << 3 | _BYTES) + varint(len(tensor))
            yield tensor
        else:
            yield data[start:stop]


def _light_tensor(data: Any, at: int, end: int, name: str) -> bytes:
    """The tensor with a note where its data lies in place of the data; as it is where it holds its
    data in another way."""
    rest, place = [], None
    for number, kind, start, first, stop in fields(data, at, end):
        if number == RAW_DATA and kind == _BYTES:
            place = (first, stop - first)
        else:
            rest.append((start, stop))
    if place is None or place[1] < LARGE:
        return bytes(data[at:end])
    tensor = TensorProto.FromString(b"".join(data[a:b] for a, b in rest))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", str(place[0])), ("length", str(place[1]))):
        tensor.external_data.add(key=key, value=value)
    return bytes(tensor.SerializeToString())


# -- the data --------------------------------------------------------------------------------------


class Files:
    """The files that hold the data of the tensors of the model ``path`` (None: a model given as an
    object, which has no files).

    The model's own file stays open, as do files beside it (up to a number), so that others may take
    their names meanwhile; none may be written into."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.sizes: dict[Path, tuple[int, int]] = {}
        self.own = -1
        self.opened: dict[Path, int] = {}
        if path is not None:
            self.own = self._open(path)

    def _open(self, path: Path) -> int:
        """``path`` opened, until nobody needs these files any more."""
        file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        return file

    def inside(self, tensor: TensorProto) -> bool:
        """Whether the data of ``tensor`` belongs into the message of the model."""
        return tensor.data_location != TensorProto.EXTERNAL or (
            self.path is not None and _place(tensor)[0] == self.path.name
        )

    def loader(self, tensor: TensorProto) -> Loader:
        """A function that gives the array of ``tensor``.

        Raises IrpruneError for external data that is missing, too short or outside the model's
        folder."""
        if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
            return lambda: numpy_helper.to_array(tensor)
        try:
            dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
        except (ValueError, KeyError) as error:
            raise IrpruneError(
                f"the tensor '{tensor.name}' has an unknown element type, {tensor.data_type}",
                hint="install a newer onnx",
            ) from error
        count = prod(shape)
        size = (count + 1) // 2 if tensor.data_type in _PACKED else count * dtype.itemsize
        if tensor.data_location != TensorProto.EXTERNAL:
            _check_size(tensor, len(tensor.raw_data), size, tensor.HasField("raw_data"))
            return lambda: _of_message(tensor)
        place, offset, length = _place(tensor)
        length = size if length is None else length
        read = self._reader(tensor, place, offset, length)
        _check_size(tensor, length, size)
        if tensor.data_type in _PACKED:
            return lambda: _unpacked(tensor, read())
        return lambda: read().view(dtype).reshape(shape)

    def _reader(self, tensor: TensorProto, place: str, offset: int, length: int) -> Loader:
        """A function that gives the bytes of ``tensor``."""
        if self.path is None:
            raise IrpruneError(
                f"the data of '{tensor.name}' lies in '{place}', and a model given as an object has no folder",
                hint="give the path of the file",
            )
        if place == self.path.name:
            own, keeper = self.own, self
            return lambda: _read(own, offset, length) if keeper else np.zeros(0, np.uint8)
        path = beside(self.path, place, tensor.name)
        if path not in self.sizes:
            if not path.is_file():
                raise IrpruneError(
                    f"the external data of '{tensor.name}' is missing",
                    str(path),
                    "copy the file next to the model",
                )
            self.sizes[path] = _state(path)
            if len(self.opened) < _OPENED:
                self.opened[path] = self._open(path)
        state = self.sizes[path]
        if offset < 0 or state[0] < offset + length:
            raise IrpruneError(
                f"the external data of '{tensor.name}' ends early", str(path), "copy the file again"
            )

        opened, keeper = self.opened.get(path), self

        def read() -> Array:
            if opened is not None and keeper and _stamp(os.fstat(opened)) == state:
                return _read(opened, offset, length)
            if opened is not None or not path.is_file() or _state(path) != state:
                raise IrpruneError(
                    f"the external data of '{tensor.name}' changed since the model was read",
                    str(path),
                    "read the model again",
                )
            with path.open("rb") as file:
                return _read(file.fileno(), offset, length)

        return read


# Characters of a path, and of a name in it, on the systems that are served
_LONGEST, _LONGEST_PART = 4000, 255


def beside(model: Path, place: str, name: str) -> Path:
    """The external file ``place`` of tensor ``name`` of the file ``model``.

    Its name stays in the model's folder; through links it stays there too, or, where ``model`` is
    a link itself, in the folder of the file that it leads to (caches of downloads keep their files
    under the digests of their contents, and links by name). onnxruntime reads no others either.
    Raises IrpruneError where it leaves those."""
    folder = model.parent
    if "\0" in place or len(place) > _LONGEST or max(map(len, place.split("/"))) > _LONGEST_PART:
        raise IrpruneError(
            f"the external data of '{name}' has a location that no file can have", printable(place)
        )
    path = Path(os.path.normpath(folder / place))
    allowed = (folder.resolve(), model.resolve().parent)
    if (
        not place
        or Path(place).is_absolute()
        or ".." in Path(os.path.normpath(place)).parts
        or not any(path.resolve().is_relative_to(f) for f in allowed)
    ):
        raise IrpruneError(
            f"the external data of '{name}' leaves the model's folder",
            place or "(no path)",
            "only files beside the model are read",
        )
    return path


def _place(tensor: TensorProto) -> tuple[str, int, int | None]:
    """Location, offset and length (None: not said) of external data. Raises IrpruneError where they
    are no numbers."""
    info = {e.key: e.value for e in tensor.external_data}
    try:
        length = int(info["length"]) if "length" in info else None
        return info.get("location", ""), int(info.get("offset", 0)), length
    except ValueError as error:
        raise IrpruneError(
            f"the external data of '{tensor.name}' has an offset or length that is no number",
            hint=str(error),
        ) from error


_OPENED = 64  # files beside a model that stay open


def _state(path: Path) -> tuple[int, int]:
    return _stamp(path.stat())


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _read(file: int, offset: int, length: int) -> Array:
    """``length`` bytes of an open file. They are read, not mapped: mapped pages stay in the
    process's memory."""
    out = np.empty(length, np.uint8)
    left = out.data
    while left:
        got = os.preadv(file, [left[: 1 << 30]], offset)
        if not got:
            raise IrpruneError(
                "the model's file was cut while it was read", hint="read the model again"
            )
        left, offset = left[got:], offset + got
    return out


def _check_size(tensor: TensorProto, length: int, size: int, known: bool = True) -> None:
    if known and (length != size or min(tensor.dims, default=0) < 0):
        raise IrpruneError(
            f"the tensor '{tensor.name}' of shape {list(tensor.dims)} holds {length} bytes and not {size}",
            hint="the file is damaged: write it again",
        )


def _of_message(tensor: TensorProto) -> Array:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise IrpruneError(
            f"the tensor '{tensor.name}' does not hold what its shape says", hint=first_line(error)
        ) from error


def _unpacked(tensor: TensorProto, data: Array) -> Array:
    full = TensorProto()
    full.CopyFrom(tensor)
    del full.external_data[:]
    full.data_location = TensorProto.DEFAULT
    full.raw_data = data.tobytes()
    return numpy_helper.to_array(full)
