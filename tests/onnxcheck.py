"""What ONNX spellings are held to: a sample becomes a file of one node, which is read, run, cut and
written back.

The file runs on onnxruntime (on onnx's reference where that has no kernel) and must give what the
graph that was read from it gives in torch, with the types that the graph says. Then slicing must
commute as in ``opcheck``: the cut graph, the cut file and the silenced file agree with the
silenced graph."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from opcheck import CPU, TOLERANCE, Refused, choices, cut, tensor

from irprune.emit.onnx.emitter import emit_onnx
from irprune.errors import IrpruneError
from irprune.frontend.onnx.proto import dtype_of
from irprune.frontend.onnx.reader import capture_onnx
from irprune.ir.axis import Axes, Axis, leaves
from irprune.ir.dtype import TO_ONNX
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.ir.size import same
from irprune.ops.onnx.importer import SPELLINGS, Spelling
from irprune.ops.registry import Arg, Sample, load_table
from irprune.passes.infer_axes import infer
from irprune.passes.slice import Slice
from irprune.run.error import relative_error
from irprune.run.interpret import evaluate
from irprune.run.oracle import silencer
from irprune.validate.onnx_oracle import silenced_onnx
from irprune.validate.onnx_run import run_model, session

OPSET = 17  # where a sample names none
SINGLE = 2e-5  # relative: sums of some ten products in float32, in another order

Array = NDArray[Any]


@dataclass(frozen=True)
class OnnxCase:
    """One sample of one ONNX operator."""

    spelling: Spelling
    sample: Sample
    number: int

    def __str__(self) -> str:
        return f"{self.spelling.target}-{self.number}"


@dataclass
class Read:
    """A sample's file, the graph read from it, whose axes the rules have stated, and the inputs."""

    model: onnx.ModelProto
    graph: Graph
    feed: dict[str, Array]
    expected: list[Array]
    runs: bool  # on onnxruntime


def onnx_cases() -> Iterator[OnnxCase]:
    load_table()
    for spelling in SPELLINGS.values():
        for number, sample in enumerate(spelling.samples):
            yield OnnxCase(spelling, sample, number)


def file_of(case: OnnxCase) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The file of one node: floats and plain integers are inputs, ``values`` and what is ``stored``
    initializers."""
    sample, names = case.sample, list[str]()
    inputs, tensors, feed = [], [], dict[str, Array]()
    for i, arg in enumerate(flat(sample)):
        names.append("" if arg is None else f"x{i}")
        if arg is None:
            continue
        array = numpy_of(tensor(arg, zlib.crc32(f"{case} {i}".encode())), arg.dtype)
        if arg.values is not None or arg.stored:
            tensors.append(numpy_helper.from_array(array, f"x{i}"))
        else:
            inputs.append(helper.make_tensor_value_info(f"x{i}", TO_ONNX[arg.dtype], arg.shape))
            feed[f"x{i}"] = array
    read = sample.read or (0,)
    results = [f"y{k}" if k in read else "" for k in range(max(read) + 1)]
    domain, _, kind = case.spelling.target.rpartition("::")
    node = helper.make_node(kind, names, results, name="n", domain=domain, **sample.attrs)
    made = []
    for name in filter(None, results):
        info = onnx.ValueInfoProto()
        info.name = name
        made.append(info)
    graph = helper.make_graph([node], "g", inputs, made, tensors)
    opsets = [helper.make_opsetid("", sample.opset or OPSET)]
    opsets.append(helper.make_opsetid("com.microsoft", 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feed


def flat(sample: Sample) -> list[Arg | None]:
    out: list[Arg | None] = []
    for a in sample.args:
        out += list(a) if isinstance(a, tuple) else [a]
    return out


def numpy_of(t: torch.Tensor, dtype: str) -> Array:
    """``t`` as the file has it."""
    kind = helper.tensor_dtype_to_np_dtype(TO_ONNX[dtype])
    return t.numpy().astype(kind)


def build_onnx(case: OnnxCase) -> Read:
    """Read the case's file. Raises Refused where the graph computes something else than the file,
    or says other types."""
    model, feed = file_of(case)
    graph = capture_onnx(model)
    opaque = [n.attrs["why"] for n in graph.nodes if n.op == "opaque"]
    if opaque:
        raise Refused(f"{case} is not read: {opaque[0]}")
    strange = {n.op for n in graph.nodes} - set(case.spelling.entries) - {"identity"}
    if strange:
        raise Refused(f"{case} is read into {sorted(strange)}, which the spelling does not say")
    expected, runs = _run(model, feed)
    ours = in_torch(graph, feed)
    compare(ours, expected, f"{case}: the graph")
    for value, array in zip(graph.outputs, expected, strict=True):
        kind = value.type
        dtype = dtype_of(helper.np_dtype_to_tensor_dtype(array.dtype))
        if kind.shape is None or kind.dtype != dtype or tuple(kind.known) != array.shape:
            raise Refused(
                f"{case}: the type says {kind}, the file gives {dtype}{list(array.shape)}"
            )
    graph.axes = axes = Axes()
    for v in (*graph.inputs, *graph.weights.values()):
        axes.of(v)
    for node in graph.nodes:
        axes.node = node
        infer(axes, node, constant=False)
    axes.node = None
    if graph.notes:
        raise Refused(f"{case}: {graph.notes[0]}")
    return Read(model, graph, feed, expected, runs)


def _run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> tuple[list[Array], bool]:
    try:
        session(model)
    except IrpruneError:
        given = onnx.shape_inference.infer_shapes(model)
        return [np.asarray(a) for a in ReferenceEvaluator(given).run(None, dict(feed))], False
    return run_model(model, feed), True


def in_torch(graph: Graph, feed: Mapping[str, Array]) -> list[Array]:
    given = [torch.from_numpy(np.array(feed[v.name])) for v in graph.inputs]
    return [t.numpy() for t in evaluate(graph, given, device=CPU)]


def compare(ours: list[Array], theirs: list[Array], what: str) -> None:
    """Raise Refused where results differ by more than float32 rounds."""
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Refused(
                f"{what} gives {a.dtype}{list(a.shape)} as result {k}, not {b.dtype}{list(b.shape)}"
            )
    if (gap := relative_error(ours, theirs)) > SINGLE:
        raise Refused(f"{what} is off by {gap:.3g}")


def check_onnx(case: OnnxCase) -> Read:
    """Raise ``Refused`` where the reader, the writer, the rule, the resize or the silence is wrong
    for this case."""
    read = build_onnx(case)
    graph = read.graph
    for value in graph.values():
        if value.axes is None or value.type.shape is None:
            raise Refused(f"{case}: {value} has no axes")
        if not all(same(a.size, s) for a, s in zip(value.axes, value.shape, strict=True)):
            raise Refused(f"{case}: {value} has the axes {value.axes}")
    free = free_leaves(graph)
    if len(free) != case.sample.free:
        reasons = dict.fromkeys(
            str(x.reason)
            for v in graph.values()
            for a in v.axes or ()
            for x in leaves(a)
            if x.reason
        )
        raise Refused(
            f"{case}: {len(free)} free axes {free}, the sample says {case.sample.free}; frozen by "
            f"{list(reasons)}\n{graph}"
        )
    for choice in choices(free, zlib.crc32(str(case).encode())):
        _check_cut(case, read, Selection(choice))
    return read


def free_leaves(graph: Graph) -> list[Axis]:
    """The leaves of size > 1 that may shrink, in order of first appearance."""
    found: dict[Axis, None] = {}
    for value in graph.values():
        for a in value.axes or ():
            found.update(dict.fromkeys(x for x in leaves(a) if x.reason is None and x.size != 1))
    return list(found)


def _check_cut(case: OnnxCase, read: Read, kept: Selection) -> None:
    graph = read.graph
    given = {v.name: torch.from_numpy(np.array(read.feed[v.name])) for v in graph.inputs}
    full = evaluate(
        graph, given.values(), hook=silencer(kept, CPU), dtype=torch.float64, device=CPU
    )
    want = [cut(y, v, kept) for y, v in zip(full, graph.outputs, strict=True)]
    less = {v.name: cut(given[v.name], v, kept) for v in graph.inputs}
    twin = graph.copy()
    twin.kept = kept
    Slice().run(twin)
    what = f"{case}, keeping {kept.choice}"
    for value, y in zip(twin.outputs, want, strict=True):
        if tuple(value.type.known) != tuple(y.shape):
            raise Refused(f"{what}: the type says {value.type}, the kept indices {list(y.shape)}")
    try:
        found = evaluate(twin, less.values(), dtype=torch.float64, device=CPU)
    except (RuntimeError, IndexError, ValueError) as why:
        raise Refused(f"{what}: the cut graph does not run: {why}") from why
    for y, w in zip(found, want, strict=True):
        if y.shape != w.shape or not torch.allclose(
            y.double(), w.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
        ):
            raise Refused(f"{what}: the cut graph differs from the silenced one")
    feed = {k: t.numpy() for k, t in less.items()}
    try:
        emitted = emit_onnx(twin)
        made = run_model(emitted, feed) if read.runs else []
    except IrpruneError as why:
        raise Refused(f"{what}: the cut file does not run: {why}") from why
    if not read.runs:
        return
    compare(made, in_torch(twin, feed), f"{what}: the cut file")
    silent = silenced_onnx(graph, kept, read.feed)
    less_of = [
        cut(torch.from_numpy(np.array(y)), v, kept).numpy()
        for y, v in zip(silent, graph.outputs, strict=True)
    ]
    compare(made, less_of, f"{what}: the cut file, beside the silenced one,")
