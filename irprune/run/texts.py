"""Texts as rows of token numbers: what language models are calibrated and measured on.

A text is a file (``.txt``, ``.md``; ``.jsonl`` with a "text" in each line) or a folder of them.
Documents are the files, the lines of ``.jsonl``, and within a file what form feeds or lines with
``<|endoftext|>`` alone divide. Rows are of one length, so that no padding is needed, and come from
the documents in turn, so that few rows speak for many documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from irprune.errors import IrpruneError, gist
from irprune.ir.dtype import is_integer
from irprune.ir.graph import Graph
from irprune.ir.size import Sym
from irprune.run.images import IMAGES

__all__ = ["TEXTS", "Document", "documents", "has_texts", "items_of", "rows_of", "tokenizer_in"]

ROWS, LENGTH, TOGETHER = 64, 256, 4  # rows of a text to calibrate on, their tokens, rows of an item

TEXTS = (".txt", ".md", ".jsonl")
_DIVIDER = re.compile(r"\f|^\s*<\|endoftext\|>\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """A text that hangs together, and the file it is from."""

    file: Path
    text: str


def has_texts(path: Path) -> bool:
    """Whether ``path`` is a text, or a folder with texts and nothing else that is calibrated on."""
    if path.is_file():
        return path.suffix.lower() in TEXTS
    if not path.is_dir():
        return False
    found = {p.suffix.lower() for p in path.rglob("*")}
    return any(kind in found for kind in TEXTS) and not found & {".npy", ".npz", *IMAGES}


def documents(path: Path) -> list[Document]:
    """The documents at ``path``, files in the order of their names. Raises IrpruneError where there
    are none."""
    if not path.exists():
        raise IrpruneError("no such text", str(path), "give a file of text or a folder of them")
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXTS)
    found = [Document(f, t) for f in files for t in _parts(f) if t.strip()]
    if not found:
        raise IrpruneError(
            "no text here",
            str(path),
            f"give files that end in {', '.join(TEXTS)}, with text in them",
        )
    return found


def _parts(file: Path) -> Iterator[str]:
    try:
        whole = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as broken:
        raise IrpruneError(
            f"cannot be read: {gist(broken)}", str(file), "save it as UTF-8"
        ) from broken
    if file.suffix.lower() != ".jsonl":
        yield from _DIVIDER.split(whole)
        return
    for number, line in enumerate(whole.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as broken:
            raise IrpruneError(
                f"no JSON: {gist(broken)}", f"{file}:{number}", "one object a line"
            ) from broken
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise IrpruneError(
                'no "text" in it', f"{file}:{number}", 'write {"text": "..."} in each line'
            )
        yield entry["text"]


def rows_of(
    found: Sequence[Document], tokenizer: Any, length: int, count: int | None = None
) -> torch.Tensor:
    """Rows [rows, length] of token numbers: a row of each document in turn, in an order that their
    texts alone decide where ``count`` says how many; all of them in their order otherwise.

    Raises IrpruneError where no document gives a row."""
    if count is not None:
        found = sorted(found, key=lambda d: sha256(d.text.encode()).hexdigest())
    parts: list[list[list[int]]] = []
    left = count
    for document in found:
        ids = tokenizer(document.text, truncation=False).input_ids
        parts.append([ids[at : at + length] for at in range(0, len(ids) - length + 1, length)])
        if left is not None:
            left -= bool(parts[-1])
            if left <= 0:
                break
    if count is None:
        rows = [row for part in parts for row in part]
    else:
        deepest = max(map(len, parts), default=0)
        rows = [p[at] for at in range(deepest) for p in parts if at < len(p)][:count]
    if not rows:
        raise IrpruneError(
            f"no document has {length} tokens",
            str(found[0].file),
            "give longer texts, or say a shorter length",
        )
    return torch.tensor(rows)


def items_of(path: Path, graph: Graph) -> list[dict[str, Any]]:
    """The texts at ``path`` as calibration items for ``graph``: ``ROWS`` rows of ``LENGTH`` tokens,
    fewer where there is less text, as long as its example where its length is fixed.

    The tokenizer is that beside the model. Raises IrpruneError where there is none, and for a model
    that takes no token numbers."""
    names = [v.name for v in graph.inputs]
    if not graph.inputs or graph.inputs[0].rank != 2 or not is_integer(graph.inputs[0].dtype):
        raise IrpruneError(
            f"texts for a model that takes {', '.join(names)}",
            str(path),
            "texts fit models whose first input is token numbers [batch, length]",
        )
    fixed = graph.inputs[0].shape[1]
    length = LENGTH if isinstance(fixed, Sym) else int(fixed)
    folder = graph.source.folder() if graph.source is not None else ""
    rows = rows_of(documents(path), tokenizer_in(folder), length, ROWS)
    first = names[0] if names[0] not in ("args_0", "input") else "input_ids"
    return [
        {first: some, "attention_mask": torch.ones_like(some)}
        for some in torch.split(rows, TOGETHER)
    ]


def tokenizer_in(folder: str) -> Any:
    """The tokenizer of a folder of transformers. Raises IrpruneError where there is none."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise IrpruneError(
            "texts, but transformers is not installed", folder, "pip install transformers"
        ) from None
    if not folder or not Path(folder).is_dir():
        raise IrpruneError(
            "texts, and nothing says what makes tokens of them",
            folder or "calibration",
            "load the model from a folder with its tokenizer, or give rows of token numbers",
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as failed:
        raise IrpruneError(
            f"no tokenizer there: {gist(failed)}",
            folder,
            "save the tokenizer beside the model: tokenizer.save_pretrained(FOLDER)",
        ) from failed
