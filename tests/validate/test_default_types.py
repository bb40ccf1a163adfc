"""Forwards that compute with numbers of their own, in torch's default type: that is float32 also
where the proof runs the rest in float64, and no difference of the cut."""

import pytest
import torch
from torch import nn

import irprune
from irprune.validate import proof


class Own(nn.Module):
    def __init__(self, own):
        super().__init__()
        self.first, self.last, self.own = nn.Linear(8, 12), nn.Linear(12, 4), own

    def forward(self, x):
        return self.last(self.own(self.first(x)))


KINDS = {
    "of arange": lambda y: y * torch.arange(1.0, 2.0).cos(),
    "of whole numbers": lambda y: y * (1 / 10000.0 ** (torch.arange(2, 4) / 7)).sum(),
    "of a literal": lambda y: y * torch.tensor([[0.1]]).exp(),
    "of zeros": lambda y: y * torch.sigmoid(torch.zeros(1) + 0.3),
    "of a size": lambda y: y * torch.scalar_tensor(y.shape[1] / 7).sqrt(),
    "complex": lambda y: y * torch.polar(torch.ones(1), torch.arange(1.0, 2.0)).real,
    "exact": lambda y: y * torch.ones(1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_forward_itself_are_no_difference(kind):
    torch.manual_seed(0)
    pruned = irprune.prune(Own(KINDS[kind]), torch.randn(2, 8), ratio=0.5)
    assert pruned.report.proof.passed


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_are_in_is_told_by_the_graph(kind):
    graph = irprune.prune(Own(KINDS[kind]), torch.randn(2, 8), ratio=0.5, proof=False).graph
    assert proof.named_types(graph) == (set() if kind == "exact" else {"f32"})
