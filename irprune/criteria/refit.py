"""A layer's weights refitted to what its own inputs were: those that stay take over what those that
go gave, as far as the one predicts the other.

``W_f + (H_ff + ridge)^-1 H_fr W_r`` with H the products of the inputs in the original, f the inputs
that stay, r those that go: the step of the least squares problem, so that the ridge weighs the
change alone. Sinks neither go nor change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irprune.criteria.readings import Reading
from irprune.criteria.sinks import sinks_of

if TYPE_CHECKING:
    import torch

__all__ = ["RIDGE", "RIDGES", "refitted"]

# Relative to the mean diagonal of the products: what few tokens say of many is weighed down. The
# first is for what is measured before a choice; of the others a repair takes the best.
RIDGE = 0.3
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)


def refitted(
    reading: Reading, gone: torch.Tensor, ridge: float = RIDGE
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weights [b, k, o] without the inputs that ``gone`` [b, k] marks, which get zero, and what
    is to be added to the bias [b, o]; None for a layer without one."""
    import torch

    sinks = sinks_of(reading)  # first, as it reads the weights for itself
    weight = reading.weight
    out = weight.masked_fill(gone[..., None], 0.0)
    centred = reading.layer.bias is not None
    products = reading.covariance if centred else reading.second_moment
    for b in range(weight.shape[0]):
        r = gone[b].nonzero()[:, 0]
        f = (~gone[b] & ~sinks[b]).nonzero()[:, 0]
        if not len(r) or not len(f):
            continue
        h = products[b]
        left = h[f][:, f].clone()
        left.diagonal().add_(ridge * h.diagonal()[f].mean().clamp(min=1e-30))
        factor, failed = torch.linalg.cholesky_ex(left)
        if int(failed):
            continue
        step = torch.cholesky_solve(h[f][:, r] @ weight[b, r].to(h.dtype), factor)
        if bool(torch.isfinite(step).all()):
            out[b, f] += step.to(out.dtype)
    moved = (reading.mean[:, None] @ (weight - out))[:, 0] if centred else None
    return out, moved
