"""Folders for ``from_pretrained``: plain ones where a config can say the sizes, ones with a model
file where it cannot; captures without the cache; configs of the user's own instance.

Needs transformers (extra ``zoo``): without it these tests are skipped.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch

import irprune
from irprune.emit.torch.reload_check import compare
from irprune.errors import IrpruneError

# Where torchvision needs its operators declared, see tools/zoo.py
if importlib.util.find_spec("tvshim") is not None:
    importlib.import_module("tvshim")
transformers = pytest.importorskip("transformers")


def _llama(**sizes: int):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": 128,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "pad_token_id": 0,
            **sizes,
        }
    )
    return transformers.LlamaForCausalLM(config).eval()


def _ids(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(0))


def _generated(model, ids: torch.Tensor, **options) -> torch.Tensor:
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=6,
        do_sample=False,
        **options,
    )


def _loaded(folder: Path, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def test_a_model_with_its_cache_is_captured_as_it_is() -> None:
    model, ids = _llama(), _ids()
    pruned = irprune.prune(model, (ids,), ratio=0.3)
    assert model.config.use_cache, "the config of the user's model was changed"
    made = pruned.module(ids)
    assert torch.equal(made.logits, pruned.module(ids, use_cache=False).logits)
    with pytest.raises(IrpruneError, match="a cache of keys and values cannot be captured"):
        irprune.prune(model, (ids,), {"use_cache": True}, ratio=0.3)


@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.34}, {"budget": {"params": 0.8}}, {"budget": {"params": 0.7}, "scope": "global"}],
    ids=["ratio", "budget", "global"],
)
def test_a_uniform_choice_loads_with_a_plain_config(options, tmp_path: Path) -> None:
    model, ids = _llama(), _ids()
    pruned = irprune.prune(model, (ids,), uniform=True, **options)
    pruned.save(tmp_path / "out", "hf")
    loaded = _loaded(tmp_path / "out")
    assert not (tmp_path / "out" / "modeling_irprune.py").exists()
    assert sum(p.numel() for p in loaded.parameters()) == pruned.report.params.after
    assert pruned.report.params.after < pruned.report.params.before
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, pruned.module(ids).logits, atol=1e-5)
    assert torch.equal(
        _generated(loaded, ids, use_cache=True), _generated(loaded, ids, use_cache=False)
    )


def test_padded_rows_get_what_they_get_alone(tmp_path: Path) -> None:
    model, ids = _llama(), _ids()
    irprune.prune(model, (ids,), uniform=True, ratio=0.34).save(tmp_path / "out", "hf")
    loaded = _loaded(tmp_path / "out")
    pad = torch.cat([torch.zeros(2, 4, dtype=torch.int64), ids], 1)
    mask = torch.cat([torch.zeros(2, 4), torch.ones(2, 12)], 1).long()
    with torch.no_grad():
        padded = loaded(pad, attention_mask=mask).logits[:, 4:]
        assert torch.allclose(padded, loaded(ids).logits, atol=1e-4)


def test_sizes_by_layer_load_with_a_model_file(tmp_path: Path) -> None:
    model, ids = _llama(), _ids()
    pruned = irprune.prune(model, (ids,), budget={"params": 0.8})
    pruned.save(tmp_path / "out", "hf")
    assert any("trust_remote_code=True" in note for note in pruned.report.notes)
    loaded = _loaded(tmp_path / "out", trust_remote_code=True)
    assert len({layer.mlp.up_proj.out_features for layer in loaded.model.layers}) > 1
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, pruned.module(ids).logits, atol=1e-5)
    assert torch.equal(
        _generated(loaded, ids, use_cache=True), _generated(loaded, ids, use_cache=False)
    )


def test_a_config_that_refuses_the_heads_leads_to_another_choice() -> None:
    """Five of six heads do not divide the hidden size of 48."""
    model = _llama(num_key_value_heads=6)
    pruned = irprune.prune(model, (_ids(),), uniform=True, ratio=0.17, keep=["model.embed_tokens*"])
    assert any("chosen anew" in note for note in pruned.report.notes)
    shapes = {k: tuple(v.shape) for k, v in pruned.module.state_dict().items()}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (48, 48)
    assert shapes["model.layers.0.mlp.up_proj.weight"][0] < 96


def test_the_instance_gets_a_config_that_says_its_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=90,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(0, 90, (2, 8))
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pruned = irprune.prune(model, (), call, ratio=0.5)
    mine = pruned.apply_to(copy.deepcopy(model))
    assert mine.config.intermediate_size == 32
    mine.save_pretrained(tmp_path / "out")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(again(**call).logits, mine(**call).logits, atol=1e-6)


def test_the_tokenizer_lies_beside_it(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    _llama().save_pretrained(origin)
    (origin / "tokenizer.json").write_text("{}", encoding="utf-8")
    model = _loaded(origin)
    pruned = irprune.prune(model, (_ids(),), uniform=True, ratio=0.34)
    pruned.save(tmp_path / "out", "hf")
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "generation_config.json", "config.json", "plan.json"} <= names


def test_the_check_sees_a_wrong_weight(tmp_path: Path) -> None:
    model, ids = _llama(), _ids()
    model.save_pretrained(tmp_path / "out")
    data = tmp_path / "call.pt"
    with torch.no_grad():
        right = model(ids, use_cache=False).logits
    held = {"args": [ids], "kwargs": {"use_cache": False}, "expected": [right]}
    torch.save(held, data)
    assert compare(str(tmp_path / "out"), str(data), "LlamaForCausalLM", False) == ""
    torch.save({**held, "expected": [right + 0.1]}, data)
    assert "something else" in compare(str(tmp_path / "out"), str(data), "LlamaForCausalLM", False)


def test_hf_is_refused_for_other_models(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    pruned = irprune.prune(model, (torch.randn(2, 4),), ratio=0.5)
    with pytest.raises(IrpruneError, match="for models of transformers"):
        pruned.save(tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_the_command_line_writes_it(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from irprune.cli import cli

    _llama().save_pretrained(tmp_path / "in")
    out = tmp_path / "out"
    done = CliRunner().invoke(
        cli,
        ["prune", f"hf:{tmp_path / 'in'}", "--params", "0.8", "-o", str(out), "--format", "hf"],
    )
    assert done.exit_code == 0, done.output
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["use_cache"] and "auto_map" not in config
    assert _loaded(out) is not None
