"""A small LLaMA with a tokenizer of letters, as a folder of transformers: what tests of language
models share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

VOCABULARY = 64


def token_ids(rows: int, length: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Tokens at random [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (rows, length), generator=generator)


def letters(**special: str) -> Any:
    """A tokenizer for which each character from the space to the bracket is a token, and all else
    ``?``; ``special`` names further tokens as transformers does."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    known = {"?": 0, **{chr(n): n - 30 for n in range(32, 94)}}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="?"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="?", **special)


def llama(**config: Any) -> Any:
    """A LLaMA of two blocks with random weights; ``config`` as ``LlamaConfig`` takes it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | config)).eval()


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Write both into ``folder``, as ``from_pretrained`` reads them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
