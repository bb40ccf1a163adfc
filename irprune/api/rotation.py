"""What became of the streams that were put into the basis of their principal components, and the
scale of the norms over what is left of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from irprune.base.tolerance import FLOAT32
from irprune.frontend.torch.basis import in_basis
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.run.statistics import load_as, store

__all__ = ["RotatedWidth", "Rotation", "keep_scale"]


@dataclass(frozen=True)
class RotatedWidth:
    """A width in the basis of its principal components.

    Args:
        name: The group.
        size: How wide it was.
        kept: How many components are left.
        energy: Their share of the mean square of what the norms give.
    """

    name: str
    size: int
    kept: int
    energy: float


@dataclass
class Rotation:
    """What became of the widths that were rotated.

    Args:
        widths: These widths.
        error: Of the model in the other basis, before anything was cut, beside the original,
            relative to its outputs.
        tolerance: What ``error`` may be.
        norms: Layer norms of the module that became root mean square norms, and their epsilons.
        tensors: The tensors of the module that hold something else.
        whole: Counts of the model as it came in, by measure.
    """

    widths: list[RotatedWidth] = field(default_factory=list)
    error: float = 0.0
    tolerance: float = FLOAT32
    norms: dict[str, float] = field(default_factory=dict, repr=False)
    tensors: tuple[str, ...] = field(default=(), repr=False)
    whole: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def scaled(self) -> bool:
        """Whether norms were scaled, since components went."""
        return any(w.kept < w.size for w in self.widths)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        widths = [
            {"name": w.name, "size": w.size, "kept": w.kept, "energy": w.energy}
            for w in self.widths
        ]
        return {"widths": widths, "error": self.error, "tolerance": self.tolerance}

    def __str__(self) -> str:
        told = ", ".join(
            f"{w.name} {w.kept} of {w.size} components, {w.energy:.1%} of the energy"
            for w in self.widths
        )
        return f"{told}; in that basis the whole model differs by {self.error:.1e}"

    @contextmanager
    def applied(self, model: torch.nn.Module, source: torch.nn.Module) -> Iterator[None]:
        """The basis of ``source`` in the user's own instance ``model``; as it was where the rest
        fails."""
        with in_basis(model, source, dict.fromkeys(self.tensors), self.norms):
            yield

    @property
    def replaces_norms(self) -> bool:
        """Whether layer norms became root mean square norms, which no config of a class with layer
        norms can say."""
        return bool(self.norms)

    def alone(self) -> Rotation:
        """The same of another cut: of its widths nothing is said yet."""
        return replace(self, widths=[])

    def before(self, name: str, count: int) -> int:
        """The count of a measure before: that of the model as it came in, whose embeddings may
        have been tied."""
        return int(self.whole.get(name, count))


def keep_scale(graph: Graph, cut: Graph, told: Rotation) -> None:
    """Scale the norms of ``cut`` over rotated widths of ``graph`` of which components went, and say
    in ``told`` what is left."""
    names = {g.axis: g for g in groups_of(graph)}
    told.widths = []
    for leaf, width in graph.rotated.items():
        size = len(width.energy)
        chosen = graph.kept.choice.get(leaf) if graph.kept is not None else None
        kept = list(range(size)) if chosen is None else [int(i) for i in chosen]
        energy = float(width.energy[kept].sum())
        told.widths.append(RotatedWidth(names[leaf].name, size, len(kept), energy))
        if len(kept) == size:
            continue
        factor = width.factor(kept)
        for name in width.scales:
            if name in cut.weights:
                weight = cut.weights[name]
                store(weight, load_as(weight) * factor)
