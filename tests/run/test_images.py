"""Pictures are prepared as was said or as the model says itself, and refused where neither is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from shared import analysed
from torch import Tensor, nn

import irprune
from irprune.api.option_kinds import read_pixels, read_resize
from irprune.cli import prune as command
from irprune.errors import IrpruneError
from irprune.run.calibration import Calibration
from irprune.run.images import Folder, Preprocess, read_preprocess
from irprune.run.pixels import plain_pixels

image = pytest.importorskip("PIL.Image")


class Scaled(nn.Module):
    """A network that prepares pixels itself."""

    def __init__(self, divide: float, mean: float, std: float) -> None:
        super().__init__()
        self.divide, self.mean, self.std = divide, mean, std
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x / self.divide - self.mean) / self.std).mean((2, 3))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def seen(model: nn.Module, source: object) -> Tensor:
    graph = analysed(model, torch.zeros(1, 3, 16, 16))
    return torch.cat([b.inputs[0] for b in Calibration(source, graph)])


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        ((255.0, 0.0, 1.0), (0.0, 255.0)),
        ((255.0, 0.45, 0.225), (0.0, 255.0)),
        ((1.0, 0.45, 0.225), (0.0, 1.0)),
        ((1.0, 120.0, 60.0), (0.0, 255.0)),
        ((1000.0, 0.0, 1.0), None),
    ],
)
def test_first_layers_say_which_pixels_they_take(
    made: tuple[float, float, float], wanted: tuple[float, float] | None
) -> None:
    assert plain_pixels(analysed(Scaled(*made), torch.zeros(1, 3, 16, 16))) == wanted


def test_pictures_are_as_the_first_layers_take_them(pictures: Path) -> None:
    assert 200 < seen(Scaled(255.0, 0.45, 0.225), pictures).max() <= 255


def test_pictures_that_nobody_describes_are_refused(pictures: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(IrpruneError, match="nothing says how this model takes them"):
        seen(plain, pictures)
    call = (torch.zeros(1, 3, 16, 16),)
    with pytest.raises(IrpruneError, match="--preprocess"):
        irprune.prune(plain, call, calibration=pictures)
    assert irprune.prune(plain, call, calibration=pictures, preprocess="imagenet").report.repair
    with pytest.raises(IrpruneError, match="without a folder"):
        irprune.prune(plain, call, calibration=torch.zeros(4, 3, 16, 16), mean=0.5)


def test_pixels_are_scaled_then_normalised(tmp_path: Path) -> None:
    image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "white.png")
    plain = nn.Conv2d(3, 4, 3)
    for said, wanted in (
        (Preprocess(), 1.0),
        (Preprocess(pixels=(-1, 1)), 1.0),
        (Preprocess(pixels=(0, 255), mean=(5.0,), std=(50.0,)), 5.0),
        (read_preprocess("imagenet"), (1 - 0.485) / 0.229),
    ):
        assert seen(plain, Folder(tmp_path, said))[0, 0, 0, 0] == pytest.approx(wanted, abs=1e-5)


def test_the_middle_is_cut_out(tmp_path: Path) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[8:24, 16:32] = 255
    image.fromarray(pixels).save(tmp_path / "a.png")
    plain = nn.Conv2d(3, 4, 3)
    assert seen(plain, Folder(tmp_path, Preprocess(resize=32))).min() > 0.9
    assert seen(plain, Folder(tmp_path, Preprocess())).min() == 0


def test_a_function_does_all(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def prepare(picture):\n"
        "    return np.full((3, 16, 16), picture.size[0], np.float32)\n"
    )
    plain = nn.Conv2d(3, 4, 3)
    said = irprune.Options(calibration=pictures, preprocess=f"{tmp_path / 'own.py'}:prepare")
    assert bool((seen(plain, said.calibration) == 30).all())
    assert said.plain()["calibration"] == "pictures"
    for wrong in ("nothing", f"{tmp_path / 'own.py'}:x", "hf:nowhere"):
        with pytest.raises(
            IrpruneError, match=r"no preprocessing|no function|no such folder|not installed"
        ):
            irprune.Options(calibration=pictures, preprocess=wrong)
    small = Preprocess(function=lambda picture: np.zeros((3, 4, 4)))
    with pytest.raises(IrpruneError, match=r"gives \[3, 4, 4\], the model takes \[3, 16, 16\]"):
        seen(plain, Folder(pictures, small))


def test_pictures_are_decoded_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    own = image.open

    def counting(file: Path) -> object:
        opened.append(file)
        return own(file)

    monkeypatch.setattr(image, "open", counting)
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    irprune.prune(plain, (torch.zeros(1, 3, 16, 16),), calibration=pictures, pixels=(0, 1))
    assert sorted(opened) == sorted(pictures.iterdir())


def test_what_the_command_line_reads() -> None:
    assert read_pixels("-1..1") == (-1.0, 1.0) and read_resize("256x320") == (256, 320)
    for read, text in ((read_pixels, "1"), (read_pixels, "a..b"), (read_resize, "0")):
        with pytest.raises(IrpruneError, match="as in"):
            read(text)
    result = CliRunner().invoke(command.prune, ["x.onnx", "--mean", "0.5"])
    assert isinstance(result.exception, IrpruneError)
