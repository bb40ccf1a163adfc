"""Run as a process of its own: load a folder with ``from_pretrained`` and compare what it computes
with what was recorded, in one call and, for a decoder, token after token with its cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from irprune.base.tolerance import FLOAT32
from irprune.frontend.torch.stored_model import stored_model
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors
from irprune.run.precision import has_half_floats
from irprune.run.stored_tensor import moved

__all__ = ["compare"]


def compare(folder: str, data: str, kind: str, trust: bool, stored: bool = False) -> str:
    """Why the model in ``folder``, loaded by the class ``kind`` of transformers, is not the
    recorded one; "" where it is. ``trust`` lets it run the model file that lies in the folder, and
    what is ``stored`` is read when it is used."""
    import transformers

    held = torch.load(data, weights_only=True)
    expected: list[torch.Tensor] = held["expected"]
    loader = getattr(transformers, kind)
    dtype = expected[0].dtype if expected[0].is_floating_point() else None
    told = {"local_files_only": True, "trust_remote_code": trust}
    if stored:
        config = transformers.AutoConfig.from_pretrained(folder, **told)
        model = stored_model(loader, config, Path(folder), trust_remote_code=trust, dtype=dtype)
    else:
        model = loader.from_pretrained(folder, dtype=dtype, **told)
    model.eval()
    args, kwargs = held["args"], held["kwargs"]
    with torch.no_grad():
        ours = flat_tensors(model(*args, **kwargs))
        error = relative_error(ours, expected)
        if not error <= FLOAT32:
            return f"it computes something else (error {error:.1e})"
        if has_half_floats(model):
            # In 16 bits a sum over a cache rounds otherwise
            model = moved(model, torch.device("cpu"), torch.float32)
        return _stepwise(model, args, kwargs)


def _stepwise(model: Any, args: list[Any], kwargs: dict[str, Any]) -> str:
    """Why a decoder gives other logits with its cache than without; "" where it does not, or where
    the call is none of token ids alone."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    mask = kwargs.get("attention_mask")
    others = set(kwargs) - {"input_ids", "attention_mask", "use_cache"}
    whole_mask = mask is None or bool((mask == 1).all())
    if len(args) > 1 or others or not model.can_generate() or not whole_mask:
        return ""
    if model.config.is_encoder_decoder or ids is None or ids.shape[1] < 2:
        return ""
    whole = model(ids, use_cache=False).logits
    first = model(ids[:, :-1], use_cache=True)
    if getattr(first, "past_key_values", None) is None:
        return ""
    last = model(ids[:, -1:], past_key_values=first.past_key_values, use_cache=True).logits
    error = relative_error([last[:, -1]], [whole[:, -1]])
    return "" if error <= FLOAT32 else f"with its cache it computes something else ({error:.1e})"


if __name__ == "__main__":
    _, place, call, name, *words = sys.argv
    failure = compare(place, call, name, "trust" in words, "stored" in words)
    if failure:
        print(failure)
        sys.exit(1)
