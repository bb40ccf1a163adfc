"""Sinks: inputs of a layer that make a massive activation at a few positions.

In trained decoders a few hidden units are huge at the first token and small at all others; the
attention of later layers rests on what they give (Sun et al., "Massive Activations in Large
Language Models", COLM 2024). By their mean they look like others, and one of them gone, or its
weights changed by a refit that sees mostly other positions, destroys the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irprune.criteria.readings import Reading

if TYPE_CHECKING:
    import torch

__all__ = ["sinks_of"]

MASSIVE = 1e3  # times the median contribution of the inputs, each at its highest
SPARSE = 0.05  # of the highest square is the mean square at most: the energy is at few positions
MOST = 16  # of a layer's inputs: more are no exception


def sinks_of(reading: Reading) -> torch.Tensor:
    """Which inputs [b, k] of a layer are sinks."""
    import torch

    weight = reading.weight.square().sum(-1)
    peak = reading.peak
    highest = peak * weight
    usual = highest.median() if highest.numel() else torch.zeros(())
    found = (highest > MASSIVE * usual) & (reading.square < SPARSE * peak)
    none = torch.zeros_like(found)
    return found if 0 < int(found.sum()) <= MOST else none
