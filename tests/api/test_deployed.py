"""Folders for OpenVINO and TensorRT."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import irprune
from irprune.cli import cli
from irprune.emit.onnx.tensorrt import build_script, read_script
from irprune.errors import CheckFailed, IrpruneError
from irprune.run.session import session


class Net(nn.Module):
    """An open batch and open sides of images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.out = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


X = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
DATA = torch.randn(32, 3, 16, 20, generator=torch.Generator().manual_seed(1))


def pruned(**options: object) -> irprune.Pruned:
    return irprune.prune(Net().eval(), (X,), **options)  # type: ignore[arg-type]


def test_a_folder_for_tensorrt_has_the_file_and_a_script_that_fits_it(tmp_path: Path) -> None:
    made = pruned()
    folder = made.save(tmp_path / "engine", "tensorrt")
    text = (folder / "build.sh").read_text()
    file, (low, usual, high), flags = read_script(text)
    assert file == "model.onnx" and not flags
    assert (
        usual["x"] == (2, 3, 16, 20) and low["x"] == (1, 3, 8, 10) and high["x"] == (8, 3, 32, 40)
    )
    found = next(r for r in made.report.read_back if "min, opt and max" in r.by)
    assert found.passed
    running = session(str(folder / "model.onnx"))
    for shapes in (low, usual, high):  # the engine would be built for what the file takes
        (y,) = running.run(None, {"x": np.zeros(shapes["x"], np.float32)})
        assert y.shape == (shapes["x"][0], 10)
    assert subprocess.run(["sh", "-n", str(folder / "build.sh")], check=False).returncode == 0
    assert any("build.sh was not run" in note for note in made.report.notes)


def test_the_script_hands_its_words_to_trtexec(tmp_path: Path) -> None:
    """A stand-in for trtexec prints what it is given."""
    folder = pruned().save(tmp_path / "engine", "tensorrt")
    stand_in = tmp_path / "trtexec"
    stand_in.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ran = subprocess.run(
        [str(folder / "build.sh"), "--verbose"], capture_output=True, text=True, env=environment
    )
    assert ran.stdout.split("\n")[:5] == [
        "--onnx=model.onnx",
        "--saveEngine=model.engine",
        "--minShapes=x:1x3x8x10",
        "--optShapes=x:2x3x16x20",
        "--maxShapes=x:8x3x32x40",
    ]
    assert "--verbose" in ran.stdout


def test_profiles_are_the_users_where_they_say(tmp_path: Path) -> None:
    made = pruned()
    shapes = [(1, 3, 16, 16), (4, 3, 32, 32), (16, 3, 64, 64)]
    folder = made.save(tmp_path / "engine", "tensorrt", profile={"x": shapes})
    assert [s["x"] for s in read_script((folder / "build.sh").read_text())[1]] == shapes
    for wrong, why in (
        ({"y": shapes}, "no input is called 'y'"),
        ({"x": shapes[:2]}, "2 shapes of 'x'"),
        ({"x": [(1, 4, 16, 16)] * 3}, "has no shape 1x4x16x16"),
        ({"x": shapes[::-1]}, "sizes of a profile fall"),
    ):
        with pytest.raises(IrpruneError, match=why):
            made.save(tmp_path / "none", "tensorrt", profile=wrong)
        assert not (tmp_path / "none").exists()


class Fixed(nn.Module):
    """Any batch of images of at least 16 rows: fewer leave nothing to pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 9), nn.Conv2d(16, 8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


def test_sizes_that_the_file_does_not_take_are_left_out(tmp_path: Path) -> None:
    made = irprune.prune(Fixed().eval(), (torch.randn(2, 3, 16, 16),))
    folder = made.save(tmp_path / "engine", "tensorrt")
    low = read_script((folder / "build.sh").read_text())[1][0]
    assert low["x"] == (1, 3, 16, 16)  # of half the sides nothing would be left
    assert any("the profile leaves it out" in note for note in made.report.notes)


def test_integers_for_tensorrt_are_around_zero(tmp_path: Path) -> None:
    made = pruned(calibration=DATA, quantize="int8", repair=False)
    folder = made.save(tmp_path / "engine", "tensorrt")
    assert read_script((folder / "build.sh").read_text())[2] == ["--int8", "--fp16"]
    model = onnx.load(str(folder / "model.onnx"))
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    zeros = [
        held[n.input[2]]
        for n in model.graph.node
        if n.op_type == "QuantizeLinear" and len(n.input) > 2
    ]
    assert zeros and all(z.dtype == np.int8 and not z.any() for z in zeros)
    assert made.report.narrowed is not None and made.report.narrowed.agreement > 0.9


def test_a_script_reads_back_as_it_was_written() -> None:
    shapes = {"a:0": (1, 2), "b c": (3,)}
    text = build_script("model.onnx", (shapes, shapes, shapes), ["--fp16"])
    assert read_script(text) == ("model.onnx", (shapes, shapes, shapes), ["--fp16"])


def test_without_openvino_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(IrpruneError, match="OpenVINO is not installed"):
        pruned(proof=False).save(tmp_path / "ov", "openvino")
    assert not (tmp_path / "ov").exists()


def test_a_folder_for_openvino_computes_what_the_onnx_file_does(tmp_path: Path) -> None:
    package = pytest.importorskip("openvino")
    made = pruned()
    folder = made.save(tmp_path / "ov", "openvino")
    assert {p.name for p in folder.iterdir()} >= {"model.xml", "model.bin", "report.json"}
    found = next(r for r in made.report.read_back if "OpenVINO" in r.by)
    assert found.passed and found.error < 1e-4
    compiled = package.Core().compile_model(
        str(folder / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    x = torch.randn(3, 3, 12, 18)
    assert np.allclose(compiled([x.numpy()])[0], made.module(x).detach().numpy(), atol=1e-4)


def test_another_model_in_the_openvino_files_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("openvino")
    other = pruned(ratio=0.25).onnx(tmp_path / "other.onnx")
    convert = package.convert_model
    monkeypatch.setattr(package, "convert_model", lambda path: convert(str(other)))
    with pytest.raises(CheckFailed, match="not what was proven"):
        pruned().save(tmp_path / "ov", "openvino")
    assert not (tmp_path / "ov").exists()


def test_the_command_line_writes_both(tmp_path: Path) -> None:
    file = pruned(ratio=0).onnx(tmp_path / "net.onnx")
    said = ["prune", str(file), "--ratio", "0.25", "--no-bench", "-o"]
    profile = ["--profile", "x=1x3x8x8:2x3x16x16:4x3x32x32"]
    ran = CliRunner().invoke(cli, [*said, str(tmp_path / "trt"), "--format", "tensorrt", *profile])
    assert ran.exit_code == 0, ran.output
    assert "--maxShapes=x:4x3x32x32" in (tmp_path / "trt" / "build.sh").read_text()
    ran = CliRunner().invoke(cli, [*said, str(tmp_path / "a.onnx"), "--format", "tensorrt"])
    assert isinstance(ran.exception, IrpruneError) and "writes a folder" in str(ran.exception)
    ran = CliRunner().invoke(cli, [*said, str(tmp_path / "b"), "--profile", "x=1:2"])
    assert isinstance(ran.exception, IrpruneError)
    pytest.importorskip("openvino")
    ran = CliRunner().invoke(cli, [*said, str(tmp_path / "ov"), "--format", "openvino"])
    assert ran.exit_code == 0, ran.output
    assert "model.xml equal" in ran.output
