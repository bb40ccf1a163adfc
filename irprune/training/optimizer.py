"""The state of an optimizer, carried over a cut: momenta and the like are cut as their parameters
are, so that training goes on where it was."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from irprune.errors import IrpruneError
from irprune.ir.graph import Weight
from irprune.run.take import kept_indices, take

if TYPE_CHECKING:
    from irprune.api.pruned import Pruned

__all__ = ["OptimizerState", "StepOptimizer", "carry_optimizer", "step_optimizer"]

Settings = dict[str, bool | int | float | str | list[float] | None]


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer has learned, by the names of parameters.

    Args:
        settings: Those of each group, as far as they are plain values.
        values: Of each parameter its entries: tensors and numbers.
        shapes: The shape of each parameter.
    """

    settings: list[Settings]
    values: dict[str, dict[str, Any]]
    shapes: dict[str, torch.Size]


class StepOptimizer:
    """The optimizer of one step of a schedule.

    Args:
        before: The state of the optimizer of the step before; None where there was none.
    """

    def __init__(self, before: OptimizerState | None) -> None:
        self.before = before
        self._made: torch.optim.Optimizer | None = None
        self._names: dict[int, str] = {}

    def begin(self, pruned: Pruned) -> None:
        """Let ``step_optimizer`` find this step by ``pruned``."""
        _STEPS[pruned] = self

    def take(self, optimizer: torch.optim.Optimizer, names: dict[int, str]) -> None:
        """``optimizer`` trains the parameters with these names, by their identity."""
        self._made, self._names = optimizer, names

    def state(self) -> OptimizerState | None:
        """What the optimizer has learned; None where there is none."""
        if self._made is None:
            return None
        values, shapes = {}, {}
        for p, entries in self._made.state.items():
            name = self._names[id(p)]
            values[name], shapes[name] = dict(entries), p.shape
        settings = [
            {k: _plain(v) for k, v in group.items() if k != "params" and _is_plain(v)}
            for group in self._made.param_groups
        ]
        return OptimizerState(settings, values, shapes)


_STEPS: WeakKeyDictionary[Pruned, StepOptimizer] = WeakKeyDictionary()


def step_optimizer(
    pruned: Pruned,
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    module: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a step of ``irprune.schedule``, which goes on from that of the step before:
    its momenta and the like are cut as their parameters were. A schedule with a checkpoint keeps
    its state there, and a run that goes on from it does so here too, on any number of ranks.

    Args:
        pruned: The step.
        make: Makes an optimizer of parameters, as ``lambda p: torch.optim.AdamW(p, 1e-3)``.
        module: What is trained: ``pruned.module``, or it after ``fully_shard``. Default:
            ``pruned.module``.

    Returns:
        The optimizer. Settings that were changed since it was made, such as the learning rate, stay
        changed.

    Raises:
        IrpruneError: For what is no step of a schedule, for an optimizer of other parameters, and
            for a state that is not laid out as its parameter.
    """
    step = _STEPS.get(pruned)
    if step is None:
        raise IrpruneError(
            "this is no step of a schedule",
            "step_optimizer",
            "give what irprune.schedule yields; irprune.carry_optimizer carries one over any cut",
        )
    named = dict((pruned.module if module is None else module).named_parameters())
    names = {id(p): name for name, p in named.items()}
    made = make(list(named.values()))
    for p in (p for group in made.param_groups for p in group["params"]):
        if id(p) not in names:
            raise _foreign(p, made)
    step.take(made, names)
    before = step.before
    if before is None:
        return made
    if len(before.settings) == len(made.param_groups):
        for group, settings in zip(made.param_groups, before.settings, strict=True):
            group.update({k: _like_before(group.get(k), v) for k, v in settings.items()})
    weights = {n: w for w in pruned.graph.weights.values() for n in (w.name, *w.aliases)}
    for name, entries in before.values.items():
        if name in named:
            shape, q, weight = before.shapes[name], named[name], weights.get(name)
            made.state[q] = {
                key: _carried(value, shape, q, weight, pruned, f"{name}: {key}")
                for key, value in entries.items()
            }
    return made


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str)) or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 1


def _plain(value: Any) -> Any:
    """What a file of JSON can say."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, torch.Tensor) else value


def _like_before(own: Any, value: Any) -> Any:
    """``value`` as the kind of thing that ``own`` is."""
    if isinstance(own, torch.Tensor):
        return torch.full_like(own, value)
    return tuple(value) if isinstance(own, tuple) else value


def _foreign(p: torch.Tensor, optimizer: torch.optim.Optimizer) -> IrpruneError:
    return IrpruneError(
        f"the optimizer holds a parameter of shape {list(p.shape)} that the module lacks",
        type(optimizer).__name__,
        "give the module that was trained, without a wrapper around it",
    )


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
                raise _foreign(p, optimizer)
            if name in new:
                pairs.append((p, new[name], name))
                own.append(new[name])
        groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": own})
    made = _like(optimizer, groups)
    for p, q, name in pairs:
        if p in optimizer.state:
            made.state[q] = {
                key: _carried(value, p.shape, q, cut.get(name), pruned, f"{name}: {key}")
                for key, value in optimizer.state[p].items()
            }
    return made


def _like(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """An optimizer of the same class over ``groups``."""
    takes = inspect.signature(type(optimizer).__init__).parameters
    defaults = {k: v for k, v in optimizer.defaults.items() if k in takes}
    return type(optimizer)(groups, **defaults)


def _carried(
    value: Any,
    shape: torch.Size,
    q: torch.Tensor,
    weight: Weight | None,
    pruned: Pruned,
    where: str,
) -> Any:
    """What the cut leaves of an entry of the state of a parameter of ``shape``, for ``q``."""
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if value.dim() == 0 and shape:
        return value.clone()
    kept = pruned.graph.kept
    if weight is not None and kept is not None and value.shape == shape:
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
