"""Inputs made from stored statistics: they meet them, and only learned ones count."""

from __future__ import annotations

import numpy as np
import torch
from shared import analysed
from torch import nn

import irprune
from irprune.ir.graph import Graph
from irprune.run.calibration import Calibration
from irprune.run.contradiction import contradiction
from irprune.run.interpret import evaluate
from irprune.run.noise import noise
from irprune.run.norm_statistics import stored
from irprune.run.synthetic import WORK, Effort, planned, synthetic


def learned(seed: int = 0) -> nn.Module:
    """Two convolutions with batch norms that have seen data of correlated channels and pixels."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    mix = torch.randn(3, 3)
    for _ in range(8):
        coarse = torch.randn(32, 3, 3, 3)
        fine = nn.functional.interpolate(coarse, size=12, mode="bilinear")
        model(torch.einsum("nchw,cd->ndhw", fine, mix) + 2)
    return model.eval()


def off(graph: Graph, data: Calibration) -> float:
    """The mean distance of the activations from what is stored, in stored deviations."""
    found = []
    for known in stored(graph):
        (x,) = (
            torch.cat(rows)
            for rows in zip(
                *(evaluate(graph, b.inputs, wanted=[known.node.operand(0)]) for b in data),
                strict=True,
            )
        )
        mean, deviation = x.mean((0, 2, 3)).numpy(), x.std((0, 2, 3)).numpy()
        spread = np.sqrt(known.variance)
        found += [np.abs(mean - known.mean) / spread, np.abs(deviation / spread - 1)]
    return float(np.concatenate(found).mean())


def test_inputs_meet_the_statistics_that_noise_misses() -> None:
    graph = analysed(learned(), torch.randn(2, 3, 12, 12))
    made = synthetic(graph, [(2, 3, 12, 12)], Effort(64, 60), stored(graph))
    assert made.count() == 64
    assert off(graph, made) < 0.1 < 0.4 < off(graph, noise(graph, 64))


def test_without_steps_inputs_are_smooth_noise_and_the_same_for_a_seed() -> None:
    graph = analysed(learned(), torch.randn(2, 3, 12, 12))
    first, again, other = (
        next(iter(synthetic(graph, [(2, 3, 12, 12)], Effort(16, 0), seed=s))).inputs[0]
        for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    beside = (first[..., 1:] * first[..., :-1]).mean() / first.square().mean()
    assert beside > 0.5  # neighbours are alike, as in pictures


def test_statistics_that_a_layer_is_made_with_do_not_count() -> None:
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    assert not stored(analysed(fresh, torch.randn(1, 3, 9, 9)))
    assert len(stored(analysed(learned(), torch.randn(1, 3, 12, 12)))) == 2


def test_tokens_are_as_frequent_as_their_place_in_the_vocabulary() -> None:
    model = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    graph = analysed(model, torch.zeros(2, 32, dtype=torch.int64))
    (ids,) = next(iter(synthetic(graph, [(2, 32)], Effort(64, 0)))).inputs
    assert ids.min() >= 0 and ids.max() < 1000
    assert (ids < 32).float().mean() > 0.4  # half of all ranks on a logarithmic scale


def test_values_lie_within_a_range_that_is_known() -> None:
    graph = analysed(learned(), torch.randn(2, 3, 12, 12))
    made = synthetic(graph, [(2, 3, 12, 12)], Effort(8, 10), stored(graph), within=(0.0, 1.0))
    x = next(iter(made)).inputs[0]
    assert 0 <= x.min() < 0.2 and 0.8 < x.max() <= 1


def test_work_is_bounded() -> None:
    small, large = planned(1e6, [(1, 3, 32, 32)]), planned(4e9, [(1, 3, 224, 224)])
    assert small.samples == 256 and small.steps == 100
    assert large.samples < 32 and 3 * large.samples * large.steps * 4e9 <= WORK
    assert planned(1e12, [(1, 3, 224, 224)]).steps == 0


def test_data_that_batch_norms_have_not_seen_are_told() -> None:
    model = learned()
    graph = analysed(model, torch.randn(2, 3, 12, 12))
    torch.manual_seed(0)
    coarse = torch.randn(64, 3, 3, 3)
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(5))
    fine = nn.functional.interpolate(coarse, size=12, mode="bilinear")
    seen = torch.einsum("nchw,cd->ndhw", fine, mix) + 2
    known = stored(graph)
    assert contradiction(graph, Calibration(seen, graph), known) == ""
    for wrong in (seen * 50, seen / 100 - 3, seen + 30):
        assert "check the preprocessing" in contradiction(graph, Calibration(wrong, graph), known)
    assert contradiction(graph, Calibration(seen * 50, graph), []) == ""


def test_a_prune_with_wrong_data_says_so() -> None:
    said: list[str] = []
    wrong = 255 * torch.rand(32, 3, 12, 12)
    pruned = irprune.prune(
        learned(), (wrong[:1],), ratio=0.5, calibration=wrong, progress=said.append, proof=False
    )
    assert "check the preprocessing" in pruned.report.notes[-1]
    assert any(line.startswith("warning: the calibration data") for line in said)


def test_a_file_that_names_its_number_of_samples_gets_that_many() -> None:
    from irprune.testing.works import made_file

    report = irprune.prune(made_file(False), proof=False).report
    assert any(note.startswith("calibrated on") for note in report.notes)
