"""The proof: the original with its dropped channels silenced, against the emitted module, on random inputs.

And the captured graph, uncut, against the user's own ``forward``: what both the oracle and the module come from. That is
four forward passes; two more where float32 rounding leaves a doubt (in float64), or where the outputs of the
model are constant and would agree whatever was cut (with weights drawn at random).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from irprune.capture.untouched import attributes_kept, evaluating
from irprune.ir.graph import Graph, Weight
from irprune.validate.inputs import flat_tensors, over_tensors, redraw
from irprune.validate.interpret import as_tensor, evaluate
from irprune.validate.oracle import relative_error, silenced
from irprune.validate.tolerance import FLOAT32, FLOAT64
from irprune.validate.verdict import Proof

__all__ = ["Proof", "prove"]


def prove(
    graph: Graph,
    module: torch.nn.Module,
    remake: Callable[[Graph], tuple[Graph, torch.nn.Module]],
    device: torch.device | None = None,
    seed: int = 0,
) -> Proof:
    """Compare ``module`` with the analysed ``graph`` whose choice it was cut by.

    ``remake(graph)`` cuts a copy of the graph and gives the cut graph and its module; it is called only where more passes are needed.
    """
    began = time.perf_counter()
    device = device or torch.device("cpu")
    structure = graph.structure
    args, kwargs = redraw(structure.args, structure.kwargs, seed)
    ours, theirs = _run(graph, module, args, kwargs, device, torch.float32)
    if any(bool(t.isnan().any()) for t in theirs) and (args, kwargs) is not (structure.args, structure.kwargs):
        args, kwargs = structure.args, structure.kwargs  # random numbers left the model's domain
        ours, theirs = _run(graph, module, args, kwargs, device, torch.float32)
    proof = Proof(relative_error(ours, theirs), FLOAT32)
    if structure.module is not None:
        proof.capture_error = _captured(graph, args, kwargs, seed)
        proof.passes += 2
    if _constant(theirs):
        shaken = _shaken(graph, seed)
        _, other = remake(shaken)
        ours, theirs = _run(shaken, other, args, kwargs, device, torch.float32)
        proof.max_error = max(proof.max_error, relative_error(ours, theirs))
        proof.random_weights, proof.passes, proof.vacuous = True, proof.passes + 2, _constant(theirs)
    elif proof.max_error > FLOAT32:
        _in_float64(proof, graph, module, remake, args, kwargs, device)
    proof.seconds = time.perf_counter() - began
    return proof


def _captured(graph: Graph, args: Sequence[Any], kwargs: dict[str, Any], seed: int) -> float:
    """The error of the uncut graph against the user's ``forward``, in the model's own types and on its device; the model stays as it is."""
    model: torch.nn.Module = graph.structure.module
    buffers = {name: b.clone() for name, b in model.named_buffers()}  # forward may write to them, and to its arguments
    with torch.random.fork_rng(), evaluating(model), attributes_kept(model):
        torch.manual_seed(seed)
        own_args, own_kwargs = over_tensors((tuple(args), kwargs), torch.clone)
        expected = flat_tensors(torch.func.functional_call(model, buffers, own_args, own_kwargs))
        torch.manual_seed(seed)
        found = _in_order(graph, evaluate(graph, graph_inputs(graph, args, kwargs)))
    return relative_error(found, expected)


def _run(
    graph: Graph, module: torch.nn.Module, args: Sequence[Any], kwargs: dict[str, Any], device: torch.device, dtype: torch.dtype,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of the module and of the silenced original, both in ``dtype``."""
    assert graph.kept is not None
    args, kwargs = over_tensors((tuple(args), kwargs), lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device))
    moved = module
    if any(p.device != device or (p.is_floating_point() and p.dtype != dtype) for p in (*module.parameters(), *module.buffers())):
        moved = copy.deepcopy(module).to(device, dtype)
    with torch.no_grad():
        ours = flat_tensors(moved(*args, **kwargs))
    theirs = silenced(graph, graph.kept, graph_inputs(graph, args, kwargs), dtype)
    return ours, _in_order(graph, theirs)


def graph_inputs(graph: Graph, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that a call hands to the graph's inputs, in the graph's order."""
    from torch.utils import _pytree as pytree

    leaves = pytree.arg_tree_leaves(*args, **kwargs)
    placed = [(p, leaf) for p, leaf in zip(graph.structure.inputs, leaves, strict=True) if isinstance(p, int)]
    return [leaf for _, leaf in sorted(placed, key=lambda pair: pair[0])]


def _in_order(graph: Graph, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The graph's outputs as the call returns them."""
    return [outputs[p] for p in graph.structure.outputs if isinstance(p, int)]


def _in_float64(
    proof: Proof, graph: Graph, module: torch.nn.Module, remake: Callable[[Graph], tuple[Graph, torch.nn.Module]],
    args: Sequence[Any], kwargs: dict[str, Any], device: torch.device,
) -> None:
    """Decide in float64 whether what float32 showed was rounding."""
    proof.float32_error = proof.max_error
    try:
        try:
            ours, theirs = _run(graph, module, args, kwargs, device, torch.float64)
        except RuntimeError:  # forward names float32 itself: the cut graph is run in its place, with its casts in float64
            wide = over_tensors((tuple(args), kwargs), lambda t: t.to(device, torch.float64) if t.is_floating_point() else t.to(device))
            assert graph.kept is not None
            inputs = graph_inputs(graph, *wide)
            ours = evaluate(remake(graph)[0], inputs, dtype=torch.float64)
            theirs = silenced(graph, graph.kept, inputs, torch.float64)
    except (RuntimeError, NotImplementedError) as refused:
        proof.notes.append(f"float64 is not possible here: {str(refused).splitlines()[0]}")
        return
    proof.max_error, proof.tolerance, proof.dtype = relative_error(ours, theirs), FLOAT64, "float64"
    proof.passes += 2


def _constant(outputs: list[torch.Tensor]) -> bool:
    """Whether no output varies: such outputs agree whatever was cut."""
    floats = [t for t in outputs if t.is_floating_point() and t.numel() > 1] or outputs
    return all(t.numel() == 0 or bool((t == t.flatten()[0]).all()) for t in floats)


def _shaken(graph: Graph, seed: int) -> Graph:
    """A copy of the graph with random numbers added to its parameters, so that zero-initialised layers pass something on."""
    twin = graph.copy()
    for k, weight in enumerate(twin.weights.values()):
        if weight.kind == "parameter" and weight.dtype[0] in "fb" and weight.dtype != "bool":
            weight.load = _Shaken(weight, seed + k)
    return twin


class _Shaken:
    """A weight's loader with noise on top; the same every time."""

    def __init__(self, weight: Weight, seed: int) -> None:
        self.load, self.seed = weight.load, seed

    def __call__(self) -> torch.Tensor:
        array = as_tensor(self.load())
        fan_in = max(1, array.numel() // array.shape[0]) if array.dim() > 1 else 100
        noise = torch.randn(array.shape, generator=torch.Generator().manual_seed(self.seed))
        shaken: torch.Tensor = array + (noise * fan_in**-0.5).to(array.dtype).to(array.device)
        return shaken
