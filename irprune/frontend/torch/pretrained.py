"""What captures of transformers models need: calls without a cache, and with any number of rows.

``use_cache`` is True in most configs, and the call then returns a cache of keys and values, which
is no tensor. A graph is one call over whole sequences, so it is captured without; the instance and
the folder for ``from_pretrained`` keep their cache.

Without an attention mask the library makes positions of one row and compares the batch with 1, to
find packed rows: a capture would hold for the example's batch alone. In positions that it makes
itself there are none."""

from __future__ import annotations

import contextlib
import inspect
import sys
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
    """Let a model of transformers that makes its own positions not look for packed rows in them, if
    it is given neither positions nor a mask: it makes none, and would compare the batch with 1."""
    masks = sys.modules.get("transformers.masking_utils")
    held = vars(masks).get("_preprocess_mask_arguments") if masks is not None else None
    base = model.base_model if is_pretrained(model) else None
    parameters = list(inspect.signature(base.forward).parameters) if base is not None else []
    takes = {*parameters} >= {"input_ids", "attention_mask", "position_ids"}
    if (
        base is None
        or held is None
        or not takes
        or "position_ids" not in inspect.signature(held).parameters
    ):
        yield
        return
    made_here: list[bool] = []

    def entering(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        made_here.append(
            all(given.get(name) is None for name in ("attention_mask", "position_ids"))
        )

    def leaving(module: Any, args: Any, result: Any) -> None:
        made_here.pop()

    def without_packing(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(held).bind(*args, **kwargs)
        if made_here and made_here[-1]:
            bound.arguments["position_ids"] = None
        return held(*bound.args, **bound.kwargs)

    hooks = (
        base.register_forward_pre_hook(entering, with_kwargs=True),
        base.register_forward_hook(leaving, always_call=True),
    )
    try:
        vars(masks)["_preprocess_mask_arguments"] = without_packing
        yield
    finally:
        vars(masks)["_preprocess_mask_arguments"] = held
        for hook in hooks:
            hook.remove()


def _caches(config: Any) -> bool:
    """Whether a config, or that of the text model in it, asks for a cache."""
    inner = config.get_text_config(decoder=True)
    return bool(getattr(config, "use_cache", False) or getattr(inner, "use_cache", False))
