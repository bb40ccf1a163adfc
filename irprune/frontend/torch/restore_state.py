"""Running a user's model and leaving it as it was: modes, attributes, torch's own switches."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from irprune.frontend.torch.fake_quantise import rounding_paused

__all__ = ["attributes_kept", "buffers_kept", "evaluating"]


@contextlib.contextmanager
def evaluating(model: torch.nn.Module, fused: bool = False) -> Iterator[None]:
    """The model in eval mode without gradients, with ``fused`` attention layers or without, and
    without the rounding of training with quantisation; every submodule's own mode is back
    afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
    except NotImplementedError:  # of exported programs, whose mode is built in
        for m in model.modules():
            m.training = False
    torch.backends.mha.set_fastpath_enabled(fused and before)
    try:
        with torch.no_grad(), rounding_paused(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        for m, mode in modes:
            m.training = mode


@contextlib.contextmanager
def attributes_kept(model: torch.nn.Module) -> Iterator[list[Any]]:
    """What ``forward`` assigns or appends in the model is undone; the list that is yielded holds it
    afterwards."""
    fresh: list[Any] = []
    saved = []
    for m in model.modules():
        own = dict(m.__dict__)
        inner = [
            (v, _content(v))
            for k, v in own.items()
            if type(v) in (dict, list, set, deque) and k != "_modules"
        ]
        saved.append((m, own, inner))
    try:
        yield fresh
    finally:
        for m, own, inner in saved:
            for container, before in [*inner, (m.__dict__, own)]:
                now = _content(container)
                if not _identical(now, before):
                    fresh += _added(now, before)
                    container.clear()
                    container.update(before) if isinstance(
                        container, (dict, set)
                    ) else container.extend(before)


def _content(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _added(now: Any, before: Any) -> list[Any]:
    if isinstance(now, dict):
        return [v for k, v in now.items() if k not in before or before[k] is not v]
    old = {id(v) for v in before}
    return [v for v in now if id(v) not in old]


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(b[k] is v for k, v in a.items())
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


@contextlib.contextmanager
def buffers_kept(model: torch.nn.Module) -> Iterator[None]:
    """What ``forward`` writes into buffers is undone."""
    held = [(b, b._version, b.detach().clone()) for b in model.buffers() if not b.is_meta]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, before in held:
                if buffer._version != version:
                    buffer.copy_(before)
