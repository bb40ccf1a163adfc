"""What onnxruntime-genai says of a folder, beside the model that it was written of: a text is read
and gone on with, token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irprune.base.tolerance import PARITY, PARITY_HALF
from irprune.emit.bridge.decoder_onnx import takes_positions
from irprune.emit.bridge.genai_folder import FILE, genai
from irprune.errors import gist
from irprune.frontend.torch.restore_state import evaluating
from irprune.run.error import array_error
from irprune.run.precision import has_half_floats
from irprune.run.stored_tensor import module_device
from irprune.validate.read_back import ReadBack, timed

__all__ = ["compare_genai"]

LENGTH, STEPS = 7, 8


def compare_genai(model: Any, folder: Path) -> ReadBack | None:
    """The worst error of the logits of the prompt's last token and of each further one, and whether
    the same tokens followed (but in 16-bit floats, as in ``compare_decoder``); None where
    onnxruntime-genai is not installed."""
    package = genai()
    if package is None:
        return None

    def compared() -> tuple[float, str]:
        try:
            return _compared(package, model, folder)
        except RuntimeError as refused:  # what genai raises
            return 0.0, f"it does not run: {gist(refused)}"

    found = timed(FILE, f"onnxruntime-genai {package.__version__}", compared)
    return replace(found, tolerance=PARITY_HALF if has_half_floats(model) else PARITY)


def _compared(package: Any, model: Any, folder: Path) -> tuple[float, str]:
    """The error, and the first token that differs."""
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    ids = torch.randint(0, vocabulary, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    running = package.Model(str(folder))
    how = package.GeneratorParams(running)
    how.set_search_options(do_sample=False, max_length=LENGTH + STEPS, repetition_penalty=1.0)
    writer = package.Generator(running, how)
    writer.append_tokens(ids.numpy().astype(np.int32))
    worst = 0.0
    with torch.no_grad(), evaluating(model):
        while not writer.is_done():
            said = np.asarray(writer.get_logits(), np.float32).reshape(-1, vocabulary)[-1]
            expected = _logits(model, ids)
            worst = max(worst, array_error(said, expected.numpy()))
            writer.generate_next_token()
            followed, meant = int(writer.get_sequence(0)[-1]), int(expected.argmax())
            if followed != meant and not has_half_floats(model):
                return worst, f"token {ids.shape[1] + 1} is {followed}, not {meant}"
            ids = torch.cat((ids, torch.tensor([[followed]])), 1)
    return worst, ""


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of the token behind ``ids``, in one call without a cache."""
    here = module_device(model)
    more = {}
    if takes_positions(model):
        more["position_ids"] = torch.arange(ids.shape[1], device=here)[None]
    made = model(input_ids=ids.to(here), use_cache=False, **more)
    logits: torch.Tensor = made.logits[0, -1].float().cpu()
    return logits
