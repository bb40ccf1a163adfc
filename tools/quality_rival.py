"""Torch-Pruning on the same nets at the same multiply-accumulates, with the settings of its own
examples."""

from __future__ import annotations

import copy
from typing import Any

import torch
from quality_nets import Attention
from torch import nn
from torch.nn import functional as F

import irprune
from irprune.analysis.cost import Costs

__all__ = ["macs_of", "torch_pruning"]


def macs_of(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-accumulates by the same counter for both sides."""
    graph = irprune.capture(model, (x,))
    irprune.groups(graph)
    return Costs(graph).at({}).macs


def torch_pruning(
    model: nn.Module, x: torch.Tensor, labels: torch.Tensor, importance: str, left: float
) -> nn.Module:
    """``model`` globally pruned to at most ``left`` of its MACs: the largest net that a search over
    its ratio finds.

    ``importance``: ``magnitude`` or ``taylor`` (with true labels). It is told the head, the
    attention heads and nothing else."""
    whole = macs_of(model, x[:1])
    low, high, best = 0.0, 0.98, None
    for _ in range(9):
        ratio = (low + high) / 2
        try:
            made = _pruned(model, x, labels, importance, ratio)
            fits = macs_of(made, x[:1]) <= left * whole
        except (RuntimeError, ValueError, irprune.IrpruneError):
            made, fits = None, False  # a net that does not run any more; a smaller one may
            low = ratio
            continue
        if fits:
            best, high = made, ratio
        else:
            low = ratio
    if best is None:
        raise RuntimeError(f"Torch-Pruning reaches no net of {left} of the MACs that runs")
    return best


def _pruned(
    model: nn.Module, x: torch.Tensor, labels: torch.Tensor, importance: str, ratio: float
) -> nn.Module:
    import torch_pruning as tp  # type: ignore[import-untyped]

    made = copy.deepcopy(model).eval()
    heads = {m.qkv: m.heads for m in made.modules() if isinstance(m, Attention)}
    kinds: dict[str, Any] = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }
    # Dimension that its guess misses
    parameters = {p: 1 for n, p in made.named_parameters() if n == "place"}
    pruner = tp.pruner.BasePruner(
        made,
        x[:2],
        importance=kinds[importance](),
        pruning_ratio=ratio,
        global_pruning=True,
        max_pruning_ratio=0.95,
        ignored_layers=[made.head],
        num_heads=heads,
        unwrapped_parameters=[(p, 2) for p in parameters],
    )
    if importance == "taylor":
        made.zero_grad()
        F.cross_entropy(made(x), labels).backward()  # type: ignore[no-untyped-call]
    pruner.step()
    for p in made.parameters():
        p.grad = None
    with torch.no_grad():
        made(x[:2])
    return made
