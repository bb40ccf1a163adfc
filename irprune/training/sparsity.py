"""Penalties computed from the coupled groups, to train a model towards channels that can go.

    graph = irprune.capture(model, (x,))
    penalty = GroupLasso(graph, model, 1e-4)
    loss = task_loss + penalty()

The groups tell which slices of which parameters belong to one channel; the penalties read the
parameters of the live model by name, so that they follow training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from irprune.criteria.places import elements, is_scale, places
from irprune.driver.pipelines import analyse
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.group import Group, Member, groups_of

__all__ = ["BatchNormScale", "GroupLasso", "Growing", "Penalty"]


@dataclass(frozen=True)
class _Place:
    """A parameter, the dimension along which a group runs, and which of its elements belong to each
    index [size, elements]."""

    parameter: nn.Parameter
    dim: int
    at: torch.Tensor


class Penalty:
    """A scalar to be added to the loss. ``graph`` is a capture of ``model``; ``strength`` scales
    the sum.

    Raises IrpruneError where the model has none of the graph's parameters, or no free group.
    """

    def __init__(self, graph: Graph, model: nn.Module, strength: float) -> None:
        if graph.axes is None:
            analyse(graph)
        self.strength = strength
        self.groups = [g for g in groups_of(graph) if not g.frozen]
        self.places: list[list[_Place]] = []
        own = dict(model.named_parameters(remove_duplicate=False))
        counted = self.counted(graph, self.groups)
        for members in counted:
            self.places.append(
                [
                    _Place(own[m.weight.name], m.dim, torch.from_numpy(elements(m.slot)))
                    for m in members
                    if m.weight.name in own
                ]
            )
        if not any(self.places):
            raise IrpruneError(
                "no free group has a parameter in this model",
                type(model).__name__,
                "give the model that was captured",
            )

    def counted(self, graph: Graph, groups: Sequence[Group]) -> list[list[Member]]:
        """The places of each group that the penalty reads."""
        found = places(graph, groups)
        return [found.get(g.axis, []) for g in groups]

    def norms(self) -> list[torch.Tensor]:
        """The squared norm of each index of each group [size], over all its places."""
        along: dict[tuple[int, int], torch.Tensor] = {}
        out = []
        for many in self.places:
            total: torch.Tensor | None = None
            for p in many:
                key = (id(p.parameter), p.dim)
                if key not in along:
                    others = [d for d in range(p.parameter.dim()) if d != p.dim]
                    square = p.parameter.square()
                    along[key] = square.sum(others) if others else square
                part = along[key][p.at.to(p.parameter.device)].sum(-1)
                total = part if total is None else total + part
            if total is not None:
                out.append(total)
        return out

    def __call__(self) -> torch.Tensor:
        raise NotImplementedError


class GroupLasso(Penalty):
    """The norm of each index over all coupled places, summed: whole channels go to zero together.

    Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016; over coupled
    places as in Fang et al., CVPR 2023. Each group is weighted by the root of the number of
    elements per index."""

    def __call__(self) -> torch.Tensor:
        terms = []
        for squares, many in zip(self.norms(), [m for m in self.places if m], strict=True):
            count = sum(
                p.at.shape[-1] * p.parameter.numel() // p.parameter.shape[p.dim] for p in many
            )
            terms.append(count**0.5 * (squares + 1e-12).sqrt().sum())
        return self.strength * torch.stack(terms).sum()


class Growing(Penalty):
    """A quadratic penalty on the indices that are to go, which grows until they hardly matter; the
    others are left alone.

    Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021. ``ratio`` of each group's
    indices, those of the least norm when ``grow`` is first called, are penalised; each call of
    ``grow`` adds ``strength``, up to ``ceiling``."""

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        strength: float,
        ratio: float = 0.5,
        ceiling: float = 1.0,
    ) -> None:
        super().__init__(graph, model, strength)
        if not 0 <= ratio < 1:
            raise IrpruneError(f"ratio is {ratio}", "Growing", "a share from 0 to below 1")
        self.ratio, self.ceiling = ratio, ceiling
        self.level = 0.0
        self.going: list[torch.Tensor] = []

    def grow(self) -> float:
        """Raise the penalty by one step; returns its level."""
        if not self.going:
            with torch.no_grad():
                for squares in self.norms():
                    mark = torch.zeros_like(squares)
                    count = min(round(self.ratio * len(squares)), len(squares) - 1)
                    mark[torch.argsort(squares, stable=True)[:count]] = 1.0
                    self.going.append(mark)
        self.level = min(self.level + self.strength, self.ceiling)
        return self.level

    def __call__(self) -> torch.Tensor:
        if not self.going:
            return self.places[0][0].parameter.new_zeros(()) if self.places[0] else torch.zeros(())
        return (
            self.level
            * torch.stack(
                [(s * g).sum() for s, g in zip(self.norms(), self.going, strict=True)]
            ).sum()
        )


class BatchNormScale(Penalty):
    """The magnitude of the scales of normalisations in free groups.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017. To
    be followed by ``importance="batch_norm_scale"``."""

    def counted(self, graph: Graph, groups: Sequence[Group]) -> list[list[Member]]:
        """The scales of normalisations alone."""
        return [[m for m in g.members if m.weight.rank == 1 and is_scale(m.weight)] for g in groups]

    def __call__(self) -> torch.Tensor:
        once = {id(p.parameter): p.parameter for many in self.places for p in many}
        return self.strength * torch.stack([p.abs().sum() for p in once.values()]).sum()
