"""Running ONNX models on onnxruntime: sessions that refuse loudly, random inputs, errors between
results."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from irprune.emit.onnx.file import write_model
from irprune.errors import IrpruneError, first_line
from irprune.frontend.onnx.file import Loader
from irprune.ir.dtype import is_integer, numpy_dtype
from irprune.ir.graph import Graph, Value
from irprune.ir.size import Size, evaluate, probe_of
from irprune.ops.registry import lookup
from irprune.run.session import PRECISE

__all__ = ["difference", "index_limits", "random_inputs", "run_model", "session"]

Array = NDArray[Any]


def session(
    model: onnx.ModelProto | str | Path,
    optimise: bool = True,
    data: Mapping[str, Loader] | None = None,
    precise: bool = False,
) -> Any:
    """An onnxruntime session on the CPU; ``data`` holds initializers that lie apart from a model
    given as an object.

    ``precise`` asks for integer products that do not saturate on any processor, which only the
    optimiser can give. Raises IrpruneError with onnxruntime's own words where it refuses the model.
    """
    import onnxruntime as ort

    if data and isinstance(model, onnx.ModelProto):
        return _session_of_parts(model, optimise, data, precise)

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if precise:
        options.add_session_config_entry(*PRECISE)
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    try:
        return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class per status code
        raise IrpruneError(
            "onnxruntime refuses the model",
            "" if isinstance(model, onnx.ModelProto) else str(model),
            first_line(error),
        ) from error


def _session_of_parts(
    model: onnx.ModelProto, optimise: bool, data: Mapping[str, Loader], precise: bool
) -> Any:
    """A session of a model whose large tensors lie apart: it goes through a file, which has no
    limit of size."""
    with tempfile.TemporaryDirectory(prefix="irprune-") as folder:
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        return session(
            write_model(whole, data, Path(folder) / "model.onnx"), optimise, precise=precise
        )


def run_model(
    model: onnx.ModelProto | str | Path,
    inputs: Mapping[str, Array],
    optimise: bool = True,
    data: Mapping[str, Loader] | None = None,
    precise: bool = False,
) -> list[Array]:
    """All outputs of ``model`` for ``inputs``; ``data`` and ``precise`` as in ``session``."""
    made = session(model, optimise, data, precise)
    known = {i.name for i in made.get_inputs()}
    try:
        return list(made.run(None, {k: v for k, v in inputs.items() if k in known}))
    except Exception as error:  # onnxruntime raises a class per status code
        raise IrpruneError("onnxruntime cannot run the model", "", first_line(error)) from error


def random_inputs(
    graph: Graph, sizes: Mapping[str, int] | None = None, seed: int = 0, default: int = 2
) -> dict[str, Array]:
    """Inputs for a captured ONNX graph; symbols take ``sizes`` or ``default``. Integers fit what
    they index, booleans are fair."""
    random = np.random.default_rng(seed)
    below = index_limits(graph)
    out: dict[str, Array] = {}
    for v in graph.inputs:
        shape = tuple(_size(s, sizes or {}, default) for s in v.shape)
        if v.dtype == "bool":
            out[v.name] = random.integers(0, 2, shape).astype(bool)
        elif is_integer(v.dtype):
            limit = below.get(v)
            high = 2 if limit is None else max(1, _size(limit, sizes or {}, default))
            out[v.name] = random.integers(0, high, shape).astype(numpy_dtype(v.dtype))
        else:
            out[v.name] = np.asarray(random.standard_normal(shape)).astype(numpy_dtype(v.dtype))
    return out


def index_limits(graph: Graph) -> dict[Value, Size]:
    """For integer values that are used as indices, the size of the smallest dimension that they
    index."""
    below: dict[Value, Size] = {}

    def note(value: Value | None, size: Size) -> None:
        if value is not None and (value not in below or probe_of(size) < probe_of(below[value])):
            below[value] = size

    for node in reversed(graph.nodes):
        entry = lookup(node)
        if entry is not None and entry.indexes is not None:
            for i, size in entry.indexes(node):
                note(node.operand(i), size)
        elif entry is not None and entry.rearranges:
            for v in node.outputs:
                if v in below:
                    for x in node.inputs:
                        note(x, below[v])
    return below


def _size(size: Size, sizes: Mapping[str, int], default: int) -> int:
    return evaluate(size, sizes, default)


def difference(ours: Iterable[Array], theirs: Sequence[Array]) -> float:
    """The largest difference over all outputs, relative to the largest magnitude of that output;
    infinite where shapes or NaNs differ."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        x, y = np.asarray(a), np.asarray(b)
        if x.shape != y.shape:
            return float("inf")
        if x.size == 0:
            continue
        if x.dtype.kind not in "fiubcV" or x.dtype.kind == "b":
            worst = max(worst, 0.0 if np.array_equal(x, y) else float("inf"))
            continue
        x, y = x.astype(np.float64), y.astype(np.float64)
        if not np.array_equal(np.isnan(x), np.isnan(y)):
            return float("inf")
        with np.errstate(invalid="ignore"):
            gap = np.where(x == y, 0.0, np.abs(x - y))
        gap = np.nan_to_num(gap, nan=0.0, posinf=np.inf)
        finite = y[np.isfinite(y)]
        scale = max(float(np.abs(finite).max()) if finite.size else 1.0, 1e-12)
        worst = max(worst, float(gap.max()) / scale)
    return worst
