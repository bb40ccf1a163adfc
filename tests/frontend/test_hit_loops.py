"""Loops over what a mask hits: captured over all of it where what is not hit changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune.frontend.torch.capture import capture
from irprune.run.inputs import asserts_values


class Experts(nn.Module):
    """A mixture of four experts, of which each token goes to one."""

    def __init__(self, way: str = "row") -> None:
        super().__init__()
        self.router = nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4)
        )
        self.out, self.way = nn.Linear(8, 3), way

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        mask = nn.functional.one_hot(chosen, 4).T
        hit = (mask.sum(-1) > 0).nonzero()
        y = torch.zeros_like(x)
        for row in hit.flatten() if self.way == "flat" else hit:
            expert = int(row.item())
            (at,) = torch.where(mask[expert])
            if self.way == "skips" and at.numel() == 0:
                continue
            made = self.experts[expert](x[at]) * weight[at, None]
            y.index_add_(0, at, made)
            if self.way == "counts":
                y = y + 0.1
        return self.out(x + y)


def net(way: str) -> Experts:
    torch.manual_seed(0)
    return Experts(way).eval()


FEW = torch.randn(1, 8, generator=torch.Generator().manual_seed(1)).expand(6, 8).contiguous()
MANY = torch.randn(40, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("way", ["row", "flat", "skips"])
@pytest.mark.parametrize("example", [FEW, MANY], ids=["one expert", "all experts"])
def test_every_expert_is_in_the_module_whatever_the_example_hits(
    way: str, example: Tensor, tmp_path: Path
) -> None:
    model = net(way)
    whole = irprune.prune(model, (example,), ratio=0, calibration=False)
    for x in (FEW, MANY, MANY[:7]):
        torch.testing.assert_close(whole.module(x), model(x))
    half = irprune.prune(model, (example,), ratio=0.5, calibration=False)
    assert half.report.proof is not None and half.report.proof.passed
    assert half.report.params.left < 0.75
    assert any("loops over what a mask hits at test_hit_loops.py" in n for n in half.report.notes)
    assert not any("goes by values" in n for n in half.report.notes)
    file = half.onnx(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(file)
    for x in (FEW, MANY):
        (made,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(made), half.module(x), atol=1e-4, rtol=1e-4)


def test_a_loop_that_counts_goes_as_the_example_does() -> None:
    """Each element that is hit adds a constant: going over all of them is another model."""
    model = net("counts")
    graph = capture(model, (FEW,))
    assert asserts_values(graph)
    pruned = irprune.prune(model, (FEW,), ratio=0, calibration=False)
    torch.testing.assert_close(pruned.module(FEW), model(FEW))
    with pytest.raises(ValueError, match=r"goes by values at test_hit_loops\.py"):
        pruned.module(MANY)


def test_rows_that_values_count_are_not_fitted_to_others() -> None:
    data = [(torch.randn(40, 8, generator=torch.Generator().manual_seed(k)),) for k in range(9)]
    model = net("row")
    pruned = irprune.prune(model, (MANY,), ratio=0.5, calibration=data, repair="least_squares")
    assert "8 layers get as many rows as the values before them say" in str(pruned.report)


class Read(nn.Module):
    """Goes by values that a tensor holds which is made without any and then written to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_empty(x.shape[0], 6)
        h[:, :3], h[:, 3:] = x[:, 3:], x[:, :3]
        return self.b(self.a(h[(h[:, 0] > -9).nonzero()[:, 0]]).relu())


def test_memory_that_is_written_to_before_it_is_read_is_no_chance() -> None:
    torch.manual_seed(0)
    pruned = irprune.prune(Read().eval(), (torch.randn(5, 6),), ratio=0.5)
    proof: Any = pruned.report.proof
    assert proof.passed and proof.second_pass.judged == 1.0


def test_a_layer_that_is_converted_to_its_own_type_keeps_its_gradient() -> None:
    class Converts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.a = self.a.to(x.dtype)
            return self.b(self.a(x).relu())

    torch.manual_seed(0)
    pruned = irprune.prune(Converts().eval(), (torch.randn(5, 6),), ratio=0.5)
    proof: Any = pruned.report.proof
    assert proof.passed and not any("gradients are not those" in n for n in proof.notes)
    pruned.module(torch.randn(5, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in pruned.module.parameters())


def test_what_is_assigned_may_be_of_one_row() -> None:
    """Whether rows are one, torch asks for its own sake."""

    class Fills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            h = torch.zeros(x.shape[0], 12)
            rows = self.a(x)[mask.nonzero()[:, 0]]
            h[: rows.size(0)] = rows
            return self.b(h)

    torch.manual_seed(0)
    model, x = Fills().eval(), torch.randn(5, 6)
    whole = irprune.prune(model, (x, torch.tensor([1, 1, 0, 1, 0])), ratio=0)
    for mask in (torch.tensor([0, 1, 0, 0, 0]), torch.ones(5).long()):
        torch.testing.assert_close(whole.module(x, mask), model(x, mask))
