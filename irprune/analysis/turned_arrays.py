"""What weights hold in another basis of a width (``irprune.analysis.rotatable``): tables and
matrices turned, scales of norms multiplied into what reads them, shifts put into biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from irprune.analysis.layers import Layer
from irprune.analysis.rotation_places import Frame, Place, Rotatable
from irprune.ir.graph import Node, Weight

__all__ = ["Use", "bias_of", "turned_array", "uses_of"]

Load = Callable[[Weight], torch.Tensor]  # the numbers of a weight, in float64
Use = tuple[Node, int]  # a node, and which of its operands


def uses_of(made: Rotatable) -> dict[Weight, dict[Use, list[Place]]]:
    """The places of each weight, by the use that they are of."""
    out: dict[Weight, dict[Use, list[Place]]] = {}
    for place in made.places:
        mine = out.setdefault(place.weight, {}).setdefault((place.node, place.at), [])
        if all(place.signature != other.signature for other in mine):
            mine.append(place)
    return out


def turned_array(
    made: Rotatable, places: Sequence[Place], basis: torch.Tensor, load: Load
) -> torch.Tensor:
    """The weight of ``places``, those of one use of it, in the basis whose vectors are the columns
    of ``basis`` [d, d]; in float64."""
    x = load(places[0].weight)
    for p in places:
        if p.kind == "bias":
            assert p.layer is not None and p.layer.bias is not None
            x = x + p.layer.bias.sign * bias_of(p.layer, p.frame, load).reshape(x.shape)
    for p in places:
        if p.kind in ("scale", "shift"):
            return torch.ones_like(x) if p.kind == "scale" else torch.zeros_like(x)
        if p.kind == "read":
            if p.frame.scale is not None:
                x = x * _along(load(p.frame.scale), x.dim(), p.dim)
        elif p.kind == "written" and made.centred:
            x = x - x.mean(p.dim, keepdim=True)
    for p in places:
        if p.kind in ("read", "written"):
            x = (x.movedim(p.dim, -1) @ basis).movedim(-1, p.dim)
    return x


def bias_of(layer: Layer, frame: Frame, load: Load) -> torch.Tensor:
    """What ``layer`` makes of the shift of what it reads: a vector over its outputs."""
    assert frame.shift is not None
    shift = load(frame.shift).reshape(-1)
    return (layer.matrix(load(layer.weight)) * shift[None, :, None]).sum(1).reshape(-1)


def _along(vector: torch.Tensor, rank: int, dim: int) -> torch.Tensor:
    shape = [1] * rank
    shape[dim] = -1
    return vector.reshape(shape)
