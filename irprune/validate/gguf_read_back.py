"""A GGUF file that was written, read again: its numbers as the ``gguf`` package reads and as
transformers rearranges them, and, where llama.cpp is installed (``llama-cpp-python``), its logits
for token ids beside those of the module."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irprune.emit.gguf.model import GgufModel
from irprune.frontend.torch.source import TorchSource
from irprune.run.error import array_error, relative_error
from irprune.run.inputs import flat_tensors, to_device
from irprune.run.precision import has_half_floats
from irprune.run.stored_tensor import module_device, read
from irprune.validate.read_back import ReadBack, timed

__all__ = ["read_back_gguf", "run_gguf"]

_TOKENS = 64  # of a row, at most
_WHOLE, _HALF = 1e-2, 5e-2  # llama.cpp has tables of activations in 16 bits, whatever the weights


def read_back_gguf(path: Path, model: GgufModel) -> ReadBack:
    """Compare the numbers and sizes in the file ``path`` with those of ``model``."""

    def compared() -> tuple[float, str]:
        import gguf

        reader = gguf.GGUFReader(path)
        held = {tensor.name: tensor for tensor in reader.tensors}
        meant_names = {*model.original, *model.added}
        if held.keys() != meant_names:
            return 0.0, f"tensors {sorted(held.keys() ^ meant_names)[:3]}"
        differs = _other_sizes(reader, model)
        if differs:
            return 0.0, differs
        worst = 0.0
        for name, meant in model.original.items():
            found = gguf.dequantize(held[name].data, held[name].tensor_type)
            there = torch.from_numpy(np.array(model.reader(name).process(found, name).weights))
            if there.shape != meant.shape:
                return 0.0, f"{name} has the shape {tuple(there.shape)}"
            worst = max(worst, relative_error([there], [read(meant).float().cpu()]))
        return worst, ""

    return timed(path.name, "gguf and transformers", compared)


def _other_sizes(reader: Any, model: GgufModel) -> str:
    """The first size that the file says otherwise."""
    kind = model.architecture
    for name, meant in (
        ("block_count", [len(model.widths)]),
        ("embedding_length", [model.hidden]),
        ("feed_forward_length", model.widths),
        ("attention.head_count", [many for many, _ in model.heads]),
        ("attention.head_count_kv", [many for _, many in model.heads]),
        ("attention.key_length", [model.head_size]),
    ):
        held = reader.fields[f"{kind}.{name}"]
        said = [int(held.parts[place][0]) for place in held.data]
        if said != meant and said * len(meant) != meant:
            return f"{name} is {said}, not {meant}"
    return ""


def run_gguf(path: Path, module: torch.nn.Module, source: TorchSource) -> ReadBack | None:
    """Compare the logits of llama.cpp, run in a process of its own, with those of ``module`` for
    the token ids of its recorded call; None where llama.cpp is not installed or the call has no
    token ids."""
    ids = _token_ids(source)
    if ids is None or importlib.util.find_spec("llama_cpp") is None:
        return None
    here = module_device(module)
    given = to_device((tuple(source.args), dict(source.kwargs)), here)
    given[1].pop("attention_mask", None)
    if "attention_mask" in source.kwargs:
        given[1]["attention_mask"] = torch.ones_like(source.kwargs["attention_mask"]).to(here)
    with torch.no_grad():
        logits = flat_tensors(module(*given[0], **given[1]))[0].float().cpu().numpy()
    half = has_half_floats(module)

    def compared() -> tuple[float, str]:
        with tempfile.TemporaryDirectory(prefix="irprune-") as aside:
            asked, answer = Path(aside) / "ids.npy", Path(aside) / "logits.npy"
            np.save(asked, ids[:, :_TOKENS].cpu().numpy())
            done = subprocess.run(
                [sys.executable, "-c", _RUN, str(path), str(asked), str(answer)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not answer.exists():
                lines = [x for x in done.stderr.splitlines() if "rror" in x] or ["it ended early"]
                return 0.0, f"llama.cpp does not run it: {lines[0].strip()}"
            return array_error(np.load(answer), logits[:, :_TOKENS]), ""

    return replace(timed(path.name, "llama.cpp", compared), tolerance=_HALF if half else _WHOLE)


def _token_ids(source: TorchSource) -> torch.Tensor | None:
    found = source.kwargs.get("input_ids", source.args[0] if source.args else None)
    fits = isinstance(found, torch.Tensor) and found.ndim == 2 and not found.is_floating_point()
    return found if fits else None


_RUN = """
import sys
import numpy
from llama_cpp import Llama

path, asked, answer = sys.argv[1:]
rows = numpy.load(asked)
wide = {"type_k": 0, "type_v": 0}  # the cache in float32
model = Llama(path, n_ctx=max(rows.shape[1], 32), logits_all=True, n_threads=1, verbose=True, **wide)
found = []
for row in rows:
    model.reset()
    model.eval(row.tolist())
    found.append(numpy.array(model.scores[: len(row)]))
numpy.save(answer, numpy.stack(found))
"""
