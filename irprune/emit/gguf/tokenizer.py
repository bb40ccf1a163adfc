"""The tokenizer of a folder as the fields of a GGUF file: tokens, merges, special tokens and the
chat template are read by the ``gguf`` package; here is decided of which kind they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["add_tokenizer"]

_LLAMA3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
_QWEN2 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"


def add_tokenizer(writer: Any, folder: Path | None, vocabulary: int) -> list[str]:
    """Add the tokenizer that lies in ``folder`` and return what the user is to be told.

    Args:
        writer: A ``gguf.GGUFWriter``.
        folder: Where the tokenizer's files lie, None where there are none.
        vocabulary: The number of tokens that the model knows.
    """
    import gguf

    file = None if folder is None else folder / "tokenizer.json"
    if folder is None or file is None or not file.exists():
        writer.add_tokenizer_model("no_vocab")
        return ["the file has no tokenizer: the model came without one"]
    held = json.loads(file.read_text(encoding="utf-8"))
    notes: list[str] = []
    pieces = held["model"].get("byte_fallback", False)
    if pieces:
        whole = folder / "tokenizer.model"
        held_tokens: Any = (
            gguf.SentencePieceVocab(folder) if whole.exists() else gguf.LlamaHfVocab(folder)
        )
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        rows = [(text, score, int(kind)) for text, score, kind in held_tokens.all_tokens()]
    else:
        kind = _pre_tokenizer(held.get("pre_tokenizer"))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind or "default")
        if not kind:
            notes.append(
                "how the tokenizer splits text before it looks for tokens has no name that is known "
                "here: the file says 'default' (tokenizer.ggml.pre)"
            )
        rows = _byte_pairs(held)
    rows += [
        (f"[PAD{n}]".encode(), -1000.0, int(gguf.TokenType.UNUSED))
        for n in range(len(rows), vocabulary)
    ]
    writer.add_token_list([text for text, _, _ in rows])
    if pieces:
        writer.add_token_scores([score for _, score, _ in rows])
    writer.add_token_types([kind for _, _, kind in rows])
    special = gguf.SpecialVocab(folder, load_merges=not pieces, n_vocab=vocabulary)
    special.add_to_gguf(writer, quiet=True)
    return notes


def _byte_pairs(held: dict[str, Any]) -> list[tuple[bytes, float, int]]:
    """Text, score and kind of each token of a byte-pair tokenizer, in the order of their ids."""
    import gguf

    rows = {
        number: (text.encode(), 0.0, int(gguf.TokenType.NORMAL))
        for text, number in held["model"]["vocab"].items()
    }
    for token in held.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        rows[token["id"]] = (token["content"].encode(), 0.0, int(kind))
    gap = (b"[UNUSED]", 0.0, int(gguf.TokenType.UNUSED))
    return [rows.get(n, gap) for n in range(max(rows) + 1)]


def _pre_tokenizer(held: dict[str, Any] | None) -> str:
    """The name in llama.cpp of how text is split before tokens are looked for; "" where none is
    known."""
    if held is None:
        return ""
    steps = held.get("pretokenizers", [held])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex", "")
        for start, name in ((_LLAMA3, "llama-bpe"), (_QWEN2, "qwen2")):
            if pattern.startswith(start):
                return name
    return ""
