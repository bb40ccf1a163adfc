"""A decoder beside its ONNX file with a cache: a text is read and gone on with token by token on
onnxruntime, in a batch with padding, and every step's logits are compared with those of the model
in one call without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from irprune.base.tolerance import PARITY, PARITY_HALF
from irprune.emit.bridge.decoder_onnx import cache_names, cache_shapes, takes_positions
from irprune.frontend.torch.restore_state import evaluating
from irprune.run.error import array_error
from irprune.run.precision import has_half_floats
from irprune.run.session import run_session, session
from irprune.validate.parity import Parity

__all__ = ["compare_decoder"]

ROWS, LENGTH, STEPS = 3, 7, 5  # other than those of the export


def compare_decoder(model: Any, path: str | Path, device: str = "auto") -> Parity:
    """The worst error of the logits, prompt and each further token, and whether both went on with
    the same tokens: one that differs counts as an error of 1, but in 16-bit floats, where logits
    that are all but equal may change places."""
    shapes = cache_shapes(model)
    first = next(model.parameters())
    half = has_half_floats(model)
    kind = np.dtype(str(first.dtype).removeprefix("torch."))
    running = session(str(path), device)
    draw = torch.Generator().manual_seed(0)
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    ids = torch.randint(0, vocabulary, (ROWS, LENGTH), generator=draw)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # padding on the left, as generate wants it
    past: dict[str, NDArray[Any]] = {
        name: np.zeros((ROWS, heads, 0, wide), kind)
        for name, (heads, wide) in zip(
            cache_names(shapes),
            ((heads, w) for heads, *both in shapes.values() for w in both),
            strict=True,
        )
    }
    worst: dict[str, float] = {}
    fresh = ids
    with torch.no_grad(), evaluating(model):
        for step in range(STEPS):
            feed = {"input_ids": fresh.numpy(), "attention_mask": mask.numpy(), **past}
            if takes_positions(model):
                feed["position_ids"] = _positions(mask)[:, -fresh.shape[1] :].numpy()
            made = run_session(running, feed)
            said = made["logits"]
            past = {
                name: made[out]
                for name, out in zip(
                    cache_names(shapes), cache_names(shapes, "present"), strict=True
                )
            }
            expected = _whole(model, ids, mask, first.device)[:, -said.shape[1] :]
            seen = mask[:, -said.shape[1] :].bool().numpy()  # what padding says counts for nothing
            error = array_error(said[seen], expected[seen])
            worst["logits"] = max(worst.get("logits", 0.0), error)
            own, theirs = said[:, -1].argmax(-1), expected[:, -1].argmax(-1)
            worst[f"token {step + 1}"] = float(not (half or np.array_equal(own, theirs)))
            fresh = torch.from_numpy(theirs)[:, None]
            ids = torch.cat((ids, fresh), 1)
            mask = torch.cat((mask, torch.ones_like(fresh)), 1)
    tolerance = PARITY_HALF if half else PARITY
    provider = running.get_providers()[0]
    return Parity(max(worst.values()), provider, tolerance=tolerance, outputs=worst)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Counted from the first token that is no padding, as ``generate`` does."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _whole(model: Any, ids: torch.Tensor, mask: torch.Tensor, here: torch.device) -> NDArray[Any]:
    """The logits of one call without a cache."""
    more = {"position_ids": _positions(mask).to(here)} if takes_positions(model) else {}
    made = model(input_ids=ids.to(here), attention_mask=mask.to(here), use_cache=False, **more)
    logits: NDArray[Any] = made.logits.float().cpu().numpy()
    return logits
