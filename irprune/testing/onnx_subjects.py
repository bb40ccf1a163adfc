"""Small ONNX files that faults may show in, out of the samples of ONNX operators: what
``irprune.testing.mutants`` makes of the samples of ATen operators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from irprune.ir.dtype import TO_ONNX, is_float, is_integer
from irprune.ops.onnx.importer import SPELLINGS, Spelling
from irprune.ops.registry import Arg, Op, Sample
from irprune.run.session import run_session, session
from irprune.testing.mutants import Mutant, Subject

__all__ = ["file_around", "onnx_faults", "onnx_subjects"]

_OPSET = 17  # where a sample names none
Array = NDArray[Any]


def onnx_subjects(entry: Op) -> Iterator[Subject]:
    """The small files of the ONNX operators that are read into ``entry``."""
    for spelling in SPELLINGS.values():
        if entry.random or entry.name not in spelling.entries:
            continue
        for number, sample in enumerate(spelling.samples):
            try:
                model = file_around(spelling, sample)
            except Exception:  # the sample is of something that has no floats
                continue
            yield Subject(f"{spelling.target} {number}", entry.name, _maker(model))


def _maker(model: onnx.ModelProto) -> Callable[[], tuple[onnx.ModelProto, tuple[Any, ...]]]:
    return lambda: (model, ())


def onnx_faults(entry: Op) -> Iterator[Mutant]:
    """Faults of the spellings of ``entry``: what rewrites attributes and size inputs of a file is
    forgotten."""
    for target, spelling in SPELLINGS.items():
        if spelling.write is None or entry.name not in spelling.entries:
            continue

        def plant(
            target: str = target, spelling: Spelling = spelling
        ) -> contextlib.AbstractContextManager[Any]:
            return mock.patch.dict(SPELLINGS, {target: replace(spelling, write=_nothing)})

        yield Mutant(f"{target}: sizes in the file left as they were", "rewrite", plant, entry.name)


def _nothing(edit: Any, *nodes: Any) -> None:
    """Writes no new sizes."""


def file_around(spelling: Spelling, sample: Sample) -> onnx.ModelProto:
    """A file in which the operator stands between initializers that depend on the input ``x`` and
    products that sum each dimension of its results up.

    Raises what onnxruntime or onnx raise where the sample cannot be so."""
    numbers = np.random.default_rng(0)
    nodes = [
        helper.make_node("Div", ["x", "eight"], ["x.part"]),
        helper.make_node("Add", ["x.part", "one"], ["x.near"]),
    ]
    tensors = [
        numpy_helper.from_array(np.array([8], np.float32), "eight"),
        numpy_helper.from_array(np.array([1], np.float32), "one"),
    ]
    names: list[str] = []
    for i, arg in enumerate(_flat(sample)):
        names.append("" if arg is None else f"x{i}")
        if arg is None:
            continue
        array = _array(arg, numbers)
        if arg.dtype != "f32" or arg.values is not None or arg.stored:
            tensors.append(numpy_helper.from_array(array, f"x{i}"))
        else:
            tensors.append(numpy_helper.from_array(array, f"held{i}"))
            nodes.append(helper.make_node("Mul", [f"held{i}", "x.near"], [f"x{i}"]))
    read = sample.read or (0,)
    results = [f"y{k}" if k in read else "" for k in range(max(read) + 1)]
    domain, _, kind = spelling.target.rpartition("::")
    nodes.append(helper.make_node(kind, names, results, name="n", domain=domain, **sample.attrs))
    plain = _model(nodes, tensors, list(filter(None, results)), sample)
    made = run_session(session(plain.SerializeToString(), "cpu"), {"x": np.ones(1, np.float32)})
    outputs = []
    for name, array in made.items():
        outputs.append(_summed(name, array, nodes, tensors, numbers))
    return _model(nodes, tensors, outputs, sample)


def _summed(
    name: str,
    array: Array,
    nodes: list[onnx.NodeProto],
    tensors: list[TensorProto],
    numbers: np.random.Generator,
) -> str:
    """Add what sums each dimension of the result ``name`` up; returns what it is called then."""
    nodes.append(helper.make_node("Cast", [name], [f"{name}.f"], to=TensorProto.FLOAT))
    at = f"{name}.f"
    for d, size in enumerate(array.shape):
        weight = numbers.standard_normal((size, 2)).astype(np.float32) / max(1, size) ** 0.5
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.w{d}"))
        order = [*range(1, array.ndim), 0]
        nodes.append(helper.make_node("Transpose", [at], [f"{name}.t{d}"], perm=order))
        nodes.append(helper.make_node("MatMul", [f"{name}.t{d}", f"{name}.w{d}"], [f"{name}.m{d}"]))
        at = f"{name}.m{d}"
    nodes.append(helper.make_node("Mul", [at, "x"], [f"{name}.out"]))
    return f"{name}.out"


def _model(
    nodes: list[onnx.NodeProto], tensors: list[TensorProto], outputs: list[str], sample: Sample
) -> onnx.ModelProto:
    infos = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "around",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        infos,
        tensors,
    )
    opsets = [
        helper.make_opsetid("", sample.opset or _OPSET),
        helper.make_opsetid("com.microsoft", 1),
    ]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def _flat(sample: Sample) -> list[Arg | None]:
    return [x for a in sample.args for x in (a if isinstance(a, tuple) else (a,))]


def _array(arg: Arg, numbers: np.random.Generator) -> Array:
    kind = helper.tensor_dtype_to_np_dtype(TO_ONNX[arg.dtype])
    if arg.values is not None:
        return np.array(arg.values).astype(kind).reshape(arg.shape)
    uniform = numbers.uniform(size=arg.shape)
    if is_float(arg.dtype) or is_integer(arg.dtype):
        uniform = arg.low + (arg.high - arg.low) * uniform
        return (np.floor(uniform) if is_integer(arg.dtype) else uniform).astype(kind)
    return uniform < 0.5
