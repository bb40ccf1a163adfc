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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ops.registry import does_nothing, is_sum, operand_as
from irprune.passes.repairs import repair
from irprune.passes.result import PassResult

if TYPE_CHECKING:
    import torch

    from irprune.analysis.layers import Layer
    from irprune.run.calibration import Calibration

__all__ = ["RepairLeastSquares"]


@repair("least_squares")
@dataclass(frozen=True)
class RepairLeastSquares:
    """Refit the layers of a cut graph to the ``original`` on ``calibration``.

    ``ridge`` is lambda relative to the mean diagonal of the Gram matrix; None picks it per layer by
    what predicts the other half of the calibration data best. With ``residual`` a layer whose
    result is added to another value also makes up for what that value has lost, so that errors do
    not pile up along a residual stream. ``rows`` bounds the rows (samples × positions) that a layer
    is fitted on, ``widest`` the number of unknowns per output beyond which a layer is left.
    ``memory`` bounds the bytes of activations held between layers."""

    original: Graph
    calibration: Calibration
    ridge: float | None = None
    residual: bool = True
    rows: int = 32768
    widest: int = 6144
    memory: int = 1 << 30

    def run(self, graph: Graph) -> PassResult:
        from irprune.analysis.layers import layer_of
        from irprune.run.statistics import Pair

        changed = False
        notes: list[str] = []
        with Pair(self.original, graph, self.calibration, memory=self.memory) as walk:
            for node in list(graph.nodes):
                layer = layer_of(node)
                if layer is None:
                    continue
                why = self._refused(layer, walk)
                if why:
                    notes.append(f"{layer.weight.name}: {why}")
                    continue
                changed = self._refit(layer, walk) or changed
        return PassResult(changed, tuple(notes))

    def _refused(self, layer: Layer, walk: Any) -> str:
        if layer.shared():
            return "used more than once: left as it was sliced"
        if walk.twin(layer.node) is None:
            return "no counterpart in the original graph: left as it was sliced"
        if layer.matrix(_shape_only(layer)).shape[1] > self.widest:
            return f"more than {self.widest} unknowns per output: left as it was sliced"
        return ""

    def _refit(self, layer: Layer, walk: Any) -> bool:
        old = layer.held()
        gram = Gram(old, layer.bias is not None, self.rows)
        other, through = _beside(layer, walk) if self.residual else (None, None)
        for i, (operands, target, short) in enumerate(walk.to(layer.node, other)):
            if short is not None:
                target = target + (short if through is None else through(short))
            given = layer.gave(target, operands)
            gram.add(i, layer.read(operands), given, layer.offset(operands))
        weight, bias = gram.solve(self.ridge)
        layer.put(weight)
        if layer.bias is not None and bias is not None:
            layer.bias.move(bias)
        return True


def _shape_only(layer: Layer) -> torch.Tensor:
    import torch

    return torch.empty(tuple(int(s) for s in layer.weight.shape), device="meta")  # type: ignore[arg-type]


def _beside(layer: Layer, walk: Any) -> tuple[Value | None, Any]:
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


class Gram:
    """X'X and X'(Y - X W) of one layer in float64, in two halves, and the weights that follow from
    them.

    ``old`` [b, k, o] is the prior W; with ``bias`` a column of ones is added, whose prior is what
    the layer has. At most ``rows`` rows enter: those of later chunks are taken at a stride, the
    same in every run."""

    def __init__(self, old: torch.Tensor, bias: bool, rows: int) -> None:
        import torch

        b, k, o = old.shape
        self.old, self.bias, self.rows = old, bias, max(rows, 4 * k)
        n = k + int(bias)
        self.xx = torch.zeros(2, b, n, n, dtype=torch.float64)
        self.xr = torch.zeros(2, b, n, o, dtype=torch.float64)
        self.rr = torch.zeros(2, dtype=torch.float64)
        self.stride = 0

    def add(
        self, chunk: int, x: torch.Tensor, y: torch.Tensor, offset: torch.Tensor | None
    ) -> None:
        """Rows ``x`` [n, b, k] with results ``y`` [n, b, o]; ``offset`` is what the layer adds to
        ``x W``."""
        import torch

        if not self.stride:
            self.stride = (
                max(1, -(-x.shape[0] * 8 // self.rows)) if x.shape[0] * 8 > self.rows else 1
            )
        x, y = x[:: self.stride], y[:: self.stride]
        x, y = x.transpose(0, 1).double().cpu(), y.transpose(0, 1).double().cpu()
        r = y - x @ self.old
        if offset is not None:
            r = r - offset.double().cpu().reshape(r.shape[0], 1, -1)
        if self.bias:
            x = torch.cat((x, x.new_ones(*x.shape[:2], 1)), 2)
        half = x.shape[1] // 2
        for h, rows in enumerate((slice(0, half), slice(half, None))):
            xt = x[:, rows].transpose(1, 2)
            self.xx[h] += xt @ x[:, rows]
            self.xr[h] += xt @ r[:, rows]
            self.rr[h] += r[:, rows].square().sum()

    def solve(self, ridge: float | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [b, k, o] and what is to be added to the bias [b, o]."""
        if ridge is None:
            ridge = self._best()
        step = _ridge_step(self.xx.sum(0), self.xr.sum(0), ridge, self.bias)
        k = self.old.shape[1]
        return self.old + step[:, :k], step[:, k] if self.bias else None

    def _best(self) -> float:
        """The lambda with the least error on the half that it was not fitted on."""
        errors = []
        for ridge in RIDGES:
            total = 0.0
            for fit, test in ((0, 1), (1, 0)):
                step = _ridge_step(self.xx[fit], self.xr[fit], ridge, self.bias)
                total += float(
                    (step * (self.xx[test] @ step)).sum() - 2 * (step * self.xr[test]).sum()
                )
            errors.append(total)
        best = RIDGES[min(range(len(RIDGES)), key=lambda i: (errors[i], -RIDGES[i]))]
        return (
            best / 2
        )  # relative to a Gram matrix of twice the rows, the same penalty is half as large


RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def _ridge_step(xx: torch.Tensor, xr: torch.Tensor, ridge: float, bias: bool) -> torch.Tensor:
    """(X'X + lambda I)^-1 X'R for each block; the column of ones is hardly penalised. A block
    without any signal is left alone."""
    import torch

    n = xx.shape[-1]
    k = n - int(bias)
    diagonal = xx.diagonal(dim1=1, dim2=2)
    scale = diagonal[:, :k].mean(1, keepdim=True)
    penalty = (ridge * scale).expand(-1, n).clone()
    if bias:
        penalty[:, k:] = 1e-8 * diagonal[:, k:]
    penalty = penalty + 1e-10 * diagonal.amax(1, keepdim=True) + torch.finfo(torch.float64).tiny
    factor, failed = torch.linalg.cholesky_ex(xx + torch.diag_embed(penalty))
    step = torch.cholesky_solve(xr, factor)
    return torch.where(
        (failed == 0)[:, None, None] & torch.isfinite(step), step, torch.zeros((), dtype=step.dtype)
    )
