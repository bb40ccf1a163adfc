"""How far two results lie apart."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["relative_error"]


def relative_error(ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]) -> float:
    """The largest difference over all outputs, relative to the largest magnitude of that output;
    infinite where shapes or NaNs differ."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel() == 0:
            continue
        if a.is_complex():
            a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
        x, y = a.double().cpu(), b.double().cpu()
        if not torch.equal(x.isnan(), y.isnan()):
            return float("inf")
        both = torch.isinf(x) & (x == y)
        difference = torch.where(both, 0.0, (x - y).abs()).nan_to_num(0.0, posinf=float("inf"))
        scale = y[torch.isfinite(y)].abs().max() if torch.isfinite(y).any() else torch.ones(())
        worst = max(worst, float(difference.max() / scale.clamp(min=1e-12)))
    return worst
