"""What stands in a model in place of a branch that was left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["Skipped", "several_results"]


class Skipped(nn.Module):
    """Gives zeros in the shape of its first argument; with ``several`` results, None for the others
    (an attention's weights).

    Args:
        several: How many results the module gave that stood here; 0 for a single tensor.
    """

    def __init__(self, several: int = 0) -> None:
        super().__init__()
        self.several = several

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, whatever else is given."""
        x = next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
        zeros = torch.zeros_like(x)
        return (zeros, *[None] * (self.several - 1)) if self.several else zeros

    def extra_repr(self) -> str:
        """The number of results."""
        return f"several={self.several}" if self.several else ""


def several_results(
    model: nn.Module, paths: Iterable[str], args: Any, kwargs: dict[str, Any]
) -> dict[str, int]:
    """How many results the modules at ``paths`` give in one call, 0 for a single tensor."""
    found: dict[str, int] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            found[path] = len(result) if isinstance(result, (tuple, list)) else 0

        return hook

    hooks = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for h in hooks:
            h.remove()
    return found
