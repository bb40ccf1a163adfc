"""Scales of fake quantisers in the user's own instance, cut with the channels that they are of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from irprune.frontend.torch.fake_quantise import fake_quantisers, quantised_weights
from irprune.frontend.torch.restore_state import evaluating
from irprune.frontend.torch.source import torch_source
from irprune.ir.graph import Graph
from irprune.run.inputs import to_device
from irprune.run.stored_tensor import module_device
from irprune.run.take import kept_indices

__all__ = ["cut_observers"]

_HELD = ("scale", "zero_point", "min_val", "max_val")


def cut_observers(
    model: nn.Module, graph: Graph, put: Callable[[nn.Module, str, torch.Tensor], None]
) -> None:
    """Cut the scales and ranges that fake quantisers of ``model`` hold for channels of a weight as
    the choice of ``graph`` cuts that weight; ``put`` puts a buffer into its module. The model is
    still whole."""
    if not fake_quantisers(model) or graph.kept is None:
        return
    source = torch_source(graph)
    args, kwargs = to_device((source.args, dict(source.kwargs)), module_device(model))
    with evaluating(model):
        found = quantised_weights(model, args, kwargs)
    by_name = {n: w for w in graph.weights.values() for n in (w.name, *w.aliases)}
    for path, (name, dim) in found.items():
        weight = by_name.get(name)
        if weight is None:
            continue
        index = kept_indices(weight, graph.kept)[dim]
        if index is None:
            continue
        if index.ndim > 1:  # another choice in each block: not of the outputs of a layer
            continue
        at = torch.from_numpy(np.ascontiguousarray(index))
        size = int(weight.shape[dim])  # type: ignore[arg-type]
        for module in model.get_submodule(path).modules():
            for own, held in list(module._buffers.items()):
                if own in _HELD and held is not None and tuple(held.shape) == (size,):
                    put(module, own, held[at.to(held.device)].clone())
