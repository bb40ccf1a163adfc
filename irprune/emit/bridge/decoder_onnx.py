"""A decoder of transformers as ONNX that goes token by token: with the cache of keys and values as
inputs and outputs.

Beside ``input_ids`` [batch, length], ``attention_mask`` [batch, past + length] and, of models
that know them, ``position_ids`` [batch, length] it takes ``past_key_values.N.key`` and ``.value``
[batch, heads, past, head_dim] of every layer that has a cache, and gives ``logits`` and
``present.N.key`` and ``.value``, the names that runtimes for decoders look for. Batch, length and
past are open; a past of 0 begins a text. Layers whose attention was left out have none. Positions
are counted from the first token that is no padding."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from irprune.base.atomic_write import atomic_write
from irprune.base.quiet import quiet
from irprune.errors import IrpruneError, gist
from irprune.frontend.onnx.file import data_beside
from irprune.frontend.torch.restore_state import evaluating
from irprune.run.stored_tensor import module_device, state_bytes

__all__ = ["cache_names", "cache_shapes", "export_decoder", "takes_positions"]

LIMIT = 1_800_000_000  # bytes of weights up to which one file is written
ROWS, LENGTH, PAST = 2, 3, 5  # of the example; unlike each other, so that none is taken for another

Shapes = dict[int, tuple[int, int, int]]  # layer -> heads, size of a key, size of a value


def cache_shapes(model: Any) -> Shapes:
    """For each layer with a cache its heads and the sizes of a key and a value of one token. Raises
    IrpruneError for a model whose cache is of another kind."""
    cache = None
    if not model.config.is_encoder_decoder and model.can_generate():
        here = module_device(model)
        ids = torch.ones((1, 2), dtype=torch.int64, device=here)
        with torch.no_grad(), evaluating(model):
            cache = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    out: Shapes = {}
    for number, layer in enumerate(getattr(cache, "layers", ())):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if isinstance(keys, torch.Tensor) and isinstance(values, torch.Tensor) and keys.dim() == 4:
            out[number] = keys.shape[1], keys.shape[3], values.shape[3]
    if not out:
        raise IrpruneError(
            "the model has no cache of keys and values",
            type(model).__name__,
            "write it without the cache",
        )
    return out


def cache_names(shapes: Shapes, prefix: str = "past_key_values") -> list[str]:
    """The names of the inputs (or, with ``present``, of the outputs) that hold the cache."""
    return [f"{prefix}.{n}.{part}" for n in shapes for part in ("key", "value")]


def takes_positions(model: Any) -> bool:
    """Whether the file of ``model`` has an input ``position_ids``."""
    return "position_ids" in inspect.signature(model.forward).parameters


class _Step(nn.Module):
    """The decoder with its cache as tensors."""

    def __init__(self, model: Any, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for at, layer in enumerate(self.layers):
            cache.update(past[2 * at], past[2 * at + 1], layer)
        made = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            **({} if position_ids is None else {"position_ids": position_ids}),
        )
        held = [made.past_key_values.layers[n] for n in self.layers]
        return made.logits, [t for layer in held for t in (layer.keys, layer.values)]


def export_decoder(model: Any, path: str | Path) -> Path:
    """Write ``model``, a decoder of transformers, with its cache to ``path``. Raises IrpruneError
    for other models and where torch's exporter refuses."""
    path = Path(path)
    shapes = cache_shapes(model)
    first = next(model.parameters())
    ids = torch.ones((ROWS, LENGTH), dtype=torch.int64, device=first.device)
    mask = torch.ones((ROWS, PAST + LENGTH), dtype=torch.int64, device=first.device)
    positions = torch.arange(PAST, PAST + LENGTH, device=first.device).expand(ROWS, LENGTH)
    own = ["position_ids"] if takes_positions(model) else []
    past = [
        torch.zeros((ROWS, heads, PAST, wide), dtype=first.dtype, device=first.device)
        for heads, *both in shapes.values()
        for wide in both
    ]
    some = torch.export.Dim.DYNAMIC
    size = state_bytes(model)
    step = _Step(model, tuple(shapes)).eval()
    with atomic_write(path, data_beside) as draft, quiet(), evaluating(model), torch.no_grad():
        try:
            torch.onnx.export(
                step,
                (ids, mask, positions.contiguous() if own else None, past),
                f=str(draft / path.name),
                dynamo=True,
                verbose=False,
                input_names=["input_ids", "attention_mask", *own, *cache_names(shapes)],
                output_names=["logits", *cache_names(shapes, "present")],
                dynamic_shapes=(
                    {0: some, 1: some},
                    {0: some, 1: some},
                    {0: some, 1: some} if own else None,
                    [{0: some, 2: some} for _ in past],
                ),
                external_data=size > LIMIT,
            )
        except (IrpruneError, OSError):
            raise
        except Exception as refused:  # the exporter wraps every failure in classes of its own
            raise IrpruneError(
                f"torch.onnx.export refuses the decoder with its cache: {gist(refused)}",
                type(model).__name__,
                "write it without the cache",
            ) from refused
    return path
