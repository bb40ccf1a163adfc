"""Sentence embeddings of MiniLM: how near those of the pruned model stay. Sentences and encoder are
those of ``tools/sentences.py``."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import sentences
from numpy.typing import NDArray
from task import Feed, Run, Task

__all__ = ["SENTENCES"]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="irprune-minilm-")


@functools.cache
def _file() -> Path:
    """The encoder as an ONNX file, exported once."""
    import torch

    folder = Path(_folder().name)
    model, _ = sentences.loaded()
    call = {k: torch.ones(2, 8, dtype=torch.int64) for k in ("input_ids", "attention_mask")}
    dims = {0: torch.export.Dim("n"), 1: torch.export.Dim("t", max=512)}
    torch.onnx.export(
        model,
        (),
        folder / "model.onnx",
        kwargs=call,
        input_names=list(call),
        dynamo=True,
        dynamic_shapes=dict.fromkeys(call, dims),
        external_data=False,
        verbose=False,
    )
    return folder / "model.onnx"


def _batches(texts: list[str]) -> list[Feed]:
    _, tokenizer = sentences.loaded()
    return [{k: v.numpy() for k, v in b.items()} for b in sentences.batches(tokenizer, texts)]


def _calibration(seed: int) -> list[Feed]:
    """The sentences of the half of the topics that is not tested on, some 1,500."""
    return _batches(
        [str(s) for s in np.random.default_rng(seed).permutation(sentences.pool(0, 40))]
    )


@functools.cache
def _test() -> list[Feed]:
    return _batches(sentences.sentences("test", 200, 40))


def _embedded(run: Run) -> NDArray[np.float32]:
    return np.concatenate([run(feed)[0] for feed in _test()])


SENTENCES = Task(
    "sentences",
    _file,
    _calibration,
    lambda: {k: v[:1] for k, v in _test()[len(_test()) // 2].items()},
    _embedded,
    lambda ours, theirs: float((ours * theirs).sum(-1).mean()),
    "mean cosine of embeddings",
    {0.8: 0.98, 0.7: 0.965},
)
