"""Calibration data made from nothing but the model: inputs under which its batch norms see the
means and deviations that they have stored.

Where there is no data, the statistics in the model are what is left of it. Inputs begin as noise
with the spectrum of natural pictures (power that falls with the square of the frequency: Field
1987), and gradient descent moves them until the activations before each batch norm have the stored
mean and deviation, as in ZeroQ (Cai et al., CVPR 2020) and DeepInversion (Yin et al., CVPR 2020).
Outputs that are classes are made certain for each input and various over all of them, a little.
Models without batch norms get the spectrum and the classes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from irprune.base.progress import tell
from irprune.ir.dtype import element_type, is_integer, is_real
from irprune.ir.graph import Graph, Node, Value
from irprune.ir.size import probe_of
from irprune.ops.arrays import as_tensor
from irprune.ops.dtypes import TO_TORCH
from irprune.run.activations import activations
from irprune.run.calibration import ACTIVATIONS, Calibration
from irprune.run.difference import is_distribution
from irprune.run.inputs import drawn, index_limits
from irprune.run.interpret import evaluate
from irprune.run.norm_statistics import NormStatistics
from irprune.run.precision import computing_type
from irprune.run.ranks import current

__all__ = ["Effort", "planned", "synthetic"]

WORK = 1.5e12  # multiply-accumulates that descent may cost: about a minute of one core
STEPS = 100  # of descent, at most
BLIND = 50  # where no statistics hold the inputs near to what the model has seen
FEWEST = 8  # samples and steps below which it is not worth while
CERTAIN = 0.1  # the weight of certain and various classes beside the statistics
CHUNK = 64  # samples that descend together


@dataclass(frozen=True)
class Effort:
    """How many ``samples`` are drawn, and for how many ``steps`` they descend."""

    samples: int
    steps: int

    @property
    def forwards(self) -> int:
        """Forward passes over the samples that it costs: one step is three."""
        return 3 * self.steps


def planned(macs: float, shapes: Sequence[tuple[int, ...]]) -> Effort:
    """What ``WORK`` pays for a model of ``macs`` for one sample: fewer samples of larger inputs,
    whose positions are many rows each, and as many steps as are left."""
    positions = max((prod(s[2:]) for s in shapes if len(s) > 2), default=1)
    samples = 256 if positions <= 1024 else 64 if positions <= 1 << 14 else 32
    affordable = WORK / (3 * max(macs, 1.0))
    while samples > FEWEST and samples * STEPS / 2 > affordable:
        samples //= 2
    steps = min(STEPS, int(affordable / samples))
    return Effort(samples, steps if steps >= FEWEST else 0)


def synthetic(
    graph: Graph,
    shapes: Sequence[tuple[int, ...]],
    plan: Effort,
    statistics: Sequence[NormStatistics] = (),
    *,
    within: tuple[float, float] | None = None,
    seed: int = 0,
) -> Calibration:
    """Inputs for ``graph``, made once; ranks that work together make some each.

    Args:
        shapes: of the inputs; the first dimension of each is one call's number of samples.
        plan: how many, and how long they descend.
        statistics: what activations are to look like, from ``irprune.run.norm_statistics``.
        within: the least and the largest value of floating-point inputs, where they are known.
        seed: the same gives the same inputs.
    """
    draw = np.random.default_rng(seed)
    own = [s[0] if s else 1 for s in shapes]
    free = all(n == own[0] for n in own)  # the first dimension counts samples
    taken = None
    if free and plan.samples:
        other = 2 if own[:1] == [1] else 1
        few = _drawn(graph, shapes, other, within, np.random.default_rng(seed))
        try:
            taken = activations(graph, tuple(few), other)
        except RuntimeError:  # a file that names their number, as in a Reshape
            free = False
    calls = max(1, -(-plan.samples // CHUNK)) if free else max(1, plan.samples // 8)
    count = min(CHUNK, plan.samples) if free else own[0]
    if taken is not None and free and plan.steps and count > FEWEST:
        room = taken.fitting(2 * ACTIVATIONS, derived=True)
        count = max(FEWEST, min(count, room))
        calls = max(1, -(-plan.samples // count))
    begun = [_drawn(graph, shapes, count if free else None, within, draw) for _ in range(calls)]

    def descended(k: int) -> Any:
        def done(share: float) -> None:
            tell("making inputs", k + share, calls)

        return _descended(graph, begun[k], statistics, plan.steps, within, done)

    items = current().share(range(calls), descended)
    return Calibration(items, graph, batch=CHUNK)


# -- where they begin ------------------------------------------------------------------------------


def _drawn(
    graph: Graph,
    shapes: Sequence[tuple[int, ...]],
    count: int | None,
    within: tuple[float, float] | None,
    draw: np.random.Generator,
) -> list[torch.Tensor]:
    """The inputs of one call: noise of a natural spectrum, tokens as frequent as their place in a
    vocabulary says (Zipf), 0 and 1 for other integers."""
    below = index_limits(graph)
    out = []
    for value, shape in zip(graph.inputs, shapes, strict=True):
        size = shape if count is None or not shape else (count, *shape[1:])
        limit = probe_of(below[value]) if value in below else None
        if is_real(value.dtype):
            made = torch.from_numpy(_natural(draw, size))
            if within is not None:
                made = _into(made, within)
        elif is_integer(value.dtype) and limit is not None and limit > 2:
            rank = np.exp(draw.uniform(0, np.log(limit), size)).astype(np.int64)
            made = torch.from_numpy(np.minimum(rank, limit - 1))
        elif value.dtype in ("u8", "i8") and len(size) > 2:  # pixels
            kind = np.iinfo(element_type(value.dtype).numpy())
            made = _into(torch.from_numpy(_natural(draw, size)), (kind.min, kind.max)).round()
        elif is_integer(value.dtype):
            made = torch.ones(size)  # a mask that hides nothing
        else:
            made = as_tensor(drawn(draw, size, value.dtype, limit))
        out.append(made.to(TO_TORCH[value.dtype]))
    return out


def _natural(draw: np.random.Generator, size: Sequence[int]) -> Any:
    """Normal noise of mean 0 and deviation 1 whose power falls with the square of the frequency
    along all dimensions behind the second; white where there are none."""
    white = draw.standard_normal(size)
    along = tuple(d for d in range(2, len(size)) if size[d] > 1)
    if not along:
        return white.astype(np.float32)
    square: Any = 0.0
    for d in along:
        f = np.fft.fftfreq(size[d])
        square = square + f.reshape([-1 if k == d else 1 for k in range(len(size))]) ** 2
    least = 1 / max(size[d] for d in along)
    falling = np.maximum(square, least**2) ** -0.5
    made = np.fft.ifftn(np.fft.fftn(white, axes=along) * falling, axes=along).real
    return ((made - made.mean()) / made.std()).astype(np.float32)


def _into(x: torch.Tensor, within: tuple[float, float]) -> torch.Tensor:
    """Two deviations of ``x`` about its mean spread over a range, what lies beyond cut off."""
    low, high = within
    return ((x / 4 + 0.5).clamp(0, 1) * (high - low) + low).float()


# -- descent ---------------------------------------------------------------------------------------


def _descended(
    graph: Graph,
    inputs: list[torch.Tensor],
    statistics: Sequence[NormStatistics],
    steps: int,
    within: tuple[float, float] | None,
    progress: Callable[[float], None],
) -> tuple[torch.Tensor, ...]:
    """``inputs`` with the floating-point ones moved; as they were where nothing can be derived."""
    moving = [i for i, v in enumerate(graph.inputs) if is_real(v.dtype)]
    classes = [i for i, v in enumerate(graph.outputs) if _is_classes(v)]
    if not steps or not moving or not (statistics or classes):
        return tuple(inputs)
    half = computing_type(graph)
    leaves = {i: inputs[i].float().clone().requires_grad_() for i in moving}
    # From natural noise less is to be done where classes alone pull
    rate = 0.1 if statistics else 0.05
    scale = (within[1] - within[0]) / 4 if within is not None else 1.0
    steps = steps if statistics else min(steps, BLIND)
    optimizer = torch.optim.Adam(list(leaves.values()), rate * scale)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        given = [leaves.get(i, x) for i, x in enumerate(inputs)]
        try:
            with torch.enable_grad():
                loss = _mismatch(graph, given, statistics, classes, half)
                made = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        except RuntimeError:  # an operator that torch has no derivative of
            return tuple(inputs)
        for leaf, gradient in zip(leaves.values(), made, strict=True):
            leaf.grad = torch.zeros_like(leaf) if gradient is None else gradient.nan_to_num(0.0)
        optimizer.step()
        schedule.step()
        if within is not None:
            with torch.no_grad():
                for leaf in leaves.values():
                    leaf.clamp_(*within)
        progress((step + 1) / steps)
    return tuple(leaves[i].detach().to(x.dtype) if i in leaves else x for i, x in enumerate(inputs))


def _is_classes(value: Value) -> bool:
    """Whether an output may be scores of classes: along the last of two or three dimensions."""
    return is_real(value.dtype) and value.rank in (2, 3) and probe_of(value.shape[-1]) > 2


def _mismatch(
    graph: Graph,
    inputs: Sequence[torch.Tensor],
    statistics: Sequence[NormStatistics],
    classes: Sequence[int],
    half: torch.dtype | None,
) -> torch.Tensor:
    """How far the activations are from what is stored, and how uncertain and alike the classes."""
    wanted = {s.node: s for s in statistics}
    terms: list[torch.Tensor] = []

    def hook(node: Node, operands: list[Any], run: Any) -> Any:
        if node in wanted:
            terms.append(_off(operands[0], wanted[node]))
        return run(*operands)

    outputs = evaluate(graph, inputs, weights={}, hook=hook, dtype=half)
    loss = torch.stack(terms).sum() if terms else torch.zeros(())
    for i in classes:
        loss = loss + (CERTAIN if terms else 1.0) * _uncertain(outputs[i])
    return loss


def _off(x: torch.Tensor, known: NormStatistics) -> torch.Tensor:
    """The squared distance of mean and deviation of the channels of ``x`` from what is stored, in
    stored deviations, averaged over channels."""
    x = x.float()
    along = [0, *range(2, x.dim())]
    mean, deviation = x.mean(along), (x.var(along, unbiased=False) + 1e-8).sqrt()
    spread = torch.from_numpy(known.variance).float().sqrt()
    return ((mean - torch.from_numpy(known.mean).float()) / spread).square().mean() + (
        deviation / spread - 1
    ).square().mean()


def _uncertain(y: torch.Tensor) -> torch.Tensor:
    """The mean entropy of each row of class scores less the entropy of their mean."""
    rows = y.float().flatten(0, -2)
    p = rows if is_distribution(y) else rows.softmax(-1)
    mean = p.mean(0)
    each = -(p * p.clamp(min=1e-9).log()).sum(-1).mean()
    return each + (mean * mean.clamp(min=1e-9).log()).sum()
