"""repair-fold: dropped channels folded into the kept ones that they resemble.

Before: a layer that reads channel 3 and its near duplicate 7, of which 7 is dropped. After: the
weight of 3 has taken over that of 7, times the slope of 7 over 3, and the bias what is left of its
mean.

Duplicates are found by correlation of what layers read on the calibration data; noise will do,
since duplicates are duplicates on any input. In the manner of Wang et al., "Forget the Data and
Fine-Tuning! Just Fold the Network to Compress", ICLR 2025."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irprune.criteria.readings import Readings, key_of
from irprune.ir.graph import Graph
from irprune.passes.repairs import repair
from irprune.passes.result import PassResult
from irprune.run.take import kept_indices, take

if TYPE_CHECKING:
    from irprune.run.calibration import Calibration

__all__ = ["RepairFold"]


@repair("fold")
@dataclass(frozen=True)
class RepairFold:
    """Fold dropped inputs of every layer into the kept input with the highest correlation, where
    that is at least ``alike`` in magnitude; the mean of what is left over goes into the bias."""

    original: Graph
    calibration: Calibration
    alike: float = 0.5

    def run(self, graph: Graph) -> PassResult:
        import torch

        from irprune.analysis.layers import layer_of, layers
        from irprune.run.statistics import counterparts

        kept = self.original.kept
        if kept is None:
            return PassResult(False)
        cut = counterparts(graph)
        touched = [
            layer
            for layer in layers(self.original)
            if any(kept.changes((layer.weight.axes or ())[d]) for d in layer.inputs)
            and not layer.shared()
            and layer.weight.name in graph.weights
            and layer.node.outputs[0].name in cut
        ]
        read = Readings(self.original, self.calibration).of(touched, products=True)
        changed = False
        for layer in touched:
            reading = read[key_of(layer)]
            present = torch.ones(tuple(int(s) for s in layer.weight.shape), dtype=torch.bool)  # type: ignore[arg-type]
            for d in layer.inputs:
                present &= torch.from_numpy(kept.present(layer.weight.axes or (), d))
            weight, offset = self._folded(reading, layer.matrix(present)[..., 0])
            own = layer_of(cut[layer.node.outputs[0].name])
            if weight is None or own is None:
                continue
            own.stored.store(take(layer.array(weight), kept_indices(layer.weight, kept)))
            if layer.bias is not None and own.bias is not None:
                full = offset.reshape(tuple(int(s) for s in layer.bias.weight.shape))  # type: ignore[arg-type]
                own.bias.move(take(full, kept_indices(layer.bias.weight, kept)))
            changed = True
        return PassResult(changed)

    def _folded(self, reading: Any, present: Any) -> tuple[Any, Any]:
        """The whole weight [b, k, o] after folding, and what goes to the bias [b, o]; (None, None)
        where nothing is alike."""
        import torch

        mean, weight = reading.mean, reading.weight
        if not reading.products:  # too wide
            return None, None
        covariance = reading.covariance.double()
        variance = reading.variance
        deviation = variance.sqrt()
        scale = deviation[:, :, None] * deviation[:, None, :]
        alike = torch.where(
            scale > 1e-12 * variance.amax(1)[:, None, None],
            covariance.abs() / scale.clamp(min=1e-300),
            0.0,
        )
        alike = torch.where(present[:, None, :], alike, -1.0)
        best, partner = alike.max(2)  # [b, k]: which kept input is nearest
        gone = ~present
        folds = gone & (best >= self.alike)
        if not bool(gone.any()):
            return None, None
        slope = torch.where(
            folds,
            covariance.gather(2, partner[..., None])[..., 0]
            / variance.gather(1, partner).clamp(min=1e-300),
            0.0,
        )
        rest = torch.where(gone, mean - slope * mean.gather(1, partner), 0.0)
        added = torch.zeros_like(weight).scatter_add_(
            1, partner[..., None].expand_as(weight), slope[..., None] * weight
        )
        return weight + added, (rest[..., None] * weight).sum(1)
