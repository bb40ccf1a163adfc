"""Folders of onnxruntime-genai: its decoder goes on as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import irprune
from irprune.emit.bridge import genai_folder
from irprune.errors import IrpruneError
from irprune.validate import decoder_parity, genai_parity

t = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, head_dim=8)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**SIZES, head_dim=8, sliding_window=16)),
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=48, vocab_size=64, eos_token_id=2)
    ),
}


def _cut(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = FAMILIES[name]().eval().to(dtype)
    keep = ["*wte*" if name == "gpt2" else "*embed_tokens*"]
    pruned = irprune.prune(
        model, (torch.randint(3, 64, (2, 6)),), ratio=0.4, keep=keep, proof=False
    )
    return model, pruned


@pytest.mark.parametrize("name", FAMILIES)
def test_it_goes_on_as_transformers_does(name: str, tmp_path: Path) -> None:
    package = pytest.importorskip("onnxruntime_genai")
    model, pruned = _cut(name)
    pruned.save(tmp_path / "small", "genai")
    (found,) = (r for r in pruned.report.read_back if "genai" in r.by)
    assert found.passed and found.error < 1e-4
    told = json.loads((tmp_path / "small" / "genai_config.json").read_text())
    assert told["model"]["context_length"] == 48
    assert told["model"]["eos_token_id"] == 2

    instance = pruned.apply_to(model)
    ids = torch.randint(3, 64, (2, 6))
    meant = instance.generate(
        ids, attention_mask=torch.ones_like(ids), max_length=16, min_length=16, do_sample=False
    )
    running = package.Model(str(tmp_path / "small"))
    how = package.GeneratorParams(running)
    how.set_search_options(do_sample=False, max_length=16, min_length=16, batch_size=2)
    writer = package.Generator(running, how)
    writer.append_tokens(ids.numpy().astype(np.int32))
    while not writer.is_done():
        writer.generate_next_token()
    assert [list(writer.get_sequence(row)) for row in range(2)] == meant.tolist()

    with torch.no_grad():
        next(instance.parameters()).mul_(1.5)
    other = genai_parity.compare_genai(instance, tmp_path / "small")
    assert other is not None and not other.passed


def test_without_the_package_it_is_written_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genai_parity, "genai", lambda: None)
    _, pruned = _cut("llama")
    pruned.save(tmp_path / "small", "genai")
    assert "onnxruntime-genai is not installed here: it was not run" in pruned.report.notes
    assert pruned.report.parity.passed  # on onnxruntime
    assert (tmp_path / "small" / "genai_config.json").exists()


def test_a_layer_without_keys_and_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a layer whose attention was left out."""
    _, pruned = _cut("llama")
    monkeypatch.setattr(genai_folder, "cache_shapes", lambda model: {1: (1, 8, 8)})
    with pytest.raises(IrpruneError, match="layer 0 has none"):
        pruned.save(tmp_path / "small", "genai")
    assert not (tmp_path / "small").exists()


def test_half_precision_is_compared_as_such(tmp_path: Path) -> None:
    model, pruned = _cut("llama", torch.float16)
    pruned.save(tmp_path / "small", "genai")
    assert 1e-4 < pruned.report.parity.max_error < 3e-2
    instance = pruned.apply_to(model)
    with torch.no_grad():
        instance.model.norm.weight.mul_(1.5)
    path = tmp_path / "small" / "model.onnx"
    assert not decoder_parity.compare_decoder(instance, path).passed
    found = genai_parity.compare_genai(instance, path.parent)
    assert found is None or not found.passed


def test_double_precision_is_refused(tmp_path: Path) -> None:
    _, pruned = _cut("llama", torch.float64)
    with pytest.raises(IrpruneError, match="16 and 32 bits"):
        pruned.save(tmp_path / "small", "genai")
