"""repair-least-squares: new weights for every layer of the pruned model, so that it gives what the
original gave.

Before: ``%y = linear(%x: [n, 16], %w)`` where %x lost half of its channels and %w is what slicing
left. After: the same node with the %w and bias that bring %y nearest to the original's result on
the calibration data.

For each layer in order, ``W' = argmin |Y - X W'|^2 + lambda |W' - W|^2`` with X what the layer
reads in the model repaired so far, Y what it gave in the original, W the sliced weight (so that few
samples change little) and a column of ones for the bias. Convolutions are solved over their
patches, transposed ones over the input spread out, grouped and depthwise ones group by group. As in
Meng et al. (OSSCAR, ICML 2024), but for every operator that is linear in a weight. Layers whose
weight is used more than once are left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from irprune.analysis.branches import block_ends
from irprune.base.memory import memory_asked, memory_budget
from irprune.base.progress import tell
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.symbols import names_in
from irprune.ops.counted import counted_symbols
from irprune.ops.registry import does_nothing, is_sum, operand_as
from irprune.passes.repairs import repair
from irprune.passes.result import PassResult
from irprune.run.ranks import Several

if TYPE_CHECKING:
    import torch

    from irprune.analysis.layers import Layer
    from irprune.criteria.relevance import Relevance
    from irprune.run.calibration import Calibration
    from irprune.run.gram import Gram
    from irprune.run.statistics import Pair, Stop

__all__ = ["RepairLeastSquares"]


@repair("least_squares")
@dataclass(frozen=True)
class RepairLeastSquares:
    """Refit the layers of a cut graph to the ``original`` on ``calibration``.

    ``ridge`` is lambda relative to the mean diagonal of the Gram matrix; None picks it per layer by
    what predicts the other half of the calibration data best. With ``residual`` a layer whose
    result is added to another value also makes up for what that value has lost, so that errors do
    not pile up along a residual stream. ``rows`` bounds the rows (samples × positions) that a layer
    is fitted on, but there are at least four for each unknown of an output; a layer with more than
    ``widest`` unknowns is left, unless its matrix fits the memory that was asked for. ``memory``
    bounds the bytes of activations held between layers; None is what the call may take. Rows count
    for what the original's outputs depend on them (``relevance``), where that is known."""

    original: Graph
    calibration: Calibration
    ridge: float | None = None
    residual: bool = True
    rows: int = 16384
    widest: int = 6144
    memory: int | None = None
    relevance: Relevance | None = None

    def run(self, graph: Graph) -> PassResult:
        from irprune.analysis.layers import layer_of
        from irprune.run.once import once
        from irprune.run.statistics import Pair

        changed = False
        notes: list[str] = []
        memory = memory_budget() if self.memory is None else self.memory
        counted, unlike = counted_symbols(graph), 0
        ends = block_ends(self.original)
        with Pair(self.original, graph, self.calibration, memory=memory, ends=ends) as walk:
            for at, node in enumerate(list(graph.nodes)):
                tell("refitting layers", at, len(graph.nodes))
                layer = layer_of(node)
                if layer is None:
                    continue
                if counted.intersection(names_in(layer.node.out.shape)):
                    unlike += 1
                    continue
                why = self._refused(layer, walk)
                if why:
                    notes.append(f"{layer.weight.name}: {why}")
                    continue
                once(walk.files, graph, node.outputs[0].name, partial(self._refit, layer, walk))
                changed = True
        if unlike:
            notes.append(
                f"{unlike} layers get as many rows as the values before them say, which a cut "
                "changes: left as they were sliced"
            )
        return PassResult(changed, tuple(notes))

    def _refused(self, layer: Layer, walk: Pair) -> str:
        if layer.shared():
            return "used more than once: left as it was sliced"
        if walk.twin(layer.node) is None:
            return "no counterpart in the original graph: left as it was sliced"
        b, k, _ = layer.blocks
        if k > self.widest and 8 * b * k * k > (memory_asked() or 0):
            return f"more than {self.widest} unknowns per output: left as it was sliced"
        return ""

    def _refit(self, layer: Layer, walk: Pair) -> list[str]:
        from irprune.run.gram import Gram, sampled_rows

        old = layer.load_matrix()
        other, through = _beside(layer, walk) if self.residual else (None, None)
        b, k, o = old.shape
        limit = max(4 * k, min(self.rows, max(1024, (1 << 22) // (b * k))))
        total, name = self.calibration.count(), layer.node.outputs[0].name
        fit = Fit(old, layer.bias is not None)

        def add(halves: Several[Gram], stop: Stop) -> None:
            target = stop.target
            if stop.short is not None:
                target = target + (stop.short if through is None else through(stop.short))
            share = max(2, -(-limit * stop.size // total))
            count, weights = target.numel() // (b * o), None
            if self.relevance is None:
                at = sampled_rows(count, share, stop.number)
            else:
                at, weights = self.relevance.drawn(name, stop.number, count, share)
            given = layer.output_rows(target, stop.operands, at)
            offset = layer.offset(stop.operands)
            fit.add(halves, layer.input_rows(stop.operands, at), given, offset, weights)

        fit.halves = walk.total(layer.node, lambda: Several((Gram(), Gram())), add, other)
        weight, bias = fit.solve(self.ridge)
        layer.store_matrix(weight)
        if layer.bias is not None and bias is not None:
            layer.bias.move(bias)
        return []


def _beside(layer: Layer, walk: Pair) -> tuple[Value | None, Any]:
    """The value that the result of ``layer`` is added to, where both graphs have it by then, and
    what turns a shortfall there into one of the layer's own result (a batch norm may stand between
    them); (None, None) where there is no such value."""
    value, through = layer.node.out, None
    while True:
        users = list(value.users)
        if (
            len(users) != 1
            or value.users[users[0]] != 1
            or layer.node.graph is None
            or any(value is v for v in layer.node.graph.outputs)
        ):
            return None, None
        user = users[0]
        first = user.inputs[0] is value
        if first and does_nothing(user):
            value = user.out
        elif first and through is None and operand_as(user, "variance") is not None:
            through = _undone(user)
            value = user.out
        elif is_sum(user):
            other = user.inputs[1] if user.inputs[0] is value else user.inputs[0]
            fits = (
                other is not None
                and other.shape == layer.node.out.shape == user.out.shape
                and walk.alive(other, layer.node)
            )
            return (other, through) if fits else (None, None)
        else:
            return None, None


def _undone(node: Node) -> Any:
    """The inverse of a batch norm's scale, for differences; channels that it all but switches off
    are left alone."""
    import torch

    from irprune.run.statistics import load_as

    weight, variance = operand_as(node, "scale"), operand_as(node, "variance")
    scale = (
        1 / (load_as(variance) + node.attrs.get("eps", 1e-5)).sqrt()
        if isinstance(variance, Weight)
        else torch.ones(())
    )
    if isinstance(weight, Weight):
        scale = scale * load_as(weight)
    inverse = torch.where(
        scale.abs() > 1e-2 * scale.abs().max(), 1 / scale, torch.zeros(()).double()
    )
    return lambda short: short * inverse.to(short).reshape([-1] + [1] * (short.dim() - 2))


RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PROJECTED = 64  # directions of the result that a ridge is chosen by


class Fit:
    """What refits one layer: products of its inputs with themselves and with what its result lacks,
    in two ``halves`` of the data.

    ``old`` [b, k, o] are the weights to stay near to; with ``bias`` a constant is fitted besides,
    which is free."""

    def __init__(self, old: torch.Tensor, bias: bool) -> None:
        self.old, self.bias = old, bias
        self.halves: Sequence[Gram] = ()

    def add(
        self,
        halves: Sequence[Gram],
        x: torch.Tensor,
        y: torch.Tensor,
        offset: torch.Tensor | None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """To ``halves`` rows ``x`` [n, b, k] with results ``y`` [n, b, o]; ``offset`` is what the
        layer adds to ``x W``, ``weights`` [n] are what rows count for."""
        x, y = x.transpose(0, 1).cpu(), y.transpose(0, 1).cpu()
        r = y - x @ self.old.to(x.dtype)
        if offset is not None:
            r = r - offset.to(r).reshape(r.shape[0], 1, -1)
        half = x.shape[1] // 2
        for gram, rows in zip(halves, (slice(0, half), slice(half, None)), strict=True):
            gram.add(x[:, rows], r[:, rows], None if weights is None else weights[rows])

    def solve(self, ridge: float | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [b, k, o] and what is to be added to the bias [b, o]. The halves are used
        up."""
        if ridge is None:
            ridge = self._best() / 2  # of twice the rows half as much is the same penalty
        whole = self.halves[0].merged(self.halves[1])
        step = self._step(whole, whole.explained(self.bias), ridge)
        moved = whole.target - (whole.mean[:, None] @ step)[:, 0] if self.bias else None
        return self.old + step, moved

    def _step(self, gram: Gram, explained: torch.Tensor, ridge: float) -> torch.Tensor:
        """What is to be added to the weight: of what is ``explained`` [b, k, o] as much as
        ``ridge`` lets through. A block without any signal is left alone."""
        import torch

        from irprune.run.gram import signal

        products = _products(gram, self.bias).to(explained.dtype, copy=True)
        level = ridge * signal(gram, self.bias)[:, None]
        products.diagonal(dim1=1, dim2=2).add_(level.to(products.dtype))
        factor, failed = torch.linalg.cholesky_ex(products)
        step = torch.cholesky_solve(explained, factor)
        sound = (failed == 0)[:, None, None] & torch.isfinite(step)
        return torch.where(sound, step, torch.zeros((), dtype=step.dtype))

    def _best(self) -> float:
        """The ridge with the least error on the half that it was not fitted on; the search goes
        downhill from the middle."""
        import torch

        if any(gram.count == 0 for gram in self.halves):
            return RIDGES[-1]
        outs = self.old.shape[2]
        seen = torch.eye(outs, dtype=torch.float64)
        if outs > PROJECTED:
            draw = torch.Generator().manual_seed(0)
            seen = torch.randn(outs, PROJECTED, generator=draw, dtype=torch.float64)
        products = [_products(gram, self.bias) for gram in self.halves]
        # In the rows' precision, which tells ridges apart; the weights are worked out in float64
        explained = [
            (gram.explained(self.bias) @ seen).to(p.dtype)
            for gram, p in zip(self.halves, products, strict=True)
        ]
        known: dict[int, float] = {}

        def error(i: int) -> float:
            if i not in known:
                known[i] = 0.0
                for fit, test in ((0, 1), (1, 0)):
                    step = self._step(self.halves[fit], explained[fit], RIDGES[i])
                    known[i] += float(
                        (step * (products[test] @ step)).sum() - 2 * (step * explained[test]).sum()
                    )
            return known[i]

        at = len(RIDGES) // 2
        for way in (1, -1):
            while 0 <= at + way < len(RIDGES) and error(at + way) < error(at):
                at += way
        return RIDGES[at]


def _products(gram: Gram, centred: bool) -> torch.Tensor:
    """What a step of the weights is weighed by [b, k, k], in the rows' precision."""
    return gram.covariance() if centred else gram.second_moment()
