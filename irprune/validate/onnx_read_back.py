"""An ONNX file that was written, read by the onnx package and run by onnxruntime: its message and
each of its tensors against what was meant to be written; it runs where the original does; and where
data lie beside it, its outputs against those of the model in memory. It needs no torch, and shares
no reader and no writer with what it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, checker, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from irprune.emit.onnx.emitter import Emitter
from irprune.emit.onnx.file import fits_message, held_bytes, with_arrays
from irprune.errors import IrpruneError, gist
from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.source import onnx_source
from irprune.ir.graph import Graph
from irprune.ir.symbols import names_in
from irprune.ops.registry import draws
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.run.session import run_session, session
from irprune.validate.onnx_sizes import plausible
from irprune.validate.read_back import ReadBack, timed

__all__ = ["misread", "read_back"]

Array = NDArray[Any]
_RUN = 1 << 30  # bytes of weights up to which the file is run, not only loaded
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
    for ours, theirs in zip(meant.graph.initializer, found.graph.initializer, strict=True):
        try:
            there = stored(theirs, path)
        except Exception as refused:  # onnx raises what it meets
            return 0.0, f"onnx does not read {ours.name!r}: {gist(refused)}"
        if not _equal(_array(ours, emitter.data), there):
            return 0.0, f"{ours.name!r} holds other numbers"
    alone = all(t.data_location != TensorProto.EXTERNAL for t in found.graph.initializer)
    del found  # it is as large as the file
    large = held_bytes(meant, emitter.data) > _RUN
    ours = _run(path, graph, large)
    if ours.refused:
        return 0.0, "" if _run(_original(graph), graph, large).refused else ours.refused
    fits = fits_message(meant, emitter.data)
    if alone or not fits or not ours.outputs or any(map(draws, graph.nodes)):
        return 0.0, ""  # nothing is left that could differ, or that is comparable
    theirs = _run(with_arrays(meant, emitter.data).SerializeToString(), graph, large)
    error = (
        relative_error(ours.outputs.values(), theirs.outputs.values()) if theirs.outputs else 0.0
    )
    return error, theirs.refused


@dataclass(frozen=True)
class _Run:
    """What onnxruntime computes of a model, or why it does not load or run it."""

    outputs: Mapping[str, Array] = field(default_factory=dict)
    refused: str = ""


def _run(model: Path | bytes, graph: Graph, large: bool) -> _Run:
    """A run of ``model``, which takes the inputs of ``graph``, at the first sizes that it takes;
    what is ``large`` is only loaded, as it lies in its file."""
    refused = ""
    try:
        running = session(model, "cpu", threads=1, optimise=not large, mapped=large)
        for sizes in () if large else islice(plausible(graph), _TRIED):
            try:
                return _Run(run_session(running, random_inputs(graph, sizes)))
            except IrpruneError as error:
                refused = str(error)
    except IrpruneError as error:
        return _Run(refused=str(error))
    return _Run(refused="" if _sized_by_values(graph) else refused)


def _sized_by_values(graph: Graph) -> bool:
    """Whether sizes depend on numbers: random ones may then be such that no model runs."""
    given = {name for v in graph.inputs for name in names_in(v.type.shape)}
    return any(name not in given for v in graph.values() for name in names_in(v.type.shape))


def _original(graph: Graph) -> Path | bytes:
    """The model that ``graph`` was cut from: its file, or its message where it has none."""
    source = onnx_source(graph)
    return source.files.path or source.given.SerializeToString()


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
