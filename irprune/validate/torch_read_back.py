"""What was written of an emitted module, read again: ``model.py`` in a namespace of its own with
``weights.safetensors`` as the safetensors package reads it, ``model.pt2`` as torch does."""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from irprune.base.quiet import quiet
from irprune.emit.torch.saved import WEIGHTS
from irprune.errors import IrpruneError, gist
from irprune.frontend.torch.source import find_torch_source
from irprune.ir.dtype import is_half
from irprune.ir.graph import Graph, Node
from irprune.ops.arrays import as_tensor
from irprune.ops.registry import draws, lookup
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors, over_tensors, random_inputs, redraw
from irprune.run.precision import full_float32
from irprune.run.session import run_session, session
from irprune.run.stored_tensor import module_device
from irprune.validate.onnx_sizes import plausible
from irprune.validate.read_back import ReadBack, timed

__all__ = ["beside_file", "read_back_program", "read_back_source"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
_SEED = 2
_TRIED = 5  # sizes, where a file does not say which


def read_back_source(folder: Path, module: torch.nn.Module, graph: Graph) -> ReadBack:
    """Compare ``model.py`` and ``weights.safetensors`` in ``folder`` with ``module``, the one of
    the cut ``graph``."""

    def compared() -> tuple[float, str]:
        held = load_file(str(folder / WEIGHTS))
        differs = _other(held, module)
        if differs:
            return 0.0, differs
        try:
            space = runpy.run_path(str(folder / "model.py"), run_name="model")
            with torch.device("meta"):
                made = space["Model"]()
            made = space["fill"](made, held).eval()
            own = space["read"](folder / WEIGHTS)
        except Exception as refused:  # whatever the source raises, it is not sound
            return 0.0, f"model.py does not run: {gist(refused)}"
        if own.keys() != held.keys() or not all(_equal(own[k], v) for k, v in held.items()):
            return 0.0, "model.py reads other numbers than the safetensors package"
        return _error(made, module, graph), ""

    return timed("model.py", "python and safetensors", compared)


def read_back_program(path: Path, module: torch.nn.Module, graph: Graph) -> ReadBack:
    """Compare the program ``path`` with ``module``, the one of the cut ``graph``."""

    def compared() -> tuple[float, str]:
        with quiet():
            try:
                made = torch.export.load(str(path)).module()
            except Exception as refused:  # torch raises many kinds
                return 0.0, f"torch does not read it: {gist(refused)}"
        return _error(made, module, graph), ""

    return timed(path.name, "torch", compared)


def beside_file(path: Path, module: torch.nn.Module, graph: Graph) -> ReadBack:
    """Compare ``module``, made of the cut ``graph`` of an ONNX file, with the file ``path`` that
    was written of the same graph, run by onnxruntime."""

    def compared() -> tuple[float, str]:
        if any(map(draws, graph.nodes)) or any(map(_rounds, graph.nodes)):
            return 0.0, ""
        try:
            running = session(path, "cpu", threads=1)
        except IrpruneError:
            return 0.0, ""  # it has no kernels for what the model computes
        for sizes in islice(plausible(graph), _TRIED):
            feed = random_inputs(graph, sizes)
            try:
                expected = run_session(running, feed)
            except IrpruneError:
                continue
            call: Call = tuple(map(as_tensor, feed.values())), {}
            ours = _run(module, call, torch.device("cpu"))
            return relative_error(ours, expected.values()), ""
        return 0.0, ""

    return timed("the module", "onnxruntime", compared)


def _rounds(node: Node) -> bool:
    """Whether ``node`` rounds to a step of its own, which two runtimes may do to two sides."""
    entry = lookup(node)
    return (entry is not None and entry.rounds) or any(is_half(v.dtype) for v in node.outputs)


def _other(held: Mapping[str, torch.Tensor], module: torch.nn.Module) -> str:
    """The tensor of ``module`` that ``held`` does not hold as it is; a tensor of several names
    stands under one of them."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for name, t in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        names.setdefault(id(t), []).append(name)
        tensors[id(t)] = t.detach().cpu()
    for key, many in names.items():
        found = [held[n] for n in many if n in held]
        if not found or not all(_equal(f, tensors[key]) for f in found):
            return f"{many[0]!r} holds other numbers"
    return ""


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same, bit by bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*bits)


def _error(made: Any, module: torch.nn.Module, graph: Graph) -> float:
    """How far the outputs of ``made`` are from those of ``module``, on the same random inputs; 0
    where the model draws random numbers."""
    if any(map(draws, graph.nodes)):
        return 0.0
    here = module_device(module)
    for call in _calls(graph):
        try:
            expected = _run(module, call, here)
        except Exception:  # not a size that a file's model takes
            if find_torch_source(graph) is not None:
                raise
            continue
        return relative_error(_run(made, call, torch.device("cpu")), expected)
    return 0.0


def _calls(graph: Graph) -> Iterator[Call]:
    """Random inputs: of the example call, or of plausible sizes for a file."""
    source = find_torch_source(graph)
    if source is not None:
        yield redraw(source.args, source.kwargs, _SEED)
        return
    for sizes in islice(plausible(graph), _TRIED):
        yield tuple(map(as_tensor, random_inputs(graph, sizes).values())), {}


def _run(module: Any, call: Call, place: torch.device) -> list[torch.Tensor]:
    def own(t: torch.Tensor) -> torch.Tensor:
        return t.detach().clone().to(place)

    args, kwargs = over_tensors(call, own)
    with torch.no_grad(), full_float32(), torch.random.fork_rng():
        torch.manual_seed(_SEED)
        return flat_tensors(module(*args, **kwargs))
