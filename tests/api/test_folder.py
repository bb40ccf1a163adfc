"""Folders of a pruned model: complete, at home without irprune, the same bytes twice, and never
half-written."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import outputs
from torch import nn

import irprune
import models
from irprune.base.atomic_write import atomic_write, replace_folder
from irprune.emit.torch.saved import from_folder
from irprune.errors import IrpruneError
from irprune.run.error import relative_error


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[irprune.Pruned, Path]:
    torch.manual_seed(0)
    case = models.get("dict_io")
    args, kwargs = case.example_inputs(small=True)
    pruned = irprune.prune(case.build(small=True), args, kwargs)
    return pruned, pruned.save(tmp_path_factory.mktemp("out") / "net")


def test_folder_holds_everything_and_loads_back(saved: tuple[irprune.Pruned, Path]) -> None:
    pruned, folder = saved
    names = [
        "model.onnx",
        "model.pt2",
        "model.py",
        "model.py.sha256",
        "plan.json",
        "report.html",
        "report.json",
        "weights.safetensors",
    ]
    assert sorted(p.name for p in folder.iterdir()) == names
    args, kwargs = models.get("dict_io").example_inputs(small=True)
    expected = outputs(pruned.module, *args, **kwargs)
    assert relative_error(outputs(from_folder(folder), *args, **kwargs), expected) == 0
    assert (
        relative_error(
            outputs(torch.export.load(str(folder / "model.pt2")).module(), *args, **kwargs),
            expected,
        )
        <= 1e-6
    )


def test_folder_loads_without_irprune_and_without_the_users_classes(
    saved: tuple[irprune.Pruned, Path], tmp_path: Path
) -> None:
    pruned, folder = saved
    args, kwargs = models.get("dict_io").example_inputs(small=True)
    call = (
        dict(args[0]),
        {"mask": kwargs["context"].mask, "scale": kwargs["context"].scale},
        kwargs["offset"],
    )
    torch.save(call, tmp_path / "call.pt")
    code = f"""
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("irprune", "models", "safetensors"):
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, {str(folder)!r})
from types import SimpleNamespace
from model import load
import torch
features, context, offset = torch.load({str(tmp_path / "call.pt")!r})
out = load()(features, context=SimpleNamespace(**context), offset=offset)
assert not [m for m in sys.modules if m.split(".")[0] in ("irprune", "models", "safetensors")], "imported"
torch.save([out["prediction"].logits.detach(), out["hidden"][1].detach()], {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    expected = pruned.module(*args, **kwargs)
    found = torch.load(tmp_path / "out.pt")
    assert torch.equal(found[0], expected["prediction"].logits)
    assert torch.equal(found[1], expected["hidden"][1])


@pytest.mark.parametrize("name", ["digits", "gpt2"])
def test_the_same_call_writes_the_same_bytes(name: str, tmp_path: Path) -> None:
    case = models.get(name)
    for k in "ab":
        torch.manual_seed(0)
        args, kwargs = case.example_inputs(small=True)
        torch.manual_seed(0)
        irprune.prune(case.build(small=True), args, kwargs).save(tmp_path / k)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_failure_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    pruned = irprune.prune(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(2, 4),)
    )
    folder = pruned.save(tmp_path / "net")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("irprune.emit.backends.from_torch.save_program", "pathlib.Path.write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(IrpruneError, match="the disk is full"):
                pruned.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with monkeypatch.context() as patch:
        patch.setattr("irprune.emit.bridge.torch_onnx._tidy", full)
        with pytest.raises(IrpruneError, match="the disk is full"):
            pruned.onnx(tmp_path / "net.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(IrpruneError, match="not a folder that irprune wrote"),
        replace_folder(tmp_path),
    ):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(IrpruneError, match="cannot write"),
        atomic_write(tmp_path / "file" / "x.onnx"),
    ):
        pass
