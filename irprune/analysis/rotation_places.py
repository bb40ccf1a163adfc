"""What a rotation of a width does to a graph, place by place: what
``irprune.analysis.rotatable`` finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from irprune.analysis.layers import Layer
from irprune.ir.axis import Axis
from irprune.ir.graph import Node, Weight
from irprune.ir.group import Group

__all__ = ["STREAM", "Centring", "Frame", "Norm", "Place", "Reader", "Rotatable"]


@dataclass(frozen=True)
class Frame:
    """How a value in the model's own basis relates to the same in another one: ``value = scale *
    (turned value) + shift``. ``centred`` says that a layer norm made it."""

    scale: Weight | None = None
    shift: Weight | None = None
    centred: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is the stream itself: nothing is scaled or shifted."""
        return self.scale is None and self.shift is None


STREAM = Frame()


@dataclass(frozen=True)
class Place:
    """What a rotation does to dimension ``dim`` of ``weight``, operand ``at`` of ``node``.

    ``kind`` is ``written`` (a table, or a layer or vector that makes what is in the width),
    ``read`` (a layer that sums over it; ``frame`` is that of what it reads), ``scale`` or ``shift``
    (of a norm: 1 and 0 from then on), or ``bias`` (of ``layer``, that takes the shift of what it
    reads)."""

    kind: Literal["written", "read", "scale", "shift", "bias"]
    weight: Weight
    node: Node
    at: int
    dim: int
    frame: Frame = STREAM
    layer: Layer | None = None

    @property
    def signature(self) -> tuple[Any, ...]:
        """What places of one weight must have in common for it to stay one."""
        return self.kind, self.dim, self.frame


@dataclass(frozen=True)
class Reader:
    """What sums over the width: operand ``at`` of ``node``, whose values are in ``frame``, times
    the matrix of ``layer``; None where the matrix comes through a view."""

    node: Node
    at: int
    frame: Frame
    layer: Layer | None = None


@dataclass(frozen=True)
class Norm:
    """A layer norm ``node`` that becomes a root mean square norm; ``scale`` is its operand's
    weight."""

    node: Node
    scale: Weight | None
    shift: Weight | None
    eps: float


@dataclass(frozen=True)
class Centring:
    """A subtraction ``node`` of the mean that ``mean`` takes over the width from its operand
    ``at``: nothing is left to subtract once the mean has gone out of all that writes."""

    node: Node
    at: int
    mean: Node


@dataclass
class Rotatable:
    """A width that may be turned: the ``leaf`` of ``group``, and what that does to weights.

    ``places`` are the weights that have the width, ``readers`` what sums over it, ``norms`` the
    layer norms that become others, ``unbiased`` the readers that get a bias, ``centrings`` the
    subtractions of means in layer norms that are written out."""

    group: Group
    places: list[Place] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    unbiased: list[tuple[Layer, Frame]] = field(default_factory=list)
    centrings: list[Centring] = field(default_factory=list)
    centred: bool = False

    @property
    def leaf(self) -> Axis:
        """The width."""
        return self.group.axis

    @property
    def size(self) -> int:
        """How wide it is."""
        return self.group.size

    @property
    def scales(self) -> list[Weight]:
        """The scales of the norms that read it, each once."""
        return list(dict.fromkeys(p.weight for p in self.places if p.kind == "scale"))
