"""The backend tests that ship with the onnx package, through capture, emission, onnxruntime and
torch.

``cases`` finds them, ``check`` runs one and says what happened to it; ``tools/onnx_backend.py``
writes the table of the README."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from irprune.emit.bridge.onnx_module import module_from_onnx
from irprune.emit.onnx.emitter import emit_onnx
from irprune.errors import IrpruneError, first_line
from irprune.frontend.onnx.order import target_of
from irprune.frontend.onnx.reader import capture_onnx
from irprune.frontend.onnx.source import NodePlace
from irprune.ir.body import Body
from irprune.ops.onnx.importer import spelling_of
from irprune.ops.onnx.sequences import OPTIONAL, SEQUENCE
from irprune.ops.registry import is_unread
from irprune.validate.onnx_run import session

__all__ = ["Case", "Outcome", "cases", "check"]

Array = NDArray[Any]
Data = tuple[dict[str, Any], list[Any]]


@dataclass(frozen=True)
class Case:
    """One test: a model of few nodes, sets of inputs by name and expected outputs, and onnx's own
    tolerances."""

    name: str
    load: Callable[[], onnx.ModelProto]
    data: Callable[[onnx.ModelProto], list[Data]]
    rtol: float = 1e-3
    atol: float = 1e-5


@dataclass
class Outcome:
    """``operators`` of the case and what happened: "" for passed, a reason for left out, and a
    description of what failed."""

    operators: tuple[str, ...]
    left_out: str = ""
    failed: str = ""
    torch: str = ""  # why the torch module was left out
    runtime: str = ""  # why onnxruntime was left out
    notes: list[str] = field(default_factory=list)


def cases(kind: str = "node") -> Iterator[Case]:
    """The tests of a kind (``node``, ``simple``, ``pytorch-operator``, ``pytorch-converted``),
    sorted by name."""
    if kind == "node":
        for made in sorted(collect_testcases(), key=lambda c: c.name):
            if made.model is not None and made.data_sets is not None:
                yield Case(
                    made.name,
                    lambda c=made: c.model,  # type: ignore[misc]
                    lambda model, c=made: [_named(model, x, y) for x, y in c.data_sets],  # type: ignore[misc]
                    made.rtol,
                    max(made.atol, 1e-5),
                )
        return
    root = Path(onnx.__file__).parent / "backend" / "test" / "data" / kind
    for folder in sorted(p for p in root.iterdir() if (p / "model.onnx").is_file()):
        yield Case(
            folder.name,
            lambda f=folder: onnx.load(f / "model.onnx"),  # type: ignore[misc]
            lambda model, f=folder: list(_stored(f, model)),  # type: ignore[misc]
        )


def _named(model: onnx.ModelProto, inputs: Sequence[Any], outputs: Sequence[Any]) -> Data:
    return dict(zip((v.name for v in model.graph.input), map(_array, inputs), strict=False)), list(
        map(_array, outputs)
    )


def _array(x: Any) -> Any:
    return (
        numpy_helper.to_array(x)
        if isinstance(x, onnx.TensorProto)
        else x
        if isinstance(x, (list, tuple)) or x is None
        else np.asarray(x)
    )


def check(case: Case, torch_too: bool = True) -> Outcome:
    """Capture, emit and run ``case``; the emitted file must be the one that came in and give what
    it gave, the module what is expected."""
    model = case.load()
    operators = tuple(dict.fromkeys(target_of(n) for n in model.graph.node))
    outcome = Outcome(operators)
    unknown = [
        o
        for o in operators
        if spelling_of(o) is None
        and o not in ("Constant", "Shape", "Size")
        and not _is_function(o, model)
    ]
    called = {f.name for f in model.functions}
    if unknown and not set(unknown) <= called:
        outcome.left_out = f"no entry for {', '.join(unknown)}"
        return outcome
    try:
        graph = capture_onnx(model)
    except IrpruneError as error:
        if (
            "not served" in error.what
            or "no known rank" in error.what
            or "newer than" in error.what
        ):
            outcome.left_out = error.what
        else:
            outcome.failed = f"capture: {error}"
        return outcome
    try:
        again = emit_onnx(graph)
    except IrpruneError as error:
        outcome.failed = f"emit: {error}"
        return outcome
    if not model.functions and again.SerializeToString(
        deterministic=True
    ) != model.SerializeToString(deterministic=True):
        outcome.failed = "the emitted file differs from the one that came in"
        return outcome
    data = case.data(model)
    _onnxruntime(outcome, model, again, data)
    late = any("computed at run time" in n.attrs.get("why", "") for n in graph.nodes)
    if late and torch_too and not outcome.failed and not any(map(is_unread, _inside(graph))):
        _torch(outcome, graph, data, case)
    if late and data:
        model = _with_constants(model, data[0][0])
        data = [(x, y) for x, y in data[:1]]
        outcome.notes.append("shapes, axes and bounds as constants")
        graph = capture_onnx(model)
        if emit_onnx(graph).SerializeToString(deterministic=True) != model.SerializeToString(
            deterministic=True
        ):
            outcome.failed = "the emitted file differs once shapes are constants"
    opaque = [n for n in _inside(graph) if is_unread(n)]
    if torch_too and not outcome.failed:
        if opaque:
            outcome.torch = opaque[0].attrs.get("why", f"no rule for {opaque[0].op}")
        else:
            _torch(outcome, graph, data, case)
    _types(outcome, graph, data)
    return outcome


def _inside(graph: Any) -> Iterator[Any]:
    """The nodes of ``graph`` and of the bodies in it."""
    for node in graph.nodes:
        yield node
        for value in node.attrs.values():
            if isinstance(value, Body):
                yield from _inside(value.graph)


def _is_function(target: str, model: onnx.ModelProto) -> bool:
    """Whether ONNX defines the operator by a function of others."""
    domain, _, name = target.rpartition("::")
    version = next((o.version for o in model.opset_import if o.domain == domain), 1)
    try:
        # Functions are not among its declared attributes
        schema: Any = onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _with_constants(model: onnx.ModelProto, inputs: dict[str, Any]) -> onnx.ModelProto:
    """The model with inputs that its readers want to know (shapes, axes, bounds) stored, as real
    models have them."""
    for _ in range(4):
        graph = capture_onnx(model)
        wanted = [
            (model.graph.node[place.index], n.attrs["why"])
            for n in graph.nodes
            if isinstance(place := n.origin.raw, NodePlace)
            and "computed at run time" in n.attrs.get("why", "")
        ]
        names = {node.input[int(why.split()[1])] for node, why in wanted} & set(inputs)
        names -= {t.name for t in model.graph.initializer}
        if not names:
            break
        twin = onnx.ModelProto()
        twin.CopyFrom(model)
        kept = [v for v in model.graph.input if v.name not in names]
        del twin.graph.input[:]
        twin.graph.input.extend(kept)
        twin.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(inputs[name]), name) for name in sorted(names)
        )
        model = twin
    return model


def _stored(where: Path, model: onnx.ModelProto) -> Iterator[Data]:
    given = list(model.graph.input)
    for folder in sorted(where.glob("test_data_set_*")):
        inputs = {}
        for k, v in enumerate(given):
            path = folder / f"input_{k}.pb"
            if path.exists():
                inputs[v.name] = _tensor(path, v.type)
        outputs = [
            _tensor(folder / f"output_{k}.pb", v.type) for k, v in enumerate(model.graph.output)
        ]
        yield inputs, outputs


def _tensor(path: Path, kind: onnx.TypeProto) -> Any:
    if kind.HasField("tensor_type"):
        return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))
    return None


def _onnxruntime(
    outcome: Outcome, model: onnx.ModelProto, again: onnx.ModelProto, data: list[Data]
) -> bool:
    """The emitted model gives what the file gave; False where onnxruntime cannot run the file
    itself."""
    try:
        before = session(model)
        for inputs, _ in data[:1]:
            expected = before.run(None, {i.name: inputs[i.name] for i in before.get_inputs()})
    except (
        Exception
    ) as error:  # onnxruntime raises a class per status code; the file itself does not run here
        outcome.runtime = first_line(error)
        return False
    made = session(again)
    for inputs, _ in data[:1]:
        ours = made.run(None, {i.name: inputs[i.name] for i in made.get_inputs()})
        for a, b in zip(ours, expected, strict=True):
            if isinstance(a, np.ndarray) and a.tobytes() != b.tobytes() and a.dtype.kind != "O":
                outcome.failed = "onnxruntime gives other results for the emitted file"
    return True


def _torch(outcome: Outcome, graph: Any, data: list[Data], case: Case) -> None:
    import torch

    from irprune.ops.dtypes import TO_TORCH

    if any(v.dtype not in TO_TORCH and v.dtype not in (SEQUENCE, OPTIONAL) for v in graph.values()):
        outcome.torch = "an element type that torch lacks"
        return
    if any(v.dtype.startswith("f8") for n in graph.nodes for v in n.outputs):
        outcome.torch = "torch saturates float8 otherwise"
        return
    if "same_values" in case.name:
        outcome.torch = "torch says nothing about the order of equal values"
        return
    try:
        module = module_from_onnx(graph)
    except IrpruneError as error:
        outcome.failed = f"module: {error}"
        return
    for inputs, expected in data:
        given = [_to_torch(torch, inputs[v.name], v.dtype) for v in graph.inputs]
        try:
            with torch.no_grad():
                made = module(*given)
            if len(graph.outputs) == 1 and isinstance(expected[0], list):
                made = [made]
        except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError) as error:
            text = first_line(error)
            if "not implemented for" in text or "non-zero size" in text:
                outcome.torch = f"torch: {text}"
            else:
                outcome.failed = f"module: {text}"
            return
        many = list(made) if isinstance(made, (tuple, list)) else [made]
        for k, (ours, want) in enumerate(zip(many, expected, strict=False)):
            pairs = list(zip(ours, want, strict=True)) if isinstance(want, list) else [(ours, want)]
            problem = next(
                filter(None, (_different(_to_numpy(a), np.asarray(b), case) for a, b in pairs)), ""
            )
            if problem:
                outcome.failed = f"module: output {k}: {problem}"
                return


def _to_torch(torch: Any, array: Any, dtype: str) -> Any:
    if array is None or isinstance(array, (list, tuple)):
        return None if array is None else [torch.from_numpy(np.array(a)) for a in array]
    if dtype == "bf16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if dtype.startswith("f8"):
        from irprune.ops.dtypes import TO_TORCH

        return torch.from_numpy(array.view(np.uint8).copy()).view(TO_TORCH[dtype])
    return torch.from_numpy(np.array(array))


def _to_numpy(x: Any) -> Array:
    x = x.detach()
    return np.asarray((x.float() if x.dtype.itemsize < 4 and x.is_floating_point() else x).numpy())


def _different(ours: Array, want: Array, case: Case) -> str:
    if ours.shape != want.shape:
        return f"shape {ours.shape} where {want.shape} is expected"
    a, b = ours.astype(np.complex128), want.astype(np.complex128)
    loose = (
        1.6e-2
        if want.dtype.kind == "V"
        else 8e-3
        if want.dtype.itemsize < 4 and want.dtype.kind in "fV"
        else case.rtol
    )
    if not np.allclose(a, b, rtol=loose, atol=max(case.atol, loose * 1e-2), equal_nan=True):
        return f"differs by {np.nanmax(np.abs(a - b)):.3g}"
    return ""


def _types(outcome: Outcome, graph: Any, data: list[Data]) -> None:
    """The inferred types of the outputs are those of the expected ones."""
    for value, want in zip(graph.outputs, data[0][1] if data else (), strict=False):
        if want is None or value.type.shape is None or outcome.failed:
            continue
        known = [
            (s, n) for s, n in zip(value.type.shape, want.shape, strict=False) if isinstance(s, int)
        ]
        if len(value.type.shape) != want.ndim or any(s != n for s, n in known):
            outcome.failed = f"inferred {value.type} for an output of shape {want.shape}"
