"""transformers models: ``huggingface/`` beside the rest loads with ``from_pretrained`` and computes
what the pruned module computes.

Needs transformers (extra ``zoo``): without it these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import irprune
from irprune.base.tolerance import FLOAT32
from irprune.emit.torch import hugging_face
from irprune.frontend.torch.pretrained import is_pretrained
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors

# Where torchvision needs its operators declared, see tools/zoo.py
if importlib.util.find_spec("tvshim") is not None:
    importlib.import_module("tvshim")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def save_pretrained(pruned: irprune.Pruned, folder: Path) -> str:
    """What stood in the way of a folder for ``from_pretrained``; "" where nothing did."""
    return hugging_face.save_pretrained(pruned.graph, pruned.cut, pruned.module, folder)


def _ids(n: int = 6) -> torch.Tensor:
    return torch.randint(2, 50, (1, n), generator=torch.Generator().manual_seed(0))


def _model(name: str):
    """A tiny model in eval mode without a cache, and its call."""
    model, kwargs = _made(name)
    for part in model.eval().modules():
        if hasattr(getattr(part, "config", None), "use_cache"):
            part.config.use_cache = False
    return model, kwargs


def _made(name: str):
    t = transformers
    torch.manual_seed(0)
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2)), {
            "input_ids": _ids()
        }
    # As many heads as each is wide: shapes alone do not tell which of the two fell
    if name == "square":
        sizes = {**SIZES, "hidden_size": 64, "num_attention_heads": 8}
        return t.LlamaForCausalLM(t.LlamaConfig(**sizes, num_key_value_heads=4, head_dim=8)), {
            "input_ids": _ids()
        }
    # Biases, and more layers than share their heads: rotary tables join head_dim over all.
    if name == "qwen2":
        return t.Qwen2ForCausalLM(
            t.Qwen2Config(**{**SIZES, "num_hidden_layers": 4}, num_key_value_heads=2)
        ), {"input_ids": _ids()}
    if name == "phi":
        return t.PhiForCausalLM(t.PhiConfig(**SIZES, max_position_embeddings=16)), {
            "input_ids": _ids()
        }
    if name == "gemma":
        return t.GemmaForCausalLM(t.GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=8)), {
            "input_ids": _ids()
        }
    if name == "whisper":
        model = t.WhisperForConditionalGeneration(
            t.WhisperConfig(
                vocab_size=50,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                max_source_positions=16,
                max_target_positions=16,
                num_mel_bins=10,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )
        )
        heard = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(0))
        return model, {"input_features": heard, "decoder_input_ids": _ids(4)}
    if name == "gpt2":
        return t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16)
        ), {"input_ids": _ids()}
    if name == "bert":
        return t.BertForMaskedLM(t.BertConfig(**SIZES, max_position_embeddings=16)), {
            "input_ids": _ids()
        }
    if name == "vit":
        own = {k: v for k, v in SIZES.items() if k != "vocab_size"}
        model = t.ViTForImageClassification(t.ViTConfig(**own, image_size=16, patch_size=8))
        return model, {
            "pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        }
    if name == "t5":
        model = t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=50,
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_decoder_layers=2,
                num_heads=4,
                decoder_start_token_id=0,
            )
        )
        return model, {"input_ids": _ids(), "decoder_input_ids": _ids(4)}
    config = t.MixtralConfig(
        **SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    )
    return t.MixtralForCausalLM(config), {"input_ids": _ids()}


NAMES = ("llama", "square", "qwen2", "phi", "gpt2", "bert", "vit", "t5", "mixtral")


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_loads_and_computes_the_same(name: str, tmp_path: Path) -> None:
    model, kwargs = _model(name)
    pruned = irprune.prune(model, (), kwargs, ratio=0.5, proof=False)
    assert save_pretrained(pruned, tmp_path / "huggingface") == ""
    loaded = type(model).from_pretrained(tmp_path / "huggingface").eval()
    assert sum(p.numel() for p in loaded.parameters()) < 0.8 * sum(
        p.numel() for p in model.parameters()
    )
    with torch.no_grad():
        assert (
            relative_error(flat_tensors(loaded(**kwargs)), flat_tensors(pruned.module(**kwargs)))
            <= FLOAT32
        )


def test_llama_names_its_new_sizes(tmp_path: Path) -> None:
    model, kwargs = _model("llama")
    assert (
        save_pretrained(irprune.prune(model, (), kwargs, ratio=0.5, proof=False), tmp_path / "hf")
        == ""
    )
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert [
        config[k]
        for k in (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        )
    ] == [16, 24, 2, 1, 8]


def test_sizes_that_differ_by_layer_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    model, kwargs = _model("llama")
    pruned = irprune.prune(
        model, (), kwargs, ratio=0.5, ratios={"model.layers.1.mlp*": 0.25}, proof=False
    )
    why = save_pretrained(pruned, tmp_path / "hf")
    assert "layers.1.mlp" in why or "layers.0.mlp" in why
    assert "x" in why
    assert not (tmp_path / "hf").exists()


def test_one_width_for_encoder_and_decoder_is_named(tmp_path: Path) -> None:
    # It returns encoder_last_hidden_state, which keeps the encoder's width; the decoder's is cut
    model, kwargs = _model("whisper")
    why = save_pretrained(irprune.prune(model, (), kwargs, ratio=0.5, proof=False), tmp_path / "hf")
    assert (
        why.startswith("the config cannot say these sizes")
        and "encoder.conv2.weight is 32x16x3" in why
    )
    assert not (tmp_path / "hf").exists()


def test_a_scale_that_follows_the_width_is_no_config(tmp_path: Path) -> None:
    model, kwargs = _model("gemma")  # embeddings times the root of hidden_size
    pruned = irprune.prune(model, (), kwargs, ratio=0.5)
    assert "a scale that follows a size" in save_pretrained(pruned, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_rotary_pairs_that_were_dropped_are_no_config(tmp_path: Path) -> None:
    model, kwargs = _model("llama")
    pruned = irprune.prune(model, (), kwargs, ratio=0.5, prefer="head_dim", proof=False)
    assert save_pretrained(pruned, tmp_path / "hf") != ""
    assert not (tmp_path / "hf").exists()


def test_save_writes_it_beside_the_module(tmp_path: Path) -> None:
    model, kwargs = _model("gpt2")
    pruned = irprune.prune(model, (), kwargs, ratio=0.5)
    folder = pruned.save(tmp_path / "out")
    assert (folder / "huggingface" / "config.json").exists()
    assert any(
        "from_pretrained" in note
        for note in json.loads((folder / "report.json").read_text())["notes"]
    )


def test_hf_folder_is_a_model_of_the_command_line(tmp_path: Path) -> None:
    from irprune.api.load import load_model

    model, kwargs = _model("bert")
    model.save_pretrained(tmp_path / "bert")
    loaded = load_model(f"hf:{tmp_path / 'bert'}")
    assert type(loaded.model) is type(model)
    assert torch.equal(loaded.model(**kwargs).logits, model(**kwargs).logits)
    assert irprune.prune(loaded.model, loaded.args, loaded.kwargs, ratio=0.5).report.proof.passed


def test_a_folder_of_several_files_with_tied_weights_is_read_whole(tmp_path: Path) -> None:
    from irprune.api.load import load_model

    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (
        len(list(tmp_path.glob("*.safetensors"))) > 1
        and (tmp_path / "model.safetensors.index.json").exists()
    )
    read = load_model(f"hf:{tmp_path}").model
    assert read.lm_head.weight is read.model.embed_tokens.weight
    mine, theirs = read.state_dict(), model.state_dict()
    assert list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_only_models_of_the_library_are_taken() -> None:
    assert is_pretrained(_model("bert")[0])
    assert not is_pretrained(torch.nn.Linear(2, 2))


def test_what_the_config_of_an_instance_cannot_say_is_a_note() -> None:
    """Half of each head of a BERT whose width stays: heads are as wide as the width over their
    number."""
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
    )
    model = transformers.BertModel(config).eval()
    ids = torch.randint(0, 60, (2, 9))
    pruned = irprune.prune(model, kwargs={"input_ids": ids}, proof=False)
    pruned.apply_to(model)
    assert model.config.intermediate_size == 64
    said = [n for n in pruned.report.notes if "config of the instance" in n]
    assert len(said) == 1
    assert "query.weight is 16x32" in said[0]
