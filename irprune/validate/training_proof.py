"""What the emitted module is in training: which of its tensors learn, are shared and are saved, and
what it computes in training mode.

Dropout, batch statistics and the like are the same whatever is cut, so that it is the uncut graph
that is emitted and compared with the user's own ``forward``, with the same random numbers: the
results, and what the buffers hold afterwards."""

from __future__ import annotations

import copy
from typing import Any

import torch

from irprune.base.tolerance import GRADIENT32
from irprune.emit.torch.module import emit_module
from irprune.errors import first_line
from irprune.frontend.torch.restore_state import attributes_kept
from irprune.frontend.torch.source import torch_source
from irprune.ir.graph import Graph
from irprune.run.error import array_error, relative_error
from irprune.run.inputs import flat_tensors, over_tensors, redraw
from irprune.run.precision import full_float32

__all__ = ["differs_in_training", "held_otherwise"]

Ran = tuple[list[torch.Tensor], dict[str, torch.Tensor]]


def held_otherwise(graph: Graph, module: torch.nn.Module) -> str:
    """The tensor that ``module``, made of the cut ``graph``, holds in another way than the captured
    model does, and how; "" where there is none."""
    source = torch_source(graph)
    if source.module is None:
        return ""
    theirs = dict(source.module.named_parameters(remove_duplicate=False))
    ours = dict(module.named_parameters(remove_duplicate=False))
    for name, p in ours.items():
        if name in theirs and p.requires_grad != theirs[name].requires_grad:
            return f"{name} {'learns' if p.requires_grad else 'does not learn'}"
    for weight in graph.weights.values():
        names = [n for n in (weight.name, *weight.aliases) if n in ours]
        if len({id(ours[n]) for n in names}) > 1:
            return f"{names[0]} is no longer {names[1]}"
    saved, before = module.state_dict().keys(), source.module.state_dict().keys()
    buffers = dict(source.module.named_buffers(remove_duplicate=False))
    for name, _ in module.named_buffers(remove_duplicate=False):
        if name in buffers and (name in saved) != (name in before):
            return f"{name} is {'saved' if name in saved else 'not saved'}"
    return ""


def differs_in_training(graph: Graph, seed: int = 0) -> str:
    """What the module of the analysed ``graph``, uncut, does otherwise in training mode than the
    user's ``forward``; "" where it does the same, and where ``forward`` refuses the example in
    training."""
    model = torch_source(graph).module
    if model is None or graph.notes:
        return ""  # the notes say what the graph does not do in training
    twin = graph.copy()
    twin.kept = twin.axes = None
    twin.scores = {}
    for value in twin.values():
        value.axes = None
    with full_float32(), torch.random.fork_rng(), torch.no_grad():
        try:
            outputs, after = _forward(model, graph, seed)
        except Exception:  # whatever forward raises, as of a batch of one
            return ""
        made = emit_module(twin)
        try:
            ours, state = _module(made, graph, seed)
        except Exception as failed:  # whatever it raises, forward does not
            return f"it stops: {first_line(failed)}"
    error = relative_error(ours, outputs) if len(ours) == len(outputs) else float("inf")
    if not error <= GRADIENT32:
        return f"its outputs differ by {error:.1e}"
    for name, t in state.items():
        if name in after and not array_error(t, after[name]) <= GRADIENT32:
            return f"{name} is another one afterwards"
    return ""


def _call(graph: Graph, seed: int) -> Any:
    source = torch_source(graph)
    return over_tensors(redraw(source.args, source.kwargs, seed), torch.clone)


def _forward(model: torch.nn.Module, graph: Graph, seed: int) -> Ran:
    """The user's forward in training mode; the model stays as it is."""
    modes = [(m, m.training) for m in model.modules()]
    state = {name: b.clone() for name, b in model.named_buffers()}
    try:
        for m, _ in modes:
            m.training = True
        with attributes_kept(model):
            args, kwargs = _call(graph, seed)
            torch.manual_seed(seed)
            made = torch.func.functional_call(model, state, args, kwargs)
    finally:
        for m, mode in modes:
            m.training = mode
    return flat_tensors(made), state


def _module(made: torch.nn.Module, graph: Graph, seed: int) -> Ran:
    made = copy.deepcopy(made).train()
    args, kwargs = _call(graph, seed)
    torch.manual_seed(seed)
    results = flat_tensors(made(*args, **kwargs))
    return results, dict(made.named_buffers())
