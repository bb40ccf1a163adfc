"""``irprune validate`` prepares the images of a folder as ``irprune prune`` does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import irprune
from irprune.api.declarations import OPTIONS
from irprune.cli import cli
from irprune.cli.options import IMAGES
from irprune.errors import IrpruneError

Image = pytest.importorskip("PIL.Image")
MEAN, STD = 0.8, 0.1


class Net(nn.Module):
    """Says which of two classes a picture is: brighter or darker than usual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x)).mean((1, 2, 3))
        return torch.stack((x.mean((1, 2, 3)) + 0 * y, 0 * y), 1)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str, str]:
    """A model, one that differs from it, and a folder of pictures around the usual brightness."""
    model = Net().eval()
    x = torch.randn(2, 1, 8, 8)
    one = irprune.prune(model, (x,), ratio=0).onnx(tmp_path / "a.onnx")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, level in enumerate(np.linspace(0.7, 0.9, 12)):
        pixels = np.full((8, 8), round(255 * level), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(one), str(one), str(folder)


def metric(argv: list[str]) -> dict[str, float]:
    ran = CliRunner().invoke(cli, ["validate", *argv, "--json"])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def test_pictures_are_prepared_as_the_flags_say(
    files: tuple[str, str, str], tmp_path: Path
) -> None:
    a, b, folder = files
    seen = tmp_path / "seen.npy"
    own = tmp_path / "own.py"
    own.write_text(
        "import numpy, torch\n"
        "def prepare(picture):\n"
        "    x = torch.from_numpy(numpy.asarray(picture, dtype='float32'))[None] / 255\n"
        f"    numpy.save({str(seen)!r}, x.numpy())\n"
        f"    return (x - {MEAN}) / {STD}\n"
    )
    told = ["--calibration", folder, "--metric", "cosine"]
    numbers = ["--mean", str(MEAN), "--std", str(STD), "--pixels", "0..1"]
    assert metric([a, b, *told, *numbers])["samples"] == 12
    assert metric([a, b, *told, "--preprocess", f"{own}:prepare"])["samples"] == 12
    assert seen.exists()


def test_pictures_of_unknown_preparation_are_refused(files: tuple[str, str, str]) -> None:
    a, b, folder = files
    ran = CliRunner().invoke(cli, ["validate", a, b, "--calibration", folder, "--metric", "cosine"])
    assert isinstance(ran.exception, IrpruneError)
    assert "mean" in str(ran.exception) or "preprocess" in str(ran.exception)


def test_a_preparation_without_pictures_is_refused(files: tuple[str, str, str]) -> None:
    a, b, _ = files
    ran = CliRunner().invoke(cli, ["validate", a, b, "--mean", "0.5"])
    assert isinstance(ran.exception, IrpruneError)
    assert "without a folder" in str(ran.exception)


def test_the_flags_are_those_of_prune() -> None:
    command = cli.get_command(None, "validate")  # type: ignore[arg-type]
    assert command is not None
    own = {text for p in command.params for text in p.opts}
    assert {OPTIONS[name].flags[0].name for name in IMAGES} <= own
