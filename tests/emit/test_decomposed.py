"""Convolutions as decompositions write them (``aten.convolution``): layers like any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import irprune


@pytest.mark.filterwarnings("ignore:.*treespec")  # of torch, in run_decompositions
def test_a_decomposed_program_gets_its_layers_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, groups=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (x,)).run_decompositions()
    assert "aten.convolution.default" in str(program.graph)
    pruned = irprune.prune(program, (x,), ratio=0.5)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    small = pruned.module
    kinds = [type(m).__name__ for m in small.modules()]
    assert kinds.count("Conv2d") == 2
    assert {tuple(p.shape) for p in small.parameters() if p.dim() == 4} == {
        (4, 3, 3, 3),
        (4, 3, 2, 2),
        (4, 3, 1, 1),
    }
    assert small(x).shape == model(x).shape
