"""An ONNX file that was written, read by the onnx package and run by onnxruntime: its message and
each of its tensors against what was meant to be written, its outputs against those of the model in
memory. It needs no torch, and shares no reader and no writer with what it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, checker, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from irprune.emit.onnx.emitter import Emitter
from irprune.emit.onnx.file import held_bytes
from irprune.errors import IrpruneError, gist
from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.source import onnx_source
from irprune.ir.graph import Graph
from irprune.ops.registry import draws
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.run.session import run_session, session
from irprune.validate.onnx_sizes import plausible
from irprune.validate.read_back import ReadBack, timed

__all__ = ["misread", "read_back"]

Array = NDArray[Any]
_RUN = 1 << 30  # bytes of weights up to which a message in memory is run beside the file
_TRIED = 5  # sizes, where the file does not say which
_HELD = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "external_data",
    "data_location",
)


def read_back(path: Path, graph: Graph) -> ReadBack:
    """Compare the file ``path`` with the model of ``graph``, a cut one, that was written to it."""
    return timed(path.name, "onnx and onnxruntime", lambda: _compared(path, graph))


def _compared(path: Path, graph: Graph) -> tuple[float, str]:
    emitter = Emitter(graph)
    meant = emitter.emit()
    try:
        found = onnx.load(str(path), load_external_data=False)
    except Exception as refused:  # protobuf's own error
        return 0.0, f"onnx does not read it: {gist(refused)}"
    if _bare(meant) != _bare(found):
        return 0.0, "the graph in the file is another one"
    small = held_bytes(meant, emitter.data) <= _RUN
    whole = onnx.ModelProto()
    whole.CopyFrom(meant)
    for ours, theirs in zip(whole.graph.initializer, found.graph.initializer, strict=True):
        array = _array(ours, emitter.data)
        try:
            there = stored(theirs, path)
        except Exception as refused:  # onnx raises what it meets
            return 0.0, f"onnx does not read {ours.name!r}: {gist(refused)}"
        if not _equal(array, there):
            return 0.0, f"{ours.name!r} holds other numbers"
        if small and ours.name in emitter.data:
            ours.CopyFrom(numpy_helper.from_array(array, ours.name))
    return _run(path, graph, whole if small else None)


def _run(path: Path, graph: Graph, whole: onnx.ModelProto | None) -> tuple[float, str]:
    """What onnxruntime computes of the file, beside what it computes of the message ``whole``."""
    large = whole is None  # what is only to be loaded stays in its file, as it lies there
    try:
        running = session(path, "cpu", threads=1, optimise=not large, mapped=large)
    except IrpruneError as refused:
        if whole is None:
            return 0.0, str(refused)
        try:
            session(whole.SerializeToString(), "cpu", threads=1)
        except IrpruneError:
            return 0.0, ""  # it has no kernels for what the model computes
        return 0.0, str(refused)
    if whole is None or any(map(draws, graph.nodes)):
        return 0.0, ""
    beside = session(whole.SerializeToString(), "cpu", threads=1)
    for sizes in islice(plausible(graph), _TRIED):
        feed = random_inputs(graph, sizes)
        try:
            expected = run_session(beside, feed)
        except IrpruneError:
            continue
        found = run_session(running, feed)
        return relative_error(found.values(), expected.values()), ""
    return 0.0, ""


def misread(graph: Graph) -> str:
    """The tensor of the file behind ``graph`` that irprune reads otherwise than the onnx package;
    "" where there is none, or no file."""
    source = onnx_source(graph)
    path = source.files.path
    if path is None:
        return ""
    held = {t.name: t for t in source.model.graph.initializer}
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        own = held.get(tensor.name)
        renewed = tensor.name in source.renewed
        if (
            own is None
            or renewed
            or tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING)
        ):
            continue
        try:
            same = _equal(source.files.loader(own)(), stored(tensor, path))
        except (ValueError, OSError, checker.ValidationError):  # the package reads it not at all
            same = False
        if not same:
            return str(tensor.name)
    return ""


def stored(tensor: TensorProto, path: Path) -> Array:
    """What the onnx package reads for ``tensor`` of the file ``path``."""
    if tensor.data_location == TensorProto.EXTERNAL:
        held = TensorProto()
        held.CopyFrom(tensor)
        place = next(e for e in held.external_data if e.key == "location")
        data = (path.parent / place.value).resolve()  # the package follows no links
        place.value = data.name
        load_external_data_for_tensor(held, str(data.parent))
        tensor = held
    return numpy_helper.to_array(tensor)


def _array(tensor: TensorProto, data: Mapping[str, Loader]) -> Array:
    return data[tensor.name]() if tensor.name in data else numpy_helper.to_array(tensor)


def _equal(a: Array, b: Array) -> bool:
    """Whether two arrays are the same, bit by bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.hasobject:
        return bool((a == b).all())
    x, y = (np.ascontiguousarray(c).reshape(-1).view(np.uint8) for c in (a, b))
    return bool(np.array_equal(x, y))


def _bare(model: onnx.ModelProto) -> bytes:
    """``model`` without what its initializers hold."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        for kind in _HELD:
            tensor.ClearField(kind)
    return bytes(made.SerializeToString(deterministic=True))
