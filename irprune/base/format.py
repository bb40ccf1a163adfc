"""Numbers as people read them and as JSON takes them."""

from __future__ import annotations

from typing import Any

__all__ = ["finite", "human"]


def human(n: float) -> str:
    """A count with a thousands' suffix: 25.6 M."""
    for scale, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(n) >= scale:
            return f"{n / scale:.3g}{unit}"
    return f"{n:g}"


def finite(x: Any) -> Any:
    """``x`` with infinities and NaNs as strings, which JSON has no numbers for."""
    if isinstance(x, dict):
        return {k: finite(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [finite(v) for v in x]
    return str(x) if isinstance(x, float) and (x != x or x in (float("inf"), float("-inf"))) else x
