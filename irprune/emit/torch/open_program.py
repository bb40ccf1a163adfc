"""The emitted module as a program of ``torch.export`` in which the open sizes stay open."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from irprune.frontend.torch.source import TorchSource
from irprune.ir.graph import Graph
from irprune.ir.size import Sym, symbols
from irprune.run.other_sizes import at_least, resized

__all__ = ["open_program"]


def open_program(
    module: torch.nn.Module, source: TorchSource, graph: Graph | None
) -> tuple[ExportedProgram, Any]:
    """The program of ``module``, called as ``source`` records, and the dynamic axes as
    ``torch.onnx.export`` takes them: the sizes that ``graph`` leaves open by name, or what the user
    gave.

    Torch takes a size of 1 for a constant, so that open sizes are exported at 2 or more. Where it
    refuses to leave them all open, they are left open in steps of a power of 2, as detectors take
    them (its own solver fails on what a stride of 32 asks of a size), else the batch is, else
    none. Where sizes are divided by quotients of open sizes, as where windows of an image are put
    together again, the batch alone is tried: its solver takes minutes for each block. Raises what
    ``torch.export`` raises for sizes that are fixed."""
    args, kwargs = tuple(source.args), dict(source.kwargs)
    given = source.dynamic_shapes is not None or graph is None or not graph.sizes
    sizes = None if given or graph is None else at_least(graph, 2)
    if sizes is not None and graph is not None:
        call = resized(graph, source.inputs, (args, kwargs), sizes)
        every, batches = _axes(graph, False), _axes(graph, True)
        rows = {name for own in batches.values() for name in own.values()}
        steps = {name: _step(n) for name, n in sizes.items() if name not in rows}
        ways: list[tuple[Any, dict[str, int]]] = [(every, {}), (every, steps), (batches, {})]
        for axes, by in ways[2:] if _divides_by_quotients(graph) else ways:
            if not any(axes.values()) or (not by and axes is not every and axes == every):
                continue
            names = _shapes(module, source.inputs, call, axes)
            dims = pytree.tree_map(_dimensions(by), names)
            try:
                program = torch.export.export(module, *call, dynamic_shapes=dims, strict=False)
            except Exception:  # torch raises many kinds for sizes that it cannot leave open
                continue
            return program, names
    return (
        torch.export.export(
            module, args, kwargs, dynamic_shapes=source.dynamic_shapes, strict=False
        ),
        source.dynamic_shapes,
    )


def _divides_by_quotients(graph: Graph) -> bool:
    """Whether a size is divided by one that holds a quotient or a remainder itself."""
    return any(_has_open_divisor(s) for v in graph.values() for s in v.type.shape or ())


def _has_open_divisor(size: Any) -> bool:
    if not isinstance(size, Sym):
        return False
    return (size.op in _DIVIDES and _divides(size.args[1])) or any(
        map(_has_open_divisor, size.args)
    )


def _divides(size: Any) -> bool:
    return isinstance(size, Sym) and (size.op in _DIVIDES or any(map(_divides, size.args)))


_DIVIDES = ("//", "%")
_STEP = 64  # the largest: what detectors divide an image by at most


def _step(size: int) -> int:
    """The largest power of 2 that goes at least twice into ``size``."""
    step = 1
    while step < _STEP and size % (2 * step) == 0 and size >= 4 * step:
        step *= 2
    return step


def _dimensions(steps: Mapping[str, int]) -> Callable[[Any], Any]:
    """The dimensions of ``torch.export`` by name, where there is one: in the ``steps`` of each, or
    as torch finds them."""
    made: dict[str, Any] = {}

    def dimension(name: Any) -> Any:
        if not isinstance(name, str):
            return None
        step = steps.get(name, 1)
        if step == 1:
            return Dim.AUTO
        if name not in made:
            made[name] = step * Dim(f"_{name}", min=1, max=1 << 24)
        return made[name]

    return dimension


def _axes(graph: Graph, batch: bool) -> dict[int, dict[int, str]]:
    """For each input the names of its open dimensions; of the first one alone where ``batch``."""
    return {
        i: {
            d: "_".join(dict.fromkeys(symbols(s))) if not s.name else s.name
            for d, s in enumerate(value.type.shape or ())
            if isinstance(s, Sym) and (d == 0 or not batch)
        }
        for i, value in enumerate(graph.inputs)
    }


def _shapes(
    module: torch.nn.Module, places: Sequence[Any], call: Any, axes: Mapping[int, dict[int, str]]
) -> dict[str, Any]:
    """``axes`` by the parameters of the module's forward, nested as the arguments are."""
    leaves = pytree.tree_leaves(call)
    at = {
        id(leaf): place
        for leaf, place in zip(leaves, places, strict=True)
        if isinstance(leaf, torch.Tensor) and isinstance(place, int)
    }
    bound = inspect.signature(module.forward).bind(*call[0], **call[1]).arguments
    return {
        name: _like(value, lambda x: axes.get(at.get(id(x), -1))) for name, value in bound.items()
    }


def _like(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """``leaf`` of each leaf of ``value``, in dictionaries, lists and tuples as they are and in
    lists for all other containers, which is how torch.export takes them."""
    if type(value) not in pytree.SUPPORTED_NODES:
        return leaf(value)
    children, context = pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)
    made = [_like(c, leaf) for c in children]
    if type(value) is dict:
        return dict(zip(context, made, strict=True))
    return tuple(made) if isinstance(value, tuple) else made
