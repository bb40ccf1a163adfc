"""How far outputs are off does not depend on the units that they have."""

from __future__ import annotations

import math

import pytest
import torch
from shared import analysed
from torch import Tensor, nn

from irprune.criteria.measured import _off
from irprune.run.difference import channel_dims, divergence, is_distribution, square_off, units
from irprune.run.gradients import drawn_loss


class Detector(nn.Module):
    """Places in pixels and likelihoods side by side, [batch, 4 + classes, positions]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 16, 3, padding=1)
        self.place, self.kind = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).relu()
        both = torch.cat((100 + 100 * self.place(y), (self.kind(y) - 3).sigmoid()), 1)
        return both.flatten(2)


def test_channels_are_what_weights_make() -> None:
    assert channel_dims(analysed(Detector(), torch.randn(1, 3, 8, 8))) == [1]
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Softmax(-1))
    assert channel_dims(analysed(flat, torch.randn(1, 3, 8, 8))) == [1]
    tokens = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))
    assert channel_dims(analysed(tokens, torch.zeros(1, 5, dtype=torch.int64))) == [2]


def test_likelihoods_count_beside_pixels() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        y = Detector()(torch.randn(4, 3, 8, 8))
    lost = y.clone()
    lost[:, 4:] = 0  # every likelihood is gone, every place is right
    assert _off([lost], [y], None) < 1e-4  # one scale for all sees nothing
    assert _off([lost], [y], 1) > 0.5
    assert _off([y], [y], 1) == 0


def test_channels_of_one_scale_are_taken_together() -> None:
    y = torch.randn(64, 10) * torch.linspace(0.5, 2, 10)
    assert units(y, 1) is None and units(y, None) is None
    assert units(y * 10.0 ** torch.arange(-3, 7), 1) is not None


def test_probabilities_diverge() -> None:
    p = torch.randn(8, 5).double().softmax(-1)
    q = (p.log() + 1e-2 * torch.randn(8, 5)).softmax(-1)
    assert is_distribution(p) and not is_distribution(p * 2) and not is_distribution(p - 0.1)
    wanted = nn.functional.kl_div(q.double().log(), p.double(), reduction="batchmean")
    assert divergence([q], [p]) == pytest.approx(float(wanted), rel=1e-2)
    assert _off([q], [p], 1) == pytest.approx(float(wanted), rel=1e-2)
    other = torch.eye(5)
    assert divergence([other.roll(1, 0)], [other]) == pytest.approx(4 * math.log(2), rel=1e-6)


def test_the_loss_of_a_detector_pulls_at_places_and_likelihoods() -> None:
    torch.manual_seed(0)
    y = Detector()(torch.randn(16, 3, 8, 8)).detach().requires_grad_()
    squares = torch.zeros(10)
    for seed in range(20):
        loss = drawn_loss([y], torch.Generator().manual_seed(seed), [1])
        (g,) = torch.autograd.grad(loss, y)
        squares += g.square().mean((0, 2))
    # In units of each channel's own deviation
    pull = squares.sqrt() * y.detach().std((0, 2))
    assert pull[4:].min() > 0.02 * pull.max() and pull[:4].min() > 0.02 * pull.max()


def test_a_place_counts_in_units_of_what_varies_there() -> None:
    torch.manual_seed(0)
    lies = torch.arange(0.0, 3200.0, 100.0)  # where the positions lie
    place = lies + 5 * torch.randn(8, 1, 32)
    y = torch.cat([place, torch.rand(8, 3, 32)], 1)
    unit = units(y, 1)
    assert unit is not None and 4 < float(unit[0, 0, 0]) < 6  # not the 1,800 of where they lie
    moved = y.clone()
    moved[:, 0] += 5
    off, power = square_off(moved, y, unit, 1)
    assert 0.2 < off / power < 5  # an object's size away is all of it
