"""A decoder of transformers as a folder of onnxruntime-genai: its ONNX file with the cache of keys
and values, ``genai_config.json`` and the files of its tokenizer."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from irprune.emit.bridge.decoder_onnx import cache_shapes, export_decoder
from irprune.emit.torch.pretrained_folder import copy_tokenizer
from irprune.errors import IrpruneError

__all__ = ["FILE", "genai", "write_genai"]

FILE = "model.onnx"
_CONTEXT = 2048  # tokens, of a model whose config has no greatest length
_SAID = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def genai() -> Any:
    """The package onnxruntime-genai; None where it is not installed."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        return None
    return importlib.import_module("onnxruntime_genai")


def write_genai(model: Any, folder: Path) -> Path:
    """Write ``model`` into ``folder``; returns the path of its ONNX file. Raises IrpruneError for a
    model without such a cache, for one whose layers do not all have one or that computes in 64
    bits, and where torch's exporter refuses."""
    if next(model.parameters()).element_size() > 4:
        raise IrpruneError(
            "onnxruntime-genai reads logits of 16 and 32 bits, and the model computes in 64",
            type(model).__name__,
            "give it in float32: model.float()",
        )
    shapes = cache_shapes(model)
    layers = int(model.config.get_text_config().num_hidden_layers)
    if len(shapes) != layers:
        missing = next(n for n in range(layers) if n not in shapes)
        raise IrpruneError(
            f"onnxruntime-genai wants keys and values of every layer, and layer {missing} has none",
            type(model).__name__,
            "prune with uniform=True (--uniform), or write the ONNX file: -o small.onnx --cache",
        )
    path = export_decoder(model, folder / FILE)
    told = json.dumps(_config(model), indent=2)
    (folder / "genai_config.json").write_text(told + "\n", encoding="utf-8")
    copy_tokenizer(model, folder)
    return path


def _config(model: Any) -> dict[str, Any]:
    """What ``genai_config.json`` says of ``model``; names of inputs and outputs are the usual
    ones."""
    config, said = model.config.get_text_config(), model.generation_config
    heads, key, _ = cache_shapes(model)[0]
    context = int(getattr(config, "max_position_embeddings", None) or _CONTEXT)
    ends = _first(said.eos_token_id, config.eos_token_id, ())
    numbers = {
        "bos_token_id": _first(said.bos_token_id, config.bos_token_id),
        "eos_token_id": ends,
        "pad_token_id": _first(
            said.pad_token_id, config.pad_token_id, *(ends if isinstance(ends, list) else (ends,))
        ),
    }
    chosen = {name: getattr(said, name, None) for name in _SAID}
    return {
        "model": {
            "type": "decoder",
            **{name: number for name, number in numbers.items() if number not in (None, ())},
            "context_length": context,
            "vocab_size": int(config.vocab_size),
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": FILE,
                "hidden_size": int(config.hidden_size),
                "num_attention_heads": int(config.num_attention_heads),
                "num_hidden_layers": int(config.num_hidden_layers),
                "num_key_value_heads": heads,
                "head_size": key,
            },
        },
        "search": {
            "max_length": context,
            "past_present_share_buffer": False,  # the cache grows token by token
            **{name: value for name, value in chosen.items() if value is not None},
        },
    }


def _first(*many: Any) -> Any:
    """The first that is said; None where none is."""
    return next((one for one in many if one is not None), None)
