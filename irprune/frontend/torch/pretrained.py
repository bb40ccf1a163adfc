"""What captures of transformers models need: calls without a cache, and with any number of rows.

``use_cache`` is True in most configs, and the call then returns a cache of keys and values, which
is no tensor. A graph is one call over whole sequences, so it is captured without; the instance and
the folder for ``from_pretrained`` keep their cache.

Without an attention mask the library makes positions of one row and compares the batch with 1, to
find packed rows: a capture would hold for the example's batch alone. Positions for every row, which
say the same, need no such comparison."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from irprune.errors import IrpruneError

__all__ = ["any_batch", "is_pretrained", "without_bar", "without_cache"]


@contextlib.contextmanager
def without_bar() -> Iterator[None]:
    """Let transformers load a model without the bar that it draws; what it warns of is said."""
    logging: Any = import_module("transformers.utils.logging")
    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


def is_pretrained(model: Any) -> bool:
    """Whether ``model`` is a ``PreTrainedModel`` of transformers, told without importing that
    library."""
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers.")
        for kind in type(model).__mro__
    )


def without_cache(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``kwargs`` with ``use_cache=False`` where ``model`` is of transformers and would return a
    cache.

    Raises IrpruneError for a call that wants a cache by name or hands one over."""
    given = dict(kwargs or {})
    if not is_pretrained(model):
        return given
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" not in parameters:
        return given
    bound = {*list(parameters)[: len(args)], *given}
    if given.get("use_cache") or given.get("past_key_values") is not None:
        raise IrpruneError(
            "a cache of keys and values cannot be captured",
            type(model).__name__,
            "leave use_cache and past_key_values out: what is written for from_pretrained, and the "
            "instance after apply_to, keep their cache",
        )
    if "use_cache" not in bound and _caches(model.config):
        given["use_cache"] = False
    return given


@contextlib.contextmanager
def any_batch(model: Any) -> Iterator[None]:
    """Let calls of ``model`` give its decoder positions for every row, where it is of transformers
    and takes them, and the call has neither positions nor a mask."""
    base = model.base_model if is_pretrained(model) else None
    parameters = list(inspect.signature(base.forward).parameters) if base is not None else []
    if base is None or not {"input_ids", "attention_mask", "position_ids"} <= {*parameters}:
        yield
        return
    import torch

    def positions(
        module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        ids = given.get("input_ids")
        if ids is None or any(given.get(k) is not None for k in ("attention_mask", "position_ids")):
            return None
        if len(args) > parameters.index("position_ids"):
            return None
        rows, length = ids.shape
        made = torch.arange(length, device=ids.device)[None].expand(rows, length)
        return args, {**kwargs, "position_ids": made}

    held = base.register_forward_pre_hook(positions, with_kwargs=True)
    try:
        yield
    finally:
        held.remove()


def _caches(config: Any) -> bool:
    """Whether a config, or that of the text model in it, asks for a cache."""
    inner = config.get_text_config(decoder=True)
    return bool(getattr(config, "use_cache", False) or getattr(inner, "use_cache", False))
