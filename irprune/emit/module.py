"""From a graph to an ``nn.Module``: the emitted source, instantiated and filled with the graph's weights."""

from __future__ import annotations

import itertools
import linecache
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from irprune.emit.source import Source, write
from irprune.ir.graph import Graph

__all__ = ["build", "emit_module"]

_COUNT = itertools.count()


def build(source: Source) -> nn.Module:
    """The module of ``source`` with its weights loaded; takes and returns flat tensors."""
    file = f"<irprune-{next(_COUNT)}>"
    linecache.cache[file] = (len(source.text), None, source.text.splitlines(True), file)
    space: dict[str, Any] = {"__name__": "irprune.emitted"}
    exec(compile(source.text, file, "exec"), space)  # noqa: S102 - the text is our own
    with torch.device("meta"):
        module: nn.Module = space["Model"]()
    state = {name: torch.as_tensor(w.load()).detach() for name, w in source.weights.items()}
    trainable = {name: w.trainable for name, w in source.weights.items()}
    for name, buffer in list(module.named_buffers()):
        if name not in state:  # num_batches_tracked
            state[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    module.load_state_dict(state | {alias: state[name] for alias, name in source.ties.items()}, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trainable.get(name, True) and parameter.is_floating_point())
    return module


class Pruned(nn.Module):
    pass


def emit_module(graph: Graph) -> nn.Module:
    """An ``nn.Module`` with the call signature of the captured model."""
    source = write(graph)
    module = build(source)
    structure = graph.structure
    flat = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves = pytree.arg_tree_leaves(*args, **kwargs)
        tensors = [leaf for leaf, place in zip(leaves, structure.inputs, strict=True) if isinstance(place, int)]
        made = flat(*tensors)
        results = [made[p] if isinstance(p, int) else p[0] for p in structure.outputs]
        return pytree.tree_unflatten(results, structure.out_spec)

    module.forward = forward  # type: ignore[method-assign]
    return module.eval()
