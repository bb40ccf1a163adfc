"""Gradients of a graph's weights over calibration data, for criteria that need them; the graph runs
in torch, wherever it came from.

Without labels the loss is the model's own: labels are *drawn* from its soft output and the
cross-entropy to them is derived. The cross-entropy to the soft output itself would not do, since
its gradient at the model is zero (the model already says what it says); drawn labels give gradients
of mean zero whose square is the Fisher information, which is how much the output distribution
moves. Outputs that are no classes get the same with a normal distribution around them: the squared
gradients are those of the mean squared change of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from irprune.errors import IrpruneError
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph, Node, Weight
from irprune.ops.arrays import as_tensor
from irprune.ops.registry import may_mask, readers_of, role_of
from irprune.run.batch import Batch
from irprune.run.calibration import Calibration
from irprune.run.difference import channel_dims, deviations, is_distribution, presence, units
from irprune.run.interpret import evaluate
from irprune.run.ranks import Sums
from irprune.run.total import total

__all__ = ["Cut", "Gradients", "Loss", "drawn_loss", "sensitivities"]

Loss = Callable[[list[torch.Tensor], Batch], torch.Tensor]
"""From the graph's outputs and the calibration batch (its ``extra`` holds labels, where the data
have them) to a scalar."""

Cut = Callable[[torch.Tensor, Sequence[Any]], torch.Tensor]
"""From a node's result and its operands to rows [n, b, o]."""


def drawn_loss(
    outputs: Sequence[torch.Tensor],
    draw: torch.Generator,
    dims: Sequence[int | None] | None = None,
) -> torch.Tensor:
    """The negative log-likelihood of outcomes drawn from the outputs, summed over samples and
    outputs.

    Floating outputs of rank 2 or 3 are logits over their last dimension, or probabilities where
    they add up to 1 there; where ``dims`` say which dimension of each are channels (None: it has
    none), only if that is the last. Of all others channels within 0..1 are likelihoods of yes and
    no, and what is left are means of a normal distribution, of the channel's own deviation where
    the scales of channels are unlike. Raises IrpruneError where no output is floating-point."""
    summed = None
    for i, y in enumerate(outputs):
        if not y.is_floating_point() or y.numel() == 0:
            continue
        y = y.float()
        dim = None if dims is None else dims[i]
        last = dims is None or dim == y.dim() - 1 or probabilities(y)
        if y.dim() in (2, 3) and y.shape[-1] > 1 and last:
            term = _classes(y, draw)
        else:
            term = _quantities(y, dim, draw)
        summed = term if summed is None else summed + term
    if summed is None:
        raise IrpruneError(
            "no output is a floating-point tensor, so there is no loss to derive",
            "",
            "give loss=, a function of outputs and batch",
        )
    return summed


def _classes(y: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """The cross-entropy to classes drawn along the last dimension."""
    logits = (y.clamp(min=1e-12).log() if probabilities(y) else y).reshape(-1, y.shape[-1])
    labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=draw)[:, 0]
    loss = F.cross_entropy(logits, labels.to(y.device), reduction="sum")
    mean: torch.Tensor = loss / (y.shape[1] if y.dim() == 3 else 1)
    return mean


def _quantities(y: torch.Tensor, dim: int | None, draw: torch.Generator) -> torch.Tensor:
    """The negative log-likelihood of answers drawn element by element: yes or no for channels
    within 0..1, else normal ones."""
    fixed, unit = y.detach(), units(y, dim)
    if unit is None:
        deviation = fixed.std() if y.numel() > 1 else torch.ones((), device=y.device)
        yes = torch.full_like(y, float(fixed.min() >= 0 and fixed.max() <= 1), dtype=torch.bool)
        deviation = deviation.clamp(min=1e-6).expand_as(y)
    else:
        others = [d for d in range(y.dim()) if d != dim]
        deviation = deviations(fixed).std(others, keepdim=True).clamp(min=1e-6 * float(unit.max()))
        deviation = deviation.expand_as(y)
        inside = (fixed.amin(others, keepdim=True) >= 0) & (fixed.amax(others, keepdim=True) <= 1)
        yes = inside.expand_as(y)
    normal = torch.randn(y.shape, generator=draw).to(y.device)
    counts = None if unit is None or dim is None else presence(fixed, dim)
    means = y / deviation * (normal if counts is None else normal * counts.sqrt())
    p = y.clamp(1e-6, 1 - 1e-6)
    answer = torch.bernoulli(p.detach().cpu(), generator=draw).to(y.device)
    likelihood = -(answer * p.log() + (1 - answer) * (1 - p).log())
    each = max(1.0, (y.numel() / max(1, y.shape[0] if y.dim() else 1)) ** 0.5)
    total: torch.Tensor = torch.where(yes, likelihood, means).sum() / each
    return total


def probabilities(y: torch.Tensor) -> bool:
    """Whether a floating-point output is a distribution over its last dimension already."""
    return is_distribution(y)


class Gradients:
    """Gradients of the floating-point parameters of ``graph``, batch by batch; half precision runs
    in float32. Labels are drawn anew for each chunk of the data, from ``seed`` and its number."""

    def __init__(self, graph: Graph, loss: Loss | None = None, seed: int = 0) -> None:
        self.graph, self.loss, self.seed = graph, loss, seed
        self._half = graph.has_half_floats
        self._held = _leaves(graph, self._half)

    def of(self, batch: Batch) -> dict[Weight, Any]:
        """For every parameter that the loss depends on (weight, gradient).

        Raises IrpruneError where the loss is not a finite number or does not depend on the
        weights."""
        with torch.enable_grad():
            value = self._value(batch, None)
            made = torch.autograd.grad(value, list(self._held.values()), allow_unused=True)
        return {
            w: (_finite(w, t.detach()), g)
            for (w, t), g in zip(self._held.items(), made, strict=True)
            if g is not None
        }

    def squares(self, batch: Batch, nodes: Mapping[Node, Any]) -> Iterator[tuple[Node, float]]:
        """For each of ``nodes`` the sum of the squared gradient by its result."""
        results: dict[Node, torch.Tensor] = {}

        def hook(node: Node, operands: list[Any], run: Any) -> Any:
            made = run(*operands)
            if node in nodes:
                results[node] = made
            return made

        with torch.enable_grad():
            value = self._value(batch, hook)
            made = torch.autograd.grad(value, list(results.values()), allow_unused=True)
        for node, g in zip(results, made, strict=True):
            if g is not None:
                yield node, float(g.double().square().sum())

    def rows(self, batch: Batch, cut: Mapping[Node, Cut]) -> Iterator[tuple[Node, torch.Tensor]]:
        """For each node of ``cut`` the squared gradient by each row of its result [n], summed over
        the row."""
        results: dict[Node, torch.Tensor] = {}
        given: dict[Node, list[Any]] = {}

        def hook(node: Node, operands: list[Any], run: Any) -> Any:
            made = run(*operands)
            if node in cut:
                results[node] = made
                given[node] = [_detached(x) for x in operands]
            return made

        with torch.enable_grad():
            value = self._value(batch, hook)
            made = torch.autograd.grad(value, list(results.values()), allow_unused=True)
        for node, g in zip(results, made, strict=True):
            if g is not None:
                yield node, cut[node](g, given[node]).float().square().sum((1, 2)).cpu()

    def _value(self, batch: Batch, hook: Any) -> torch.Tensor:
        draw = torch.Generator().manual_seed(self.seed * _APART + batch.number)
        return _loss(self.graph, batch, self.loss, draw, self._half, self._held, hook)


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else x


_APART = 1_000_003  # between the seeds of two draws, more than chunks


def sensitivities(
    graph: Graph,
    nodes: Sequence[Node],
    data: Calibration,
    samples: int,
    loss: Loss | None = None,
    seed: int = 0,
) -> dict[Node, float]:
    """For each node the mean over about ``samples`` samples of the squared gradient by its result,
    summed over all of the result's elements.

    With drawn labels, half of it times the mean squared error of an element is what an error there
    costs, to second order and as if errors had no direction. Nothing where the model has no
    gradient and no ``loss`` is given."""
    numbers = {node: i for i, node in enumerate(nodes)}
    try:
        gradients = Gradients(graph, loss, seed)
    except IrpruneError:
        if loss is not None:
            raise
        return {}

    def add(sums: Sums, batch: Batch) -> None:
        try:
            found = list(gradients.squares(batch, numbers))
        except (IrpruneError, RuntimeError):
            if loss is not None:
                raise
            # Whole-number outputs, operators that torch has no derivative of
            sums["failed"] = True
            return
        sums.add("samples", batch.size)
        for node, square in found:
            sums.add(numbers[node], square)

    found = total(data, Sums, add, samples)
    if "failed" in found:
        return {}
    return {node: found.get(i, 0.0) / found["samples"] for node, i in numbers.items()}


def _leaves(graph: Graph, half: bool) -> dict[Weight, torch.Tensor]:
    """Parameters as tensors that gradients flow to."""
    held: dict[Weight, torch.Tensor] = {}
    for w in graph.weights.values():
        if w.kind == "parameter" and is_real(w.dtype) and not _running(w):
            tensor = as_tensor(w.load()).detach()
            held[w] = (tensor.float() if half else tensor.clone()).requires_grad_()
    if not held:
        raise IrpruneError(
            "the model has no parameters to derive by",
            graph.name,
            "choose a criterion without gradients",
        )
    return held


def _finite(weight: Weight, values: torch.Tensor) -> torch.Tensor:
    """``values`` of ``weight``, 0 for -inf where that masks: times a gradient of 0 it is NaN."""
    return values.masked_fill(torch.isneginf(values), 0.0) if may_mask(weight) else values


def _running(weight: Weight) -> bool:
    """Whether ``weight`` holds the statistics of a batch norm, which in an ONNX file look like
    parameters and have no gradient."""
    return any(role_of(node, i) in ("mean", "variance") for node, i in readers_of(weight))


def _loss(
    graph: Graph,
    batch: Batch,
    loss: Loss | None,
    draw: torch.Generator,
    half: bool,
    held: dict[Weight, torch.Tensor],
    hook: Any,
) -> torch.Tensor:
    device = next(iter(held.values())).device
    inputs = [t.to(device) for t in batch.inputs]
    outputs = evaluate(
        graph, inputs, dtype=torch.float32 if half else None, weights=held, hook=hook, device=device
    )
    value = (
        loss(outputs, batch) if loss is not None else drawn_loss(outputs, draw, channel_dims(graph))
    )
    if not isinstance(value, torch.Tensor) or value.dim() or not bool(torch.isfinite(value)):
        raise IrpruneError(
            "the loss is not a finite number",
            "loss",
            "return a scalar tensor computed from the outputs",
        )
    if not value.requires_grad:
        raise IrpruneError(
            "the loss does not depend on the weights",
            "loss",
            "compute it from the outputs it is given, without detaching them",
        )
    return value
