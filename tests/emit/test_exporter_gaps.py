"""Operators that torch's exporter has no function for, or one that is right at one size alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irprune

Between = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A convolution, ``between``, whose result is averaged, and a linear layer."""

    def __init__(self, between: Between, dims: int) -> None:
        super().__init__()
        kind: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.a, self.b = kind(3, 12, 3, padding=1), nn.Linear(12, 4)
        self.real, self.imaginary = (nn.Parameter(torch.randn(12, 10) / 3) for _ in range(2))
        self.wide = nn.Linear(10, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.between(self, self.a(x)).flatten(2).mean(2)
        return self.b(h) if h.shape[1] != 10 else self.wide(h)


def pooled(kind: str, dims: int, size: Any) -> Between:
    pool = getattr(F, f"adaptive_{kind}_pool{dims}d")
    return lambda net, h: pool(h, size)


def einsum(net: Net, h: Tensor) -> Tensor:
    w = torch.complex(net.real, net.imaginary)
    return torch.einsum("bcl,cd->bdl", torch.fft.rfft(h), w).abs()


def distances(p: float) -> Between:
    def between(net: Net, h: Tensor) -> Tensor:
        return torch.cdist(h.transpose(1, 2), net.real.T, p).transpose(1, 2) / 4

    return between


def own_kernels(net: Net, h: Tensor) -> Tensor:
    """Each element of the batch is convolved with a kernel of its own, as in StyleGAN 2."""
    kernels = (h.mean(2)[:, None, :] * net.real.T).reshape(-1, 12, 1)
    made = F.conv1d(h.reshape(1, -1, h.shape[2]), kernels, groups=h.shape[0])
    return made.reshape(h.shape[0], 10, h.shape[2])


def scattered(how: str, whole: bool) -> Between:
    """Places are reduced to thirds of the length, of which some get nothing."""

    def between(net: Net, h: Tensor) -> Tensor:
        at = (torch.arange(h.shape[2]) % 3 * 2).expand_as(h)
        return torch.scatter_reduce(h, 2, at, h.flip(2), how, include_self=whole)

    return between


def odd_size(net: Net, h: Tensor) -> Tensor:
    f = torch.fft.rfft(h, norm="ortho") * torch.complex(h.mean(), h.std())
    return torch.fft.irfft(f, n=h.shape[2], norm="ortho")


def centres(net: Net, h: Tensor) -> Tensor:
    """What stands at the largest values of all rows and columns, by the column alone."""
    best = h.mean(1).flatten(1).topk(4).indices % h.shape[3]
    return h.mean(2).gather(2, best[:, None].expand(-1, h.shape[1], -1))


CASES: dict[str, tuple[Between, int]] = {
    **{
        f"scatter_reduce, {how}{', itself too' if whole else ''}": (scattered(how, whole), 1)
        for how in ("sum", "mean", "prod", "amax", "amin")
        for whole in (False, True)
    },
    "irfft": (lambda net, h: torch.fft.irfft(torch.fft.rfft(h)), 1),
    "irfft of a size": (odd_size, 1),
    "remainder of a size": (centres, 2),
    **{f"cdist, p={p}": (distances(p), 1) for p in (0.0, 1.0, 1.5, 2.0, float("inf"))},
    "max 1": (pooled("max", 1, 5), 1),
    "max 2": (pooled("max", 2, (3, 5)), 2),
    "max 2, whole": (pooled("max", 2, 1), 2),
    "max 3": (pooled("max", 3, (2, 3, 5)), 3),
    "average 1": (pooled("avg", 1, 5), 1),
    "average 2": (pooled("avg", 2, (3, 5)), 2),
    "average 2, whole": (pooled("avg", 2, 1), 2),
    "average 3": (pooled("avg", 3, (2, 3, 5)), 3),
    "more bins than places": (pooled("avg", 2, (20, 13)), 2),
    "lgamma": (lambda net, h: torch.lgamma(3 * h + 0.01), 2),
    "digamma": (lambda net, h: torch.digamma(h.abs() + 0.1), 2),
    "complex einsum": (einsum, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_the_file_is_right_at_every_size(name: str, tmp_path: Path) -> None:
    between, dims = CASES[name]
    torch.manual_seed(0)
    sides = (11, 13, 9)[:dims]
    pruned = irprune.prune(Net(between, dims).eval(), (torch.randn(2, 3, *sides),), ratio=0.5)
    assert pruned.report.params.left < 0.75
    session = onnxruntime.InferenceSession(pruned.onnx(tmp_path / "m.onnx"))
    (entry,) = session.get_inputs()
    assert [isinstance(s, str) for s in entry.shape] == [True, False, *[True] * dims]
    for batch, by in ((2, 0), (3, 0), (1, 4), (2, -2)):
        x = torch.randn(batch, 3, *(s + by for s in sides))
        made = session.run(None, {entry.name: x.numpy()})[0]
        expected = pruned.module(x).detach().numpy()
        np.testing.assert_allclose(made, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def test_strides_are_those_of_memory(tmp_path: Path) -> None:
    """Windows that overlap by half, as Longformer takes them, of what was transposed."""

    def windows(net: Net, h: Tensor) -> Tensor:
        x = h.transpose(0, 2)  # [length, channels, batch]
        length, channels, batch = x.shape
        step, place, row = x.stride()
        sizes, strides = (length // 2 - 1, 4, channels, batch), (2 * step, step, place, row)
        made = x.as_strided(sizes, strides).mean(1).permute(2, 1, 0)
        return made * torch.arange(made.shape[-1])

    torch.manual_seed(0)
    x = torch.randn(2, 3, 12)
    pruned = irprune.prune(Net(windows, 1).eval(), (x,), ratio=0.5)
    session = onnxruntime.InferenceSession(pruned.onnx(tmp_path / "m.onnx", parity=False))
    made = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(made, pruned.module(x).detach().numpy(), rtol=2e-5, atol=1e-5)


def test_fixed_sizes_are_written_as_constants(tmp_path: Path) -> None:
    import onnx

    model = Net(pooled("max", 2, (3, 5)), 2).eval()
    pruned = irprune.prune(model, (torch.randn(2, 3, 11, 13),), dynamic="none")
    kinds = {n.op_type for n in onnx.load(pruned.onnx(tmp_path / "m.onnx")).graph.node}
    assert "Gather" in kinds and not kinds & {"Range", "Shape"}


def test_positions_that_are_read_are_still_refused(tmp_path: Path) -> None:
    """There is no function for them: no file is better than a wrong one."""

    def between(net: Net, h: Tensor) -> Tensor:
        y, at = F.adaptive_max_pool2d(h, 3, return_indices=True)
        return y + at

    pruned = irprune.prune(Net(between, 2).eval(), (torch.randn(2, 3, 10, 10),))
    with pytest.raises(irprune.errors.IrpruneError, match="adaptive_max_pool2d"):
        pruned.onnx(tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_kernels_of_each_element_are_pruned_and_written_for_one_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Net(own_kernels, 1).eval(), torch.randn(2, 3, 9)
    pruned = irprune.prune(model, (x,), ratio=0.5)
    assert pruned.report.proof.passed and pruned.report.params.left < 0.8
    assert pruned.module(torch.randn(5, 3, 9)).shape == (5, 4)
    with pytest.raises(irprune.errors.IrpruneError, match="number of groups"):
        pruned.onnx(tmp_path / "m.onnx")
    fixed = irprune.prune(model, (x,), ratio=0.5, dynamic="none")
    assert fixed.onnx(tmp_path / "m.onnx").exists() and fixed.report.parity.passed
