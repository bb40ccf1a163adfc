"""The state of an optimizer, carried over a cut: momenta and the like are cut as their parameters
are, so that training goes on where it was."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from irprune.errors import IrpruneError
from irprune.ir.graph import Weight
from irprune.run.take import kept_indices, take

if TYPE_CHECKING:
    from irprune.api.pruned import Pruned

__all__ = ["carry_optimizer"]


def carry_optimizer(
    pruned: Pruned,
    optimizer: torch.optim.Optimizer,
    before: nn.Module | dict[str, nn.Parameter],
    after: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """An optimizer of the same kind and settings for the pruned parameters, whose state is what the
    cut leaves of the old one's.

    Args:
        pruned: The cut.
        optimizer: What the parameters of ``before`` were trained by.
        before: The module that was pruned; its parameters by name, where it was cut itself since
            (``dict(model.named_parameters())`` before ``apply_to``). Not a wrapper around it.
        after: The module that is trained on: ``pruned.module``, or what was made of it, such as the
            same module after ``fully_shard``. Default: ``pruned.module``.

    Returns:
        The new optimizer. Parameters that the pruned module lacks are left out.

    Raises:
        IrpruneError: For an optimizer of other parameters, and for a state that is not laid out as
            its parameter.
    """
    old = dict(before.named_parameters()) if isinstance(before, nn.Module) else before
    new = dict((pruned.module if after is None else after).named_parameters())
    names = {id(p): name for name, p in old.items()}
    cut = {n: w for w in pruned.graph.weights.values() for n in (w.name, *w.aliases)}
    pairs: list[tuple[Any, nn.Parameter, str]] = []
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        own = []
        for p in group["params"]:
            name = names.get(id(p))
            if name is None:
                raise IrpruneError(
                    f"the optimizer holds a parameter of shape {list(p.shape)} that the module lacks",
                    type(optimizer).__name__,
                    "give the module that was trained, without a wrapper around it",
                )
            if name in new:
                pairs.append((p, new[name], name))
                own.append(new[name])
        groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": own})
    made = _like(optimizer, groups)
    for p, q, name in pairs:
        if p in optimizer.state:
            made.state[q] = {
                key: _carried(value, p, q, cut.get(name), pruned, f"{name}: {key}")
                for key, value in optimizer.state[p].items()
            }
    return made


def _like(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """An optimizer of the same class over ``groups``."""
    takes = inspect.signature(type(optimizer).__init__).parameters
    defaults = {k: v for k, v in optimizer.defaults.items() if k in takes}
    return type(optimizer)(groups, **defaults)


def _carried(
    value: Any, p: torch.Tensor, q: torch.Tensor, weight: Weight | None, pruned: Pruned, where: str
) -> Any:
    """What the cut leaves of an entry of the state of ``p``, for ``q``."""
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if value.dim() == 0 and p.dim():
        return value.clone()
    kept = pruned.graph.kept
    if weight is not None and kept is not None and value.shape == p.shape:
        value = take(value, kept_indices(weight, kept))
    if value.shape != q.shape:
        raise IrpruneError(
            f"the state of shape {list(value.shape)} cannot be cut as its parameter is",
            where,
            "make a new optimizer",
        )
    value = value.to(q.device, copy=True)
    return (
        distribute_tensor(value, q.device_mesh, q.placements) if isinstance(q, DTensor) else value
    )
