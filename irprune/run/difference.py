"""How far outputs are off, whatever their units: what measured losses, gradients and repairs
compare models by.

Some outputs hold quantities of unlike scale side by side, as a detector's hold places in pixels and
likelihoods. A sum of squares over all of them sees the largest alone, so each channel then counts
in units of its own. Channels are the dimension of an output that weights have too; positions are
not told apart, except that quantities beside likelihoods count as much as the place where they
stand is likely to hold anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from irprune.ir.axis import find, leaves
from irprune.ir.graph import Graph, Value
from irprune.ops.registry import readers_of, role_of

__all__ = [
    "at_common_sizes",
    "channel_dims",
    "deviations",
    "divergence",
    "is_distribution",
    "presence",
    "square_off",
    "units",
]

UNLIKE = 30.0  # between the scales of channels: beyond it each counts in its own units
FEW = 4  # samples that tell how a position varies
LEAST = 0.1  # of the middle scale: channels that hardly vary do not count in less
_MADE = ("weight", "bias", "scale")


def channel_dims(graph: Graph) -> list[int | None]:
    """For each output of an analysed graph the last dimension that a weight or a bias makes; None
    where there is none, or nothing is known."""
    made = {
        find(leaf).id
        for weight in graph.weights.values()
        if any(role_of(node, i) in _MADE for node, i in readers_of(weight))
        for axis in weight.axes or ()
        for leaf in leaves(axis)
        if leaf.size != 1
    }
    return [_last(value, made) for value in graph.outputs]


def _last(value: Value, made: set[int]) -> int | None:
    axes = value.axes or ()
    found = [
        d
        for d, axis in enumerate(axes)
        if d and any(find(leaf).id in made for leaf in leaves(axis))
    ]
    return found[-1] if found else None


def is_distribution(y: torch.Tensor) -> bool:
    """Whether a floating-point tensor is probabilities over its last dimension."""
    y = y.detach()
    if y.dim() < 2 or y.shape[-1] < 2 or y.numel() == 0:
        return False
    return bool(y.min() >= 0) and bool(((y.sum(-1) - 1).abs() < 1e-3).all())


def units(y: torch.Tensor, dim: int | None) -> torch.Tensor | None:
    """The root mean square of the ``deviations`` of each channel of ``y``, to divide by, in a shape
    that broadcasts; None where channels are alike, or there are none."""
    if dim is None or y.dim() <= dim or y.shape[dim] < 2 or y.numel() == 0:
        return None
    others = [d for d in range(y.dim()) if d != dim]
    size = y.detach().double().square().mean(others, keepdim=True).sqrt()
    ranked = size.flatten().sort().values
    n = len(ranked)
    low, middle, high = (ranked[k] for k in (n // 10, n // 2, n - 1 - n // 10))
    if high <= UNLIKE * low.clamp(min=1e-30) or is_distribution(y):
        return None
    size = deviations(y.detach().double()).square().mean(others, keepdim=True).sqrt()
    middle = size.flatten().median()
    return size + LEAST * middle.clamp(min=1e-30)


def deviations(y: torch.Tensor) -> torch.Tensor:
    """How far each sample of ``y`` is from the mean over samples at its position; ``y`` itself
    where there are fewer than ``FEW``. What a detector's place says beyond where it lies is the
    size of an object, which is what an error there is to be compared with."""
    return y - y.mean(0, keepdim=True) if y.dim() and y.shape[0] >= FEW else y


def presence(y: torch.Tensor, dim: int) -> torch.Tensor | None:
    """What each element of ``y`` counts for, whose channels along ``dim`` are of unlike scales: a
    likelihood, a channel within 0..1, for 1; a quantity for what the likeliest at its place is
    likely, relative to the mean over places, so that in the mean it counts for 1 too: what is off
    at the few places that hold something is not made up for by the many that hold nothing. None
    where there are not both."""
    y = y.detach()
    others = [d for d in range(y.dim()) if d != dim]
    inside = (y.amin(others, keepdim=True) >= 0) & (y.amax(others, keepdim=True) <= 1)
    if bool(inside.all()) or not bool(inside.any()):
        return None
    likely = torch.where(inside, y, torch.zeros((), dtype=y.dtype)).amax(dim, keepdim=True)
    mean = likely.mean().clamp(min=1 / likely[0].numel())  # of one thing in each sample, at least
    return torch.where(inside, torch.ones((), dtype=y.dtype), likely / mean)


def at_common_sizes(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both, with zeros at the end of what is shorter: sizes that depend on values, as the length of
    speech does, are others after a cut."""
    if a.shape == b.shape or a.dim() != b.dim():
        return a, b
    sizes = [max(pair) for pair in zip(a.shape, b.shape, strict=True)]

    def filled(x: torch.Tensor) -> torch.Tensor:
        missing = [n - m for n, m in zip(sizes, x.shape, strict=True)]
        return torch.nn.functional.pad(x, [k for n in reversed(missing) for k in (0, n)])

    return filled(a), filled(b)


def square_off(
    ours: torch.Tensor, theirs: torch.Tensor, unit: torch.Tensor | None, dim: int | None = None
) -> tuple[float, float]:
    """The sum of squared differences, and of squares of ``theirs``, in ``unit`` (there of its
    ``deviations``, of channels along ``dim``, weighed by their ``presence``)."""
    a, b = at_common_sizes(ours.double(), theirs.double())
    off, whole = a - b, b
    if unit is not None:
        off, whole = off / unit, deviations(b) / unit
        counts = None if dim is None else presence(theirs, dim)
        if counts is not None:
            off, whole = off * counts.double().sqrt(), whole * counts.double().sqrt()
    return float(off.square().sum()), float(whole.square().sum())


def divergence(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """How far the distributions ``ours`` are from ``theirs``: four times the mean Jensen-Shannon
    divergence (Lin 1991), in nats. Near each other that is the Kullback-Leibler divergence, and it
    is at most 2.8 where they say another thing: an answer that is wrong is wrong once, however sure
    the original was. Of few samples, a mean that counts how sure hangs on one of them."""
    total, rows = 0.0, 0
    for a, b in zip(ours, theirs, strict=True):
        p, q = b.double().clamp(min=1e-9), a.double().clamp(min=1e-9)
        middle = ((p + q) / 2).log()
        total += float((p * (p.log() - middle) + q * (q.log() - middle)).sum())
        rows += p[..., 0].numel()
    return 2 * max(total, 0.0) / max(rows, 1)
