"""The line of the user's code that a call of ``forward`` is at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from irprune.frontend.torch.build import LAYERS, TORCH

__all__ = ["HERE", "run_forward", "user_line"]

_PACKAGE = Path(__file__).parents[2]
# what runs between the user's line and the recording of what it calls
HERE = tuple(str(_PACKAGE / part) for part in ("frontend", "ir", "ops", "run"))


def run_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``model``; lines are looked for up to here."""
    return model(*args, **kwargs)


def user_line() -> str:
    """``file:line`` of the innermost frame of the user's, or of the innermost layer where all of
    ``forward`` is torch's."""
    frame = sys._getframe(2)
    layer = ""
    while frame is not None and frame.f_code is not run_forward.__code__:
        file = frame.f_code.co_filename
        if not file.startswith(TORCH):
            if not file.startswith(HERE):
                return f"{file}:{frame.f_lineno}"
        elif not layer and file.startswith(LAYERS) and not file.endswith("/module.py"):
            layer = f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return layer
