"""Language models of every family, with random weights: pruned with the proof, written as a folder,
loaded afresh, and generating with the cache, with padding and in batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import irprune
from irprune.errors import IrpruneError
from irprune.validate.decoder_parity import compare_decoder

t = pytest.importorskip("transformers")

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    **TOKENS,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}


LATENT = {
    **PLAIN,
    **EXPERTS,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
}


def _whisper() -> Any:
    return t.WhisperForConditionalGeneration(
        t.WhisperConfig(
            vocab_size=64,
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
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
            **TOKENS,
        )
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**GROUPED)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED, head_dim=8)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**GROUPED, sliding_window=16)),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**GROUPED)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**GROUPED, head_dim=8, sliding_window=16)),
    "gemma3": lambda: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=16)
    ),
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, **TOKENS)
    ),
    "opt": lambda: t.OPTForCausalLM(
        t.OPTConfig(
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            **TOKENS,
        )
    ),
    "falcon": lambda: t.FalconForCausalLM(
        t.FalconConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
            new_decoder_architecture=True,
            num_kv_heads=2,
            **TOKENS,
        )
    ),
    "olmo": lambda: t.OlmoForCausalLM(t.OlmoConfig(**GROUPED)),
    "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**GROUPED)),
    "deepseek": lambda: t.DeepseekV3ForCausalLM(t.DeepseekV3Config(**LATENT)),
    "mixtral": lambda: t.MixtralForCausalLM(
        t.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
    ),
    "qwen2 experts": lambda: t.Qwen2MoeForCausalLM(
        t.Qwen2MoeConfig(**GROUPED, **EXPERTS, shared_expert_intermediate_size=24, num_experts=4)
    ),
    "qwen3 experts": lambda: t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(**GROUPED, **EXPERTS, head_dim=8, num_experts=4)
    ),
    "mamba": lambda: t.MambaForCausalLM(
        t.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, **TOKENS)
    ),
    "t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(
            vocab_size=64,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        )
    ),
    "whisper": _whisper,
    "deepseek 2": lambda: t.DeepseekV2ForCausalLM(t.DeepseekV2Config(**LATENT)),
    "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**GROUPED, head_dim=8)),
}
FAMILIES |= {"llama by layer": FAMILIES["llama"], "deepseek by layer": FAMILIES["deepseek"]}
BY_LAYER = ("llama by layer", "deepseek by layer")  # the others uniform


def _ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(rows))


def _call(name: str) -> dict[str, Any]:
    """One row without a mask, as people have it."""
    if name == "t5":
        ids = _ids(2, 8)
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": _ids(2, 4)}
    if name == "whisper":
        return {"input_features": torch.randn(2, 10, 32), "decoder_input_ids": _ids(2, 4)}
    return {"input_ids": _ids(1, 8)}


def _loaded(folder: Path, kind: type) -> Any:
    config = json.loads((folder / "config.json").read_text())
    auto = config.get("auto_map")
    if auto is None:
        return kind.from_pretrained(folder).eval()
    return getattr(t, next(iter(auto))).from_pretrained(folder, trust_remote_code=True).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_in_and_comes_out(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    call = _call(name)
    uniform = name not in BY_LAYER
    keep = () if uniform else ("*embed_tokens*",)
    ratios = {} if uniform else {"*layers.1.*": 0.2}
    pruned = irprune.prune(model, (), call, ratio=0.4, ratios=ratios, keep=keep, uniform=uniform)
    assert pruned.report.proof.passed and pruned.report.params.left < 0.95
    with torch.no_grad():
        # Any batch and length, also of one row without a mask; Mamba's scan is a loop over it
        if len(call) == 1 and name != "mamba":
            assert pruned.module(input_ids=_ids(3, 5)).logits.shape[:2] == (3, 5)
        pruned.save(tmp_path / "out", "hf")  # a fresh process compares there
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert ("auto_map" in config) != uniform
        loaded = _loaded(tmp_path / "out", type(model))
        if len(call) > 1:
            given = {k: v for k, v in call.items() if "decoder" not in k}
            assert len(loaded.generate(**given, max_new_tokens=3, do_sample=False)) == 2
            return
        ids = _ids(3, 6)
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        options = {"max_new_tokens": 4, "do_sample": False}
        cached = loaded.generate(ids, attention_mask=mask, **options)
        assert torch.equal(
            cached, loaded.generate(ids, attention_mask=mask, use_cache=False, **options)
        )
        mine = model.generate(ids, attention_mask=mask, **options)
        assert mine.shape == cached.shape


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_decoder_goes_token_by_token_on_onnxruntime(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    keep = ["*embed_tokens*"] if name == "llama" else ["*wte*"]
    pruned = irprune.prune(model, (), _call(name), ratio=0.4, keep=keep, proof=False)
    path = pruned.onnx(tmp_path / "small.onnx", cache=True)
    parity = pruned.report.parity
    assert parity.passed and parity.outputs["token 5"] == 0.0  # padded rows, a batch of three
    held = onnx.load(path)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*held.graph.input, *held.graph.output)
    }
    heads, wide = shapes["past_key_values.1.key"][1::2]
    assert (heads, wide) == ((1, 8) if name == "llama" else (2, 8))
    assert all(isinstance(shapes["present.0.value"][d], str) for d in (0, 2))
    instance = pruned.apply_to(model)
    with torch.no_grad():
        next(instance.parameters()).mul_(1.5)
    assert not compare_decoder(instance, path).passed


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    model = FAMILIES["t5"]().eval()
    pruned = irprune.prune(model, (), _call("t5"), ratio=0.4, proof=False)
    with pytest.raises(IrpruneError, match="no cache of keys and values"):
        pruned.onnx(tmp_path / "t5.onnx", cache=True)
    plain = irprune.prune(torch.nn.Linear(4, 4), (torch.randn(1, 4),), ratio=0.0, proof=False)
    with pytest.raises(IrpruneError, match="only models of transformers"):
        plain.onnx(tmp_path / "plain.onnx", cache=True)


@pytest.mark.parametrize("rows", [1, 2])
def test_an_encoder_keeps_the_positions_that_it_makes(rows: int) -> None:
    """Those of RoBERTa begin at 2: they are its own, and hold for any batch."""
    torch.manual_seed(0)
    config = t.RobertaConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    model = t.RobertaModel(config).eval()
    pruned = irprune.prune(model, (), {"input_ids": _ids(rows, 7)}, ratio=0.4)
    assert pruned.report.proof.passed
    assert pruned.module(input_ids=_ids(3, 5))[0].shape[:2] == (3, 5)
