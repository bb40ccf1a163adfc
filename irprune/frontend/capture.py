"""Any model that irprune takes, told by what it is and handed to the capture of its kind."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from irprune.base.near import meant
from irprune.errors import IrpruneError
from irprune.frontend.torch.capture import capture as capture_module
from irprune.ir.graph import Graph
from irprune.ir.size import Sym
from irprune.run.ranks import current

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch.export import ExportedProgram

    class SurgeonGraph(Protocol):
        """A graph of onnx-graphsurgeon, which ships no types."""

        nodes: Any
        opset: Any
        ir_version: Any

    Model = torch.nn.Module | ExportedProgram | ModelProto | SurgeonGraph | str | Path

__all__ = ["capture", "whole_call"]


def capture(
    model: Model,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    method: str = "auto",
    dynamic: str = "all",
    trust: bool = False,
) -> Graph:
    """The graph of a model, which is left as it was.

    Args:
        model: nn.Module, ExportedProgram, "m.pt2", "m.onnx", onnx.ModelProto or
            onnx_graphsurgeon.Graph.
        args: The positional arguments of an example call, for a module.
        kwargs: Its keyword arguments; for a file with open sizes, example inputs by name.
        dynamic_shapes: The open sizes as ``torch.export.export`` takes them, in place of
            ``dynamic``.
        method: How a module is captured: "trace" (one recorded call on tensors without data),
            "run" (the same, but code that asks whether it is captured hears no), "export"
            (``torch.export``), or "auto": the first of these that serves.
        dynamic: Which sizes of the inputs of a module stay open: "all" (unless forward fixes them),
            "batch", "none", or dimensions by the name of the input, "x:0,2".
        trust: Whether a ``.pt2`` file is loaded that may run code of its own.

    Returns:
        The graph, not analysed yet.

    Raises:
        IrpruneError: For what cannot be captured.
    """
    kind, given = _kind(model), cast("Any", model)
    if kind == "surgeon":
        from irprune.frontend.onnx.surgeon import from_surgeon

        given = from_surgeon(given)
        kind = "onnx"
    if kind == "onnx":
        from irprune.frontend.onnx.reader import capture_onnx

        graph = capture_onnx(given, _values(kwargs or {}))
        _bind_sizes(graph, args, kwargs or {})
        return graph
    if kind == "pt2":
        from irprune.frontend.torch.program_file import load_program

        given = load_program(Path(given), trust)
        kind = "program"
    if kind == "program":
        from irprune.frontend.torch.export import from_exported

        return from_exported(given)
    _check_call(model, kwargs)
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        args = (args,)  # a single tensor
    graph = capture_module(given, tuple(args), kwargs, dynamic_shapes, method, dynamic)
    from irprune.frontend.torch.fake_quantise import fake_quantisers
    from irprune.frontend.torch.source import torch_source

    if fake_quantisers(given):
        graph.notes.append(
            "proven without the rounding of its fake quantisers; apply_to cuts them in the instance, "
            "which trains on and is converted"
        )
    torch_source(graph).dynamic_shapes = dynamic_shapes
    torch_source(graph).method = method
    return graph


def _values(kwargs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The whole numbers and truths among the inputs of an example call: they select something."""
    found = {k: np.asarray(v) for k, v in kwargs.items() if not getattr(v, "ndim", 0)}
    return {k: a for k, a in found.items() if a.ndim == 0 and a.dtype.kind in "iub"}


def _bind_sizes(graph: Graph, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Put the sizes that an example call gives symbols of a file's inputs into ``graph.sizes``; the
    call may leave inputs out. Raises IrpruneError for one that the inputs do not take."""
    listed = [x for x in (args if isinstance(args, Sequence) else (args,)) if hasattr(x, "shape")]
    if len(listed) > len(graph.inputs):
        raise IrpruneError(
            f"{len(listed)} inputs for a model that takes {len(graph.inputs)}",
            graph.name,
            "leave them out",
        )
    named = {v.name: v for v in graph.inputs}
    for name in kwargs:
        if name not in named:
            hint = meant(name, named, f"there are {', '.join(named)}")
            raise IrpruneError(f"no input is called {name!r}", graph.name, hint)
    bound: dict[str, int] = {}
    given = [*zip(listed, graph.inputs, strict=False), *((kwargs[k], named[k]) for k in kwargs)]
    for x, value in given:
        shape = tuple(int(n) for n in x.shape)
        if len(shape) != len(value.shape) or any(
            isinstance(s, int) and s != n for s, n in zip(value.shape, shape, strict=True)
        ):
            raise IrpruneError(
                f"input '{value.name}' has shape {list(shape)}, the model takes [{', '.join(map(str, value.shape))}]",
                graph.name,
                "leave it out: the file says it",
            )
        if shape and shape[0] == 0:  # an axis behind it may be empty: a cache at the first token
            raise IrpruneError(
                f"input '{value.name}' has shape {list(shape)}: no samples, and empty outputs",
                graph.name,
                "give at least one",
            )
        for s, n in zip(value.shape, shape, strict=True):
            if isinstance(s, Sym) and s.name and bound.setdefault(s.name, n) != n:
                raise IrpruneError(
                    f"input '{value.name}' has shape {list(shape)}, where '{s.name}' is {bound[s.name]} in another place",
                    graph.name,
                    "give shapes that fit together",
                )
    graph.sizes.update(bound)


def _kind(model: Any) -> str:
    """What came in: ``module``, ``program``, ``pt2``, ``onnx`` or ``surgeon``. Raises IrpruneError
    for anything else."""
    if isinstance(model, (str, Path)):
        suffix = Path(model).suffix
        if suffix in (".onnx", ".pt2"):
            return suffix[1:]
        raise IrpruneError(
            "not a model file",
            str(model),
            "give an nn.Module, an ExportedProgram, an .onnx file or a .pt2 file",
        )
    for kind in type(model).__mro__:
        where = f"{kind.__module__}.{kind.__name__}"
        if where == "torch.nn.modules.module.Module":
            return "module"
        if where == "torch.export.exported_program.ExportedProgram":
            return "program"
        if kind.__name__ == "ModelProto":
            return "onnx"
        if where == "onnx_graphsurgeon.ir.graph.Graph":
            return "surgeon"
    raise IrpruneError(
        f"not a model: {type(model).__name__}",
        "",
        "give an nn.Module, an ExportedProgram, an .onnx file or a .pt2 file",
    )


def whole_call(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[Any, Sequence[Any], Mapping[str, Any] | None]:
    """A call of a model that is sharded over ranks, or that accelerate has offloaded, as one of a
    plain twin on the CPU; any other as it is."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from irprune.frontend.torch.offloaded import is_offloaded, unhooked_twin

        if is_offloaded(model):
            return unhooked_twin(model), *_on_cpu(args, kwargs)
    made = sys.modules.get("torch.distributed.tensor")  # there is none where nothing is sharded
    if made is None or not isinstance(model, sys.modules["torch"].nn.Module):
        return model, args, kwargs
    if not any(isinstance(p, made.DTensor) for p in model.parameters()):
        return model, args, kwargs
    from irprune.frontend.torch.sharded import plain_twin

    return plain_twin(model, current()), *_on_cpu(args, kwargs)


def _on_cpu(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """The arguments of a call, with their tensors on the CPU."""
    import torch
    from torch.utils import _pytree as pytree

    def moved(x: Any) -> Any:
        return x.cpu() if isinstance(x, torch.Tensor) else x

    moved_args, moved_kwargs = pytree.tree_map(moved, (tuple(args), dict(kwargs or {})))
    return moved_args, moved_kwargs


def _check_call(model: Any, kwargs: Any) -> None:
    """Raises IrpruneError for a module that cannot be captured as it stands, or keyword arguments
    that are none."""
    import torch
    from torch import nn
    from torch.nn.parameter import is_lazy

    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise IrpruneError(
            f"kwargs is a {type(kwargs).__name__}", "", "give a dictionary of keyword arguments"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise IrpruneError(
            f"the model is wrapped in {type(model).__name__}",
            "",
            "give the model in it: model.module",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise IrpruneError(
            "the model is a torch.jit script, whose code is fixed",
            "",
            "give the module that the script was made from",
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout is not torch.strided:
            raise IrpruneError(
                f"{name!r} is a sparse tensor ({str(tensor.layout).removeprefix('torch.')})",
                type(model).__name__,
                "hold it dense: .to_dense()",
            )
        if is_lazy(tensor):
            raise IrpruneError(
                "the model has lazy layers without a shape yet",
                name,
                "call it once before it is pruned",
            )
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.quantized."):
            raise IrpruneError(
                "the model is quantised: its weights are packed and cannot be cut",
                name,
                "prune it, then quantise it",
            )
