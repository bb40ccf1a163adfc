"""A GGUF file, written tensor by tensor with the ``gguf`` package.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from irprune.emit.gguf.model import GgufModel, rotary_of
from irprune.emit.gguf.tokenizer import add_tokenizer

__all__ = ["write_gguf"]


def write_gguf(model: GgufModel, path: Path, tokenizer: Path | None) -> list[str]:
    """Write ``path``, tensor by tensor, and return what the user is to be told.

    Args:
        model: What is written.
        path: The file.
        tokenizer: The folder that holds the tokenizer's files; without one the file has no
            vocabulary, and is called with token ids.
    """
    import gguf

    writer = gguf.GGUFWriter(path, model.architecture)
    _describe(writer, model)
    notes = [*model.notes, *add_tokenizer(writer, tokenizer, model.vocabulary)]
    for name, shape, dtype in model.shapes():
        kind = _kind(shape, dtype)
        size = math.prod(shape) * (4 if kind is gguf.GGMLQuantizationType.F32 else 2)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, value in model.tensors():
        writer.write_tensor_data(_stored(value))
    writer.close()
    return notes


def _kind(shape: Sequence[int], dtype: torch.dtype) -> Any:
    """The element type in the file; what has one dimension is in float32 there, as llama.cpp wants
    it."""
    from gguf import GGMLQuantizationType as Kind

    halves = {torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}
    return halves.get(dtype, Kind.F32) if len(shape) > 1 else Kind.F32


def _stored(value: torch.Tensor) -> NDArray[Any]:
    """The numbers of a tensor as they stand in the file."""
    if _kind(value.shape, value.dtype).name == "F32":
        value = value.float()
    bits = value.contiguous().view(torch.int16) if value.element_size() == 2 else value.contiguous()
    return bits.cpu().numpy()


def _describe(writer: Any, model: GgufModel) -> None:
    """The fields that say the sizes."""
    config = model.config
    heads, groups = zip(*model.heads, strict=True)
    writer.add_name(str(getattr(config, "_name_or_path", "") or config.model_type))
    writer.add_vocab_size(model.vocabulary)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(len(model.widths))
    writer.add_feed_forward_length(_one(model.widths))
    writer.add_head_count(_one(heads))
    writer.add_head_count_kv(_one(groups))
    writer.add_key_length(model.head_size)
    writer.add_value_length(model.head_size)
    rotary = rotary_of(config)
    if rotary:
        writer.add_rope_dimension_count(model.head_size)
        writer.add_rope_freq_base(float(rotary["rope_theta"]))
    small = getattr(config, "rms_norm_eps", None)
    if small is not None:
        writer.add_layer_norm_rms_eps(small)
    else:
        small = getattr(config, "layer_norm_epsilon", None) or config.norm_epsilon
        writer.add_layer_norm_eps(small)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _one(sizes: Any) -> Any:
    """One number where all layers have the same."""
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)
