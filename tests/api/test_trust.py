"""Folders whose code is not irprune's own run on trust alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

import irprune
from irprune.api.load import load_model
from irprune.errors import IrpruneError


def folder_of(folder: Path) -> Path:
    """A folder of a small pruned module."""
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    return irprune.prune(net, (torch.randn(2, 6),)).save(folder)


def test_a_changed_model_py_is_run_on_trust_alone(tmp_path: Path) -> None:
    folder, mark = folder_of(tmp_path / "out"), tmp_path / "owned"
    assert load_model(str(folder)).model is not None
    source = folder / "model.py"
    source.write_text(f"open({str(mark)!r}, 'w').close()\n{source.read_text()}")
    with pytest.raises(IrpruneError, match=r"model.py is not what irprune wrote .*trust=True"):
        load_model(str(folder))
    (folder / "model.py.sha256").unlink()
    with pytest.raises(IrpruneError, match=r"no model.py.sha256 .*trust=True"):
        load_model(str(folder))
    assert not mark.exists()
    load_model(str(folder), trust=True)
    assert mark.exists()


def test_the_digest_is_as_sha256sum_writes_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    told, name = (folder / "model.py.sha256").read_text().split()
    assert name == "model.py"
    assert told == hashlib.sha256((folder / "model.py").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"config.json": '{"auto_map": {"AutoModel": "evil.Net"}}', "evil.py": "1"}, "auto_map"),
        ({"config.json": '{"model_type": "bert"}', "pytorch_model.bin": "x"}, "are pickled"),
        ({"config.json": "[]"}, "config.json is no object"),
        ({"config.json": "{"}, "config.json cannot be read"),
    ],
)
def test_a_transformers_folder_brings_no_code(
    files: dict[str, str], told: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(IrpruneError, match=told):
        load_model(f"hf:{tmp_path}")
