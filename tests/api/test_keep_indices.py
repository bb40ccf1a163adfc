"""Cutting exactly what is listed, what torch has masked, and what is dead."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import prune as masks

import irprune
from irprune.cli import cli
from irprune.run.session import run_session, session

EXAMPLE = (torch.randn(2, 3, 12, 12),)


class Net(nn.Module):
    """A residual net with a batch norm after each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.wide, self.norm2 = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.back = nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.norm2(self.wide(x)).relu())
        return self.head(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    for norm in (made.norm, made.norm2):
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    return made.eval()


def dead_net() -> Net:
    made = net()
    with torch.no_grad():
        made.norm2.weight[:4] = 0
        made.norm2.bias[:3] = 0  # the fourth is a constant, and stays
        made.back.weight[:, 10:12] = 0
        made.wide.weight[20] = 0  # its norm has a mean and a bias: it stays
        made.stem.weight[5] = made.norm.weight[5] = made.norm.bias[5] = 0  # `back` makes it, too
    return made


def test_only_what_is_dead_goes_and_nothing_changes() -> None:
    model = dead_net()
    small = irprune.prune(model, EXAMPLE, keep_indices="dead")
    kept = small.kept["wide.weight"]
    assert kept[0] == [i for i in range(24) if i not in (0, 1, 2, 10, 11)]
    assert kept[1] is None and "head.weight" not in small.kept
    x = torch.randn(7, 3, 12, 12)
    assert torch.allclose(small.module(x), model(x), atol=1e-5)
    assert any("5 dead channels went" in note for note in small.report.notes)
    assert small.report.proof is not None and small.report.proof.passed


def test_what_a_mean_counts_is_not_dead() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)).eval()
    with torch.no_grad():
        model[2].weight[:, 4] = 0  # nothing reads it, but the norm counts it
    small = irprune.prune(model, (torch.randn(2, 6),), keep_indices="dead")
    assert small.report.cuts_nothing


def test_dead_channels_of_a_file(tmp_path: Path) -> None:
    whole = irprune.prune(dead_net(), EXAMPLE, ratio=0).onnx(tmp_path / "whole.onnx")
    small = irprune.prune(str(whole), keep_indices="dead")
    path = small.onnx(tmp_path / "small.onnx")
    assert small.report.params.left < 0.9
    x = {onnx.load(whole).graph.input[0].name: np.random.rand(2, 3, 12, 12).astype(np.float32)}
    before, after = (run_session(session(str(p), "cpu"), x) for p in (whole, path))
    for name, a in before.items():
        assert np.abs(a - after[name]).max() < 1e-5


def test_masks_of_torch_are_a_choice() -> None:
    model = net()
    masks.ln_structured(model.wide, "weight", 0.25, n=2, dim=0)
    masks.ln_structured(model.stem, "weight", 0.5, n=2, dim=0)  # `back` makes these as well
    gone = (model.wide.weight_mask.flatten(1).amax(1) == 0).nonzero().flatten().tolist()
    small = irprune.prune(model, EXAMPLE, keep_indices="masks")
    assert len(gone) == 6
    assert small.kept["wide.weight"][0] == [i for i in range(24) if i not in gone]
    assert "head.weight" not in small.kept
    assert masks.is_pruned(model) and type(small.module.wide) is nn.Conv2d
    assert not any("mask" in name for name in small.module.state_dict())


def test_masks_of_single_elements_leave_every_channel() -> None:
    model = net()
    masks.l1_unstructured(model.wide, "weight", 0.5)
    small = irprune.prune(model, EXAMPLE, keep_indices="masks")
    assert small.report.cuts_nothing
    assert "50.0% of the masked weights are zero" in " ".join(small.report.notes)
    assert torch.allclose(small.module(*EXAMPLE), model(*EXAMPLE), atol=1e-5)


def test_a_model_without_masks_is_refused() -> None:
    with pytest.raises(irprune.IrpruneError, match="no weight is masked"):
        irprune.prune(net(), EXAMPLE, keep_indices="masks")


def test_it_says_how_much_by_itself() -> None:
    with pytest.raises(irprune.IrpruneError, match="keep_indices='dead' are both given"):
        irprune.prune(net(), EXAMPLE, keep_indices="dead", ratio=0.5)


def test_the_command_line_reads_indices_and_finds_dead_channels(tmp_path: Path) -> None:
    whole = irprune.prune(dead_net(), EXAMPLE, ratio=0).onnx(tmp_path / "whole.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(whole).graph.initializer}
    name = next(n for n, a in held.items() if a.shape == (16, 24, 1, 1))
    chosen = tmp_path / "kept.json"
    chosen.write_text(json.dumps({f"{name}:1": [0, 5, 7]}))
    out = tmp_path / "small.onnx"
    call = ["prune", str(whole), "-o", str(out), "--no-bench"]
    done = CliRunner().invoke(cli, [*call, "--keep-indices", str(chosen)])
    assert done.exit_code == 0, done.output
    shapes = {tuple(t.dims) for t in onnx.load(out).graph.initializer}
    assert (16, 3, 1, 1) in shapes
    done = CliRunner().invoke(cli, [*call, "--dead"])
    assert done.exit_code == 0 and "dead channels went" in done.output
    bad = CliRunner().invoke(cli, [*call, "--keep-indices", str(tmp_path / "none.json")])
    assert isinstance(bad.exception, irprune.IrpruneError)
