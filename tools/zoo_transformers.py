"""Small random models of the transformers families: a family's default configuration, shrunk by the names of its fields.

No weights are downloaded. A family whose shrunk default cannot run a forward pass is left out, with the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["build", "families", "head_of"]

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB = 64, 4, 2, 16, 96, 2, 160

_BY_NAME: list[tuple[tuple[str, ...], int]] = [
    (("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "decoder_num_key_value_heads"), KV_HEADS),
    (("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads", "decoder_attention_heads",
      "attention_heads", "num_attention_head", "decoder_num_attention_heads", "encoder_num_attention_heads"), HEADS),
    (("head_dim", "attention_head_dim", "d_kv", "qk_nope_head_dim", "v_head_dim", "d_head", "attention_head_size"), HEAD_DIM),
    (("qk_rope_head_dim",), 8), (("q_lora_rank", "kv_lora_rank"), 32),
    (("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "dim", "embed_dim", "hidden_dim", "word_embed_proj_dim",
      "projection_dim", "decoder_hidden_size", "encoder_hidden_size", "text_embed_dim", "d_embed"), WIDTH),
    (("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size",
      "shared_expert_intermediate_size", "mlp_dim", "d_inner", "inner_dim", "decoder_intermediate_size", "expert_ffn_hidden_size",
      "intermediate_size_mlp", "shared_intermediate_size"), FFN),
    (("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
      "num_decoder_layers", "depth", "decoder_num_hidden_layers", "encoder_num_hidden_layers", "num_blocks"), LAYERS),
    (("vocab_size", "type_vocab", "decoder_vocab_size", "encoder_vocab_size", "text_vocab_size"), VOCAB),
    (("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    (("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k"), 2),
    (("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions", "n_ctx"), 128),
    (("image_size",), 64), (("n_group", "topk_group"), 1), (("first_k_dense_replace",), 1), (("state_size", "ssm_state_size"), 8),
    (("mamba_n_heads", "mamba_num_heads"), 4), (("mamba_d_state",), 8),
]
_SMALL = {name: value for names, value in _BY_NAME for name in names}


def families() -> list[str]:
    """Every model type that transformers' ``AutoModel`` knows, in order."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


def _shrink(config: Any) -> None:
    """Make every size named in the table small, in place, sub-configurations included."""
    from transformers import PretrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _shrink(value)
        elif isinstance(value, bool) or value is None:
            continue
        elif name in _SMALL and isinstance(value, int):
            with contextlib.suppress(AttributeError, ValueError):
                setattr(config, name, min(value, _SMALL[name]))
        elif name.endswith("_token_id") and isinstance(value, int) and value >= VOCAB:
            setattr(config, name, VOCAB - 1 - len(name) % 7)
        elif name == "layer_types" and isinstance(value, list):
            kinds = list(dict.fromkeys(value))
            setattr(config, name, (kinds * LAYERS)[:LAYERS] if len(kinds) <= LAYERS else kinds[:LAYERS])
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict) and "mrope_section" in value:
            value["mrope_section"] = [HEAD_DIM // 4, HEAD_DIM // 8, HEAD_DIM // 8]


def head_of(name: str) -> str:
    """The family a model type counts for: ``clip_text_model`` counts for ``clip``."""
    return name.replace("-", "_").split("_")[0]


def build(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A small random model of the family and keyword arguments it runs on. Raises whatever the family raises."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    config = CONFIG_MAPPING[name]()
    _shrink(config)
    with contextlib.suppress(AttributeError, ValueError):
        config.use_cache = False
    for sub in vars(config).values():
        if hasattr(sub, "use_cache"):
            sub.use_cache = False
    model = AutoModel.from_config(config).eval()
    if sum(p.numel() for p in model.parameters()) > 60_000_000:
        raise RuntimeError("the shrunk configuration is still large")
    errors = []
    for make in (_by_main_input, _text, _image, _audio_values, _audio_features, _text_and_image):
        try:
            kwargs = make(model, config)
            with torch.no_grad():
                model(**kwargs)
            return model, kwargs
        except Exception as error:  # each way of calling is tried; all refusals are reported
            errors.append(f"{make.__name__}: {type(error).__name__}: {str(error)[:80]}")
    raise RuntimeError("; ".join(errors))


def _ids(n: int = 12) -> torch.Tensor:
    return torch.randint(5, 100, (1, n), generator=torch.Generator().manual_seed(0))


def _text(model: Any, config: Any) -> dict[str, torch.Tensor]:
    kwargs = {"input_ids": _ids()}
    if getattr(config, "is_encoder_decoder", False):
        kwargs["decoder_input_ids"] = _ids(7)
    return kwargs


def _image_of(config: Any) -> torch.Tensor:
    own = getattr(config, "vision_config", None) or config
    size = getattr(own, "image_size", None) or 64
    h, w = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(1, getattr(own, "num_channels", None) or 3, h, w, generator=torch.Generator().manual_seed(0))


def _image(model: Any, config: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": _image_of(config)}


def _text_and_image(model: Any, config: Any) -> dict[str, torch.Tensor]:
    return {**_text(model, config), **_image(model, config)}


def _audio_values(model: Any, config: Any) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))}


def _audio_features(model: Any, config: Any) -> dict[str, torch.Tensor]:
    bins = next((v for n in ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim") if (v := getattr(config, n, None))), 80)
    length = 2 * (getattr(config, "max_source_positions", None) or 64)
    shape = (1, bins, length) if model.config.model_type in ("whisper",) else (1, length, bins)
    kwargs = {"input_features": torch.randn(*shape, generator=torch.Generator().manual_seed(0))}
    if getattr(config, "is_encoder_decoder", False):
        kwargs["decoder_input_ids"] = _ids(7)
    return kwargs


def _by_main_input(model: Any, config: Any) -> dict[str, torch.Tensor]:
    makers: dict[str, Callable[[Any, Any], dict[str, torch.Tensor]]] = {
        "input_ids": _text, "pixel_values": _image, "input_values": _audio_values, "input_features": _audio_features,
    }
    return makers[model.main_input_name](model, config)
