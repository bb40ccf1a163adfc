"""Files in narrower numbers: smaller, still right, and the agreement is what is measured again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from torch import nn

import irprune
from irprune.cli import cli
from irprune.run.session import run_session, session


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    ).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    running = session(str(path), "cpu")
    return next(iter(run_session(running, {running.get_inputs()[0].name: x}).values()))


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_a_file_in_narrower_numbers_agrees_as_the_report_says(
    kind: str, net: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    options = {"ratio": 0.25, "calibration": images, "repair": False}
    plain = irprune.prune(net, (images[:2],), **options).onnx(tmp_path / "plain.onnx")
    small = irprune.prune(net, (images[:2],), quantize=kind, **options)
    path = small.onnx(tmp_path / "small.onnx")
    found = small.report.narrowed
    assert found is not None and (found.kind, found.metric, found.samples) == (kind, "top1", 48)
    assert found.after == path.stat().st_size < found.before
    x = images.numpy()
    before, after = outputs(plain, x), outputs(path, x)
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()
    assert found.agreement == pytest.approx((after.argmax(1) == before.argmax(1)).mean())
    stored = Counter(t.data_type for t in onnx.load(path).graph.initializer if len(t.dims) == 4)
    assert set(stored) == {TensorProto.INT8 if kind == "int8" else TensorProto.FLOAT16}
    assert str(found) in str(small.report)
    assert small.report.as_dict()["narrowed"]["agreement"] == found.agreement


def test_weights_have_a_scale_for_each_channel(
    net: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    small = irprune.prune(net, (images[:2],), ratio=0.25, calibration=images, quantize="int8")
    model = onnx.load(small.onnx(tmp_path / "small.onnx"))
    kernels = {t.name: t.dims[0] for t in model.graph.initializer if len(t.dims) == 4}
    shapes = {t.name: list(t.dims) for t in model.graph.initializer}
    steps = [
        n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in kernels
    ]
    assert len(steps) == len(kernels) == 2
    assert all(shapes[n.input[1]] == [kernels[n.input[0]]] for n in steps)


def test_int8_without_data_is_refused_before_anything_is_written(
    net: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(irprune.IrpruneError, match="needs data that show the ranges"):
        irprune.prune(net, (images[:2],), quantize="int8")
    with pytest.raises(irprune.IrpruneError, match='it takes "int8" or "fp16"'):
        irprune.prune(net, (images[:2],), quantize="int4")


def test_the_command_line_writes_halves(
    net: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    whole = irprune.prune(net, (images[:2],), ratio=0).onnx(tmp_path / "whole.onnx")
    out = tmp_path / "small.onnx"
    done = CliRunner().invoke(cli, ["prune", str(whole), "-o", str(out), "--fp16", "--no-bench"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "fp16" in done.stdout and "random inputs" in " ".join(done.stdout.split())
    held = onnx.load(out)
    assert {t.data_type for t in held.graph.initializer if len(t.dims) == 4} == {
        TensorProto.FLOAT16
    }
    assert held.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_models_that_are_tried_for_a_metric_are_neither_quantised_nor_timed(
    net: nn.Module, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = irprune.prune(net, (images[:2],), ratio=0).onnx(tmp_path / "whole.onnx")
    done: list[str] = []
    for name in ("_narrow", "_time"):
        monkeypatch.setattr(
            irprune.Pruned, name, lambda pruned, *paths, name=name: done.append(name)
        )
    small = irprune.prune(
        str(whole), calibration=images, quantize="int8", bench=True, max_drop=0.2, points=2
    )
    assert small.trials is not None and not done
    small.onnx(tmp_path / "small.onnx")
    assert done == ["_narrow", "_time"]


def test_what_was_there_stays_where_a_file_cannot_be_quantised(
    net: nn.Module, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from irprune.api import narrow

    def refuse(*given: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(narrow, "_fp16", refuse)
    out = tmp_path / "small.onnx"
    out.write_bytes(b"old")
    small = irprune.prune(net, (images[:2],), ratio=0.25, quantize="fp16")
    with pytest.raises(irprune.IrpruneError, match=r"fp16 is not possible: .*no such kernel"):
        small.onnx(out)
    assert out.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["small.onnx"]
