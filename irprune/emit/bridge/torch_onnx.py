"""ONNX out of an emitted module, through ``torch.onnx.export(dynamo=True)``.

Names of inputs follow the parameters of ``forward``, names of outputs the structure of its result;
dynamic sizes stay dynamic. The file is written aside and renamed, its weights beside it only where
protobuf's 2 GB demand it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from irprune.base.atomic_write import atomic_write, content_name
from irprune.base.quiet import quiet
from irprune.emit.torch.open_program import open_program
from irprune.emit.torch.signature import paths
from irprune.errors import IrpruneError
from irprune.frontend.onnx.example_sizes import write_example_sizes
from irprune.frontend.onnx.file import data_beside
from irprune.frontend.torch.source import TorchSource
from irprune.ir.graph import Graph
from irprune.ir.size import Sym
from irprune.ops.arrays import as_numpy
from irprune.ops.torch.onnx_gaps import exportable, translations
from irprune.run.stored_tensor import state_bytes

__all__ = ["export_onnx", "feed_of", "input_names", "notes_on_sizes", "output_names"]

# bytes of weights up to which one protobuf file is written; the format's own limit is 2 GiB
LIMIT = 1_800_000_000


def export_onnx(
    module: torch.nn.Module,
    source: TorchSource,
    path: str | Path,
    opset: int | None = None,
    graph: Graph | None = None,
) -> Path:
    """Write ``module``, called as ``source`` records, to ``path``, with the sizes open that
    ``graph`` leaves open. Raises IrpruneError where torch's exporter refuses."""
    path = Path(path)
    size = state_bytes(module)
    with atomic_write(path, data_beside) as draft, quiet():
        target = draft / path.name
        try:
            given, names = open_program(module, source, graph)
            program = exportable(given)
            torch.onnx.export(
                program,
                f=str(target),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                custom_translation_table=translations(program),
                input_names=input_names(source),
                output_names=output_names(source),
                dynamic_shapes=names,
                external_data=size > LIMIT,
                artifacts_dir=str(draft),
            )
        except (IrpruneError, OSError):
            raise
        except Exception as refused:  # the exporter wraps every failure in classes of its own
            raise IrpruneError(
                f"torch.onnx.export refuses the pruned module: {_gist(refused)}",
                str(path),
                "the module itself is sound: use it, or the .pt2 file",
            ) from refused
        arrays = feed_of(source.args, source.kwargs, source, file_inputs(target))
        _tidy(target, {name: array.shape for name, array in arrays.items()})
        _name_data(target)
    return path


def notes_on_sizes(path: str | Path, source: TorchSource, graph: Graph) -> list[str]:
    """A sentence on the dimensions of inputs that ``graph`` leaves open and the file ``path`` does
    not, as input:dimension; nothing where there is none."""
    inputs = onnx.load(str(path), load_external_data=False).graph.input
    shapes = {v.name: v.type.tensor_type.shape.dim for v in inputs}
    places = [place for place in source.inputs if isinstance(place, int)]
    closed = [
        f"{name}:{d}"
        for name, place in zip(input_names(source), places, strict=True)
        if name in shapes and graph.sizes
        for d, size in enumerate(graph.inputs[place].type.shape or ())
        if isinstance(size, Sym) and shapes[name][d].HasField("dim_value")
    ]
    return [
        f"{Path(path).name} takes {', '.join(closed)} at the captured size alone: torch's exporter "
        "does not leave it open; the module does"
    ] * bool(closed)


def _name_data(path: Path) -> None:
    """Let the file of external data that the exporter wrote be called by its content."""
    data = path.with_name(f"{path.name}.data")
    if not data.exists():
        return
    place = content_name(data, path.name, ".data")
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())


def _gist(refused: BaseException) -> str:
    """What the innermost error says; the exporter wraps it in advice."""
    while refused.__cause__ is not None:
        refused = refused.__cause__
    lines = [x.strip() for x in str(refused).splitlines() if x.strip()]
    return f"{type(refused).__name__}: {lines[0][:300] if lines else 'no message'}"


def input_names(source: TorchSource) -> list[str]:
    """A name for each tensor that a call takes, in order."""
    args, kwargs = (s.children() for s in source.in_spec.children())
    names = list(source.names)[: len(args)]
    names += [f"input_{i}" for i in range(len(names), len(args))]
    keys = list(source.in_spec.children()[1].context or ())
    leaves = [
        x
        for name, spec in zip((*names, *keys), (*args, *kwargs), strict=True)
        for x in paths(spec, name)
    ]
    return [x for x, place in zip(leaves, source.inputs, strict=True) if isinstance(place, int)]


def output_names(source: TorchSource) -> list[str]:
    """A name for each tensor that a call returns, in order: the fields of the result, ``output``
    for one that has none."""
    out = []
    for name, place in zip(paths(source.out_spec), source.outputs, strict=True):
        if isinstance(place, int):
            out.append(
                name if name and not name[0].isdigit() else f"output_{name}" if name else "output"
            )
    taken = set(input_names(source))
    return [f"{name}_out" if name in taken else name for name in out]


def feed_of(
    args: Sequence[Any], kwargs: dict[str, Any], source: TorchSource, names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """What onnxruntime is fed for a call: numpy arrays by the file's input ``names``."""
    leaves = pytree.arg_tree_leaves(*args, **kwargs)
    tensors = dict(zip(input_names(source), _tensors(leaves, source), strict=True))
    missing = [n for n in names if n not in tensors]
    if missing:
        raise IrpruneError(
            f"the file takes {missing[0]!r}, the model has {', '.join(tensors)}",
            "",
            "export the model again",
        )
    return {n: as_numpy(tensors[n]) for n in names}


def _tensors(leaves: Sequence[Any], source: TorchSource) -> list[torch.Tensor]:
    return [x for x, place in zip(leaves, source.inputs, strict=True) if isinstance(place, int)]


def file_inputs(path: str | Path) -> list[str]:
    """The names of the inputs of an ONNX file."""
    model = onnx.load(str(path), load_external_data=False)
    weights = {w.name for w in model.graph.initializer}
    return [v.name for v in model.graph.input if v.name not in weights]


def _tidy(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Drop the stack traces that the exporter writes beside every node, which are larger than the
    nodes and name a machine's own paths; record the ``shapes`` of the example call."""
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    nodes = [node for body in (graph, *model.functions) for node in body.node]
    for held in (graph, *nodes, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del held.metadata_props[:]
    write_example_sizes(model, shapes)
    path.write_bytes(model.SerializeToString())
