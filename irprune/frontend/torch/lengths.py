"""``len(x)`` of a tensor, which Python makes a plain number of.

While forward is captured it keeps an open size open, as ``x.shape[0]`` does, in the files that the
classes of the user's modules are from."""

from __future__ import annotations

import builtins
import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from irprune.frontend.torch.build import TORCH

__all__ = ["lengths_left_open"]


@contextlib.contextmanager
def lengths_left_open(model: nn.Module) -> Iterator[None]:
    """``len`` of tensors as a size, in the files of ``model`` and its modules; those that have a
    ``len`` of their own keep it."""
    given = [scope for scope in _scopes(model) if "len" not in scope]
    for scope in given:
        scope["len"] = _length
    try:
        yield
    finally:
        for scope in given:
            del scope["len"]


def _length(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and x.dim():
        return x.shape[0]
    return builtins.len(x)


def _scopes(model: nn.Module) -> list[dict[str, Any]]:
    """The global names of the files that the classes of the user's modules are from."""
    found: dict[int, dict[str, Any]] = {}
    for kind in dict.fromkeys(map(type, model.modules())):
        forward = inspect.unwrap(getattr(kind, "forward", kind))
        scope = getattr(forward, "__globals__", None)
        if scope is not None and not str(scope.get("__file__", "")).startswith(TORCH):
            found[id(scope)] = scope
    return list(found.values())
