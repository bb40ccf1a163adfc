"""Small random models of the transformers families: a family's default configuration, shrunk by the
names of its fields.

No weights are downloaded. The class is the one with a head, and what is asked of it is the answer
(logits, boxes, masks ...), not the hidden states that it passes along: a hidden state that is
returned may not change its width. An encoder that has no class with a head gets a linear one, as a
user of the encoder would give it. A family whose shrunk default cannot run a forward pass is left
out, with the reason."""

from __future__ import annotations

import contextlib
import copy
import itertools
from typing import Any

import torch
from zoo_inputs import WIDTH, call_of

__all__ = ["Answer", "build", "families", "head_of"]

HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB = 4, 2, 16, 96, 2, 160

_BY_NAME: list[tuple[tuple[str, ...], int]] = [
    (("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"), KV_HEADS),
    (
        (
            "num_attention_heads",
            "n_head",
            "num_heads",
            "n_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "attention_heads",
            "num_attention_head",
            "decoder_num_attention_heads",
            "encoder_num_attention_heads",
            "decoder_num_key_value_heads",
            "encoder_num_key_value_heads",
        ),
        HEADS,
    ),
    (
        (
            "head_dim",
            "attention_head_dim",
            "d_kv",
            "qk_nope_head_dim",
            "v_head_dim",
            "d_head",
            "attention_head_size",
        ),
        HEAD_DIM,
    ),
    (("qk_rope_head_dim",), 8),
    (("q_lora_rank", "kv_lora_rank"), 32),
    (
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "embedding_size",
            "emb_dim",
            "dim",
            "embed_dim",
            "hidden_dim",
            "word_embed_proj_dim",
            "projection_dim",
            "decoder_hidden_size",
            "encoder_hidden_size",
            "text_embed_dim",
            "d_embed",
            "d_text",
            "cross_attention_hidden_size",
        ),
        WIDTH,
    ),
    (
        (
            "intermediate_size",
            "d_ff",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "n_inner",
            "ffn_hidden_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "mlp_dim",
            "d_inner",
            "inner_dim",
            "decoder_intermediate_size",
            "expert_ffn_hidden_size",
            "intermediate_size_mlp",
            "shared_intermediate_size",
        ),
        FFN,
    ),
    (
        (
            "num_hidden_layers",
            "n_layer",
            "num_layers",
            "n_layers",
            "encoder_layers",
            "decoder_layers",
            "num_encoder_layers",
            "num_decoder_layers",
            "depth",
            "decoder_num_hidden_layers",
            "encoder_num_hidden_layers",
            "num_blocks",
        ),
        LAYERS,
    ),
    (
        ("vocab_size", "type_vocab", "decoder_vocab_size", "encoder_vocab_size", "text_vocab_size"),
        VOCAB,
    ),
    (("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    (("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k"), 2),
    (
        (
            "max_position_embeddings",
            "n_positions",
            "max_source_positions",
            "max_target_positions",
            "n_ctx",
        ),
        128,
    ),
    (("image_size",), 64),
    (("n_group", "topk_group"), 1),
    (("first_k_dense_replace",), 1),
    (("state_size", "ssm_state_size"), 8),
    (("mamba_n_heads", "mamba_num_heads"), 4),
    (("mamba_d_state",), 8),
    (("mamba_d_head",), 32),
    (("mamba_d_ssm",), 128),
    (("num_queries", "two_stage_num_proposals"), 12),
    (("rotary_dim",), 8),
    (("num_codebooks",), 2),
    (("subsampling_conv_channels",), 32),
    (("num_kv_shared_layers",), 0),
    (("vocab_size_per_layer_input",), VOCAB),
    (("num_conv_pos_embeddings",), 16),
    (("max_length",), 128),
    (("num_buckets", "position_buckets"), 16),
]
_SMALL = {name: value for names, value in _BY_NAME for name in names}


# What the table above gets wrong, by model type: dotted fields of the configuration.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {"num_mel_bins": 32, "max_length": 64},
    "codegen": {"rotary_dim": 8},
    "esm": {"vocab_size": VOCAB, "pad_token_id": 1, "mask_token_id": 2},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1]},
    "swin": {"embed_dim": 24, "image_size": 128, "window_size": 4},
    "swinv2": {"embed_dim": 24, "image_size": 128, "window_size": 4},
    "donut-swin": {"embed_dim": 24, "image_size": 128, "window_size": 4},
    "maskformer-swin": {"embed_dim": 24, "image_size": 128},
    "efficientnet": {"hidden_dim": 640, "width_coefficient": 0.5, "depth_coefficient": 0.3},
    "align": {
        "vision_config.hidden_dim": 640,
        "vision_config.width_coefficient": 0.5,
        "vision_config.depth_coefficient": 0.3,
    },
    "videomae": {"num_frames": 4},
    "vivit": {"num_frames": 4, "tubelet_size": [2, 16, 16]},
    "timesformer": {"num_frames": 4},
    "clap": {"audio_config.spec_size": 64},
    "time_series_transformer": {"prediction_length": 4},
    "reformer": {"attn_layers": ["local", "local"], "axial_pos_embds": False},
    "xlm-roberta-xl": {"pad_token_id": 1},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32},
    "longformer": {"attention_window": [4, 4]},
    "blt": {
        "encoder_hash_byte_group_vocab": 500,
        "encoder_config.hidden_size_global": WIDTH,
        "decoder_config.hidden_size_global": WIDTH,
    },
    "musicgen": {"decoder.num_codebooks": 1},
    "musicgen_melody": {"decoder.num_codebooks": 1},
    "zamba2": {
        "mamba_headdim": 16,
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
        "kv_channels": HEAD_DIM,
        "num_query_groups": HEADS,
        "hybrid_layer_ids": [1],
        "layers_block_type": ["mamba", "hybrid"],
        "layer_types": ["mamba", "hybrid"],
    },
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "swin2sr": {"depths": [2, 2], "num_heads": [4, 4]},
    "mimi": {"upsample_groups": WIDTH},
    "csm": {"codec_config.upsample_groups": WIDTH},
    "kyutai_speech_to_text": {"codec_config.upsample_groups": WIDTH},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8, "hidden_size": 64, "input_size": 64},
    "lilt": {"hidden_size": 96},
    "dac": {
        "encoder_hidden_size": 16,
        "decoder_hidden_size": 256,
        "downsampling_ratios": [2, 4],
        "upsampling_ratios": [4, 2],
        "hidden_size": 64,
        "hop_length": 8,
    },
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4},
}

# The classes with a head: the mappings of ``transformers`` in the order in which they are asked for
# a model type.
_HEADS = (
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "SPEECH_SEQ_2_SEQ",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "CTC",
    "IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "MASKED_LM",
    "CAUSAL_LM",
    "MULTIMODAL_LM",
    "SEMANTIC_SEGMENTATION",
    "OBJECT_DETECTION",
    "DEPTH_ESTIMATION",
    "UNIVERSAL_SEGMENTATION",
    "INSTANCE_SEGMENTATION",
    "IMAGE_TO_IMAGE",
    "SEQUENCE_CLASSIFICATION",
    "QUESTION_ANSWERING",
    "VISUAL_QUESTION_ANSWERING",
    "TIME_SERIES_PREDICTION",
    "TEXT_TO_SPECTROGRAM",
    "TEXT_TO_WAVEFORM",
    "MASKED_IMAGE_MODELING",
    "CAUSAL_IMAGE_MODELING",
    "KEYPOINT_DETECTION",
    "PRETRAINING",
    "",
)

# What is an answer among the fields of an output; the rest are states that are passed along.


class Answer(torch.nn.Module):
    """``model`` with its answer alone as the output; ``states`` of an encoder without a head go
    through a linear layer of ten."""

    def __init__(self, model: torch.nn.Module, fields: tuple[str, ...], width: int = 0) -> None:
        super().__init__()
        self.model = model
        self.fields = fields
        self.head = torch.nn.Linear(width, 10) if width else None

    def forward(self, **kwargs: Any) -> Any:
        out = self.model(**kwargs)
        found = tuple(out[name] for name in self.fields)
        return self.head(found[0]) if self.head is not None else found


def families(everything: bool = False) -> list[str]:
    """Every model type that transformers' ``AutoModel`` knows, in order; one for each family by
    default, the shortest name of it."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    if everything:
        return list(MODEL_MAPPING_NAMES)
    return [members[0] for members in _members().values()]


def _members() -> dict[str, list[str]]:
    """The model types of each family, the shortest name first."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    out: dict[str, list[str]] = {}
    for name in MODEL_MAPPING_NAMES:
        out.setdefault(head_of(name), []).append(name)
    return {head: sorted(names, key=lambda n: (len(n), n)) for head, names in out.items()}


def _shrink(config: Any, fill: bool = False) -> None:
    """Make every size named in the table small, in place, sub-configurations included; ``fill``
    sets those too that are None."""
    from transformers import PretrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _shrink(value, fill)
        elif value is None and fill and name in _SMALL:
            setattr(config, name, _SMALL[name])
        elif isinstance(value, bool) or value is None:
            continue
        elif name in _SMALL and isinstance(value, int):
            with contextlib.suppress(AttributeError, ValueError):
                setattr(config, name, min(value, _SMALL[name]))
        elif (
            name.endswith(("_token_id", "_token_index"))
            and isinstance(value, int)
            and value >= VOCAB
        ):
            setattr(config, name, VOCAB - 1 - len(name) % 7)
        elif name == "layer_types" and isinstance(value, list):
            kinds = list(dict.fromkeys(value))
            setattr(
                config, name, (kinds * LAYERS)[:LAYERS] if len(kinds) <= LAYERS else kinds[:LAYERS]
            )
        elif (
            name == "rope_parameters"
            and isinstance(value, dict)
            and ("mrope_section" in value or "glm" in config.model_type)
        ):
            turned = int(
                HEAD_DIM
                * value.get(
                    "partial_rotary_factor", getattr(config, "partial_rotary_factor", None) or 1.0
                )
            )
            value["mrope_section"] = [turned // 4, turned // 8, turned // 8]
    if isinstance(getattr(config, "qk_rope_head_dim", None), int) and isinstance(
        getattr(config, "head_dim", None), int
    ):
        config.head_dim = config.qk_rope_head_dim  # the width that is turned
    # A key for each head
    if isinstance(getattr(config, "qk_nope_head_dim", None), int) and hasattr(
        config, "qk_head_dim"
    ):
        config.num_key_value_heads = config.num_attention_heads
        config.qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim


def _small(config: Any) -> dict[str, Any]:
    """What the constructor is given for a small configuration: the fields of the table,
    sub-configurations as dictionaries."""
    from transformers import PretrainedConfig

    out: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            out[name] = {**_small(value), "model_type": value.model_type}
        elif name in _SMALL and isinstance(value, int) and not isinstance(value, bool):
            out[name] = min(value, _SMALL[name])
    return out


def head_of(name: str) -> str:
    """The family a model type counts for: ``clip_text_model`` counts for ``clip``."""
    return name.replace("-", "_").split("_")[0]


def build(name: str, siblings: bool = True) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A small random model of the family and keyword arguments it runs on.

    Where the model type itself does not build and ``siblings``, the other types of its family are
    tried. Raises RuntimeError with the first refusal."""
    first: Exception | None = None
    others = [n for n in _members()[head_of(name)] if n != name] if siblings else []
    for each in (name, *others):
        try:
            return _build(each)
        except Exception as error:  # a library's refusals are of every kind
            first = first or error
    raise RuntimeError(f"{type(first).__name__}: {first}") from first


def _build(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    refused: list[str] = []
    for how, kind in itertools.product(_HOW, _classes(name)):
        torch.manual_seed(0)
        try:
            config = _config(name, how)
            if _parameters(kind, config) > 150_000_000:
                refused.append(f"{kind.__name__}: the shrunk configuration is still large")
                continue
            model = kind._from_config(config).eval()
        except Exception as error:
            refused.append(f"{kind.__name__}: {type(error).__name__}: {str(error)[:80]}")
            continue
        try:
            kwargs, fields, width = call_of(model, config)
        except RuntimeError as error:
            refused.append(f"{kind.__name__}: {error}")
            continue
        return (Answer(model, fields, width).eval() if fields else model), kwargs
    raise RuntimeError(refused[0] if refused else "no class")


def _parameters(kind: Any, config: Any) -> int:
    """How many parameters the class would have, without making them; 0 where it cannot be built on
    the meta device."""
    with contextlib.suppress(Exception), torch.device("meta"):
        return sum(p.numel() for p in kind._from_config(copy.deepcopy(config)).parameters())
    return 0


_HOW = ("shrunk", "filled", "anew")


def _config(name: str, how: str = "shrunk") -> Any:
    """The shrunk configuration; ``filled``: fields that the default leaves open get a value as
    well; ``anew``: constructed from the small values, so that fields which it derives from others
    follow."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    config = kind(**_small(kind())) if how == "anew" else kind()
    _shrink(config, how == "filled")
    for path, value in _OVERRIDES.get(name, {}).items():
        at = config
        *way, field = path.split(".")
        for step in way:
            at = getattr(at, step)
        setattr(at, field, value)
    for own in (config, *vars(config).values()):
        if hasattr(own, "use_cache"):
            own.use_cache = False
    return config


def _classes(name: str) -> list[Any]:
    """The classes for a model type, best first: at most two with a head, then the bare model."""
    import transformers
    from transformers.models.auto import modeling_auto

    found: dict[str, None] = {}
    for head in _HEADS:
        mapping = getattr(
            modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES" if head else "MODEL_MAPPING_NAMES", {}
        )
        classes = mapping.get(name, ())
        for each in (classes,) if isinstance(classes, str) else classes:
            if hasattr(transformers, each):
                found.setdefault(each)
    names = list(found)
    return [getattr(transformers, n) for n in dict.fromkeys((*names[:2], *names[-1:]))]
