"""What the ranks of layers are worth: in units of what the outputs lose where there are data, so
that a knapsack can weigh them against widths.

The whitened singular values of a layer say what its result loses with each rank
(``irprune.run.low_rank``). What that means to the model is measured at a few ranks, as losses of
groups are (``irprune.criteria.measured``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from irprune.base.progress import tell
from irprune.criteria import Scores
from irprune.criteria.measured import Probe, scaled
from irprune.criteria.normalise import normalised
from irprune.criteria.readings import Readings, key_of
from irprune.ir.selection import Selection

if TYPE_CHECKING:
    import torch

    from irprune.analysis.factorable import Factorable

__all__ = ["rank_scores"]

SHARES = (1.0, 0.5, 0.125)  # of the highest useful rank, at which the outputs are compared
LEAST = 1e-12  # of the largest squared singular value: what is below it is rounding


def rank_scores(
    layers: Sequence[Factorable], readings: Readings | None, measure: bool
) -> dict[str, Scores]:
    """For each layer, by the name of its weight, what each rank is worth, the most first.

    Args:
        layers: In the order of the graph.
        readings: Of the calibration data; without them the singular values of the weights count.
        measure: Whether the outputs are compared, so that scores are losses that add up. Else they
            are singular values, as scores of widths are magnitudes, at a mean of 1.

    Returns:
        Arrays of ``Factorable.size`` numbers, of which none is above the one before.
    """
    from irprune.run.low_rank import spectrum

    out: dict[str, Scores] = {}
    if readings is None:
        for one in layers:
            energy = _energy(spectrum(one.layer.load_matrix()[0]))
            out[one.name] = normalised(np.sqrt(energy), "mean")
        return out
    order = {node: i for i, node in enumerate(readings.graph.nodes)}
    probe = Probe(readings.graph, readings, len(layers)) if measure else None
    by_name = {one.name: one for one in layers}
    for some in readings.portions({one.name: [one.layer] for one in layers}):
        read = readings.of([by_name[name].layer for name in some], products=True)
        for name in some:
            one = by_name[name]
            reading = read[key_of(one.layer)]
            gram = reading.second_moment[0] if reading.products else None
            energy = _energy(spectrum(one.layer.load_matrix()[0], gram))
            if probe is None:
                out[name] = normalised(np.sqrt(energy), "mean")
                continue
            probe.go_to(order[one.layer.node])
            out[name] = _measured(one, gram, energy, probe)
            tell("measuring ranks", len(out), len(layers))
    return out


def _energy(found: torch.Tensor) -> Scores:
    """The spectrum, with zeros where there is none but by rounding."""
    energy = found.cpu().numpy().astype(np.float64)
    return np.where(energy < LEAST * energy.max(initial=0.0), 0.0, energy)


def _measured(one: Factorable, gram: torch.Tensor | None, energy: Scores, probe: Probe) -> Scores:
    """``energy`` scaled so that the sum of what a rank leaves out is the error of the outputs."""
    from irprune.run.low_rank import factorise

    layer = one.layer
    matrix = layer.load_matrix()[0]
    errors: list[tuple[int, float]] = []
    for share in SHARES:
        gone = one.size - max(1, round(share * one.useful))
        if errors and gone <= errors[-1][0]:
            continue
        made = factorise(matrix, one.size - gone, gram).product
        operand = layer.stored.operand(layer.array(made[None]))
        errors.append((gone, probe.error(Selection({}), {layer.node: {layer.by: operand}})))
    return np.where(energy > 0, scaled(energy, errors), 0.0)
