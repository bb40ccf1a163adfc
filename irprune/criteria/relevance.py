"""How much a model's outputs depend on each row of what its layers give, for models that say
themselves where something is: of a detector's thousands of places a few hold a box.

It is the squared gradient of labels drawn from the model's own outputs (``irprune.run.gradients``)
by a row of a layer's result. Of other outputs all rows are alike: the gradient of a class that is
sure vanishes, and a repair that leaves those rows out makes them unsure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from irprune.errors import IrpruneError
from irprune.ir.graph import Graph, Node
from irprune.run.ranks import Sums

if TYPE_CHECKING:
    import torch

    from irprune.run.batch import Batch
    from irprune.run.calibration import Calibration
    from irprune.run.gradients import Cut

__all__ = ["Relevance", "relevance"]

EVEN = 0.1  # of the weight is spread over all rows alike: drawn labels are noisy
FEW = 4  # samples that tell what the outputs are
MOST = 100.0  # times the mean: no row weighs more


@dataclass
class Relevance:
    """What ``relevance`` has found.

    Args:
        rows: For each result and number of a chunk of the data the squared gradient of each row.
        means: For each result the mean over all rows of all ranks.
    """

    rows: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)

    def weights(self, name: str, chunk: int) -> torch.Tensor | None:
        """The weights of the rows of a chunk, about 1 in the mean over all of the data; None where
        nothing is known of the result ``name``."""
        found = self.rows.get(name, {}).get(chunk)
        mean = self.means.get(name, 0.0)
        if found is None or mean <= 0:
            return None
        weights = (found.float() / mean).clamp(max=MOST)
        return EVEN + (1 - EVEN) * weights

    def drawn(
        self, name: str, chunk: int, count: int, wanted: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """About ``wanted`` of the ``count`` rows of a chunk, or in proportion to what they weigh
        more or fewer: their numbers (None for all), and what each counts for (None for one)."""
        import torch

        from irprune.run.gram import sampled_rows

        weights = self.weights(name, chunk)
        if weights is None or len(weights) != count:
            return sampled_rows(count, wanted, chunk), None
        unit = count / wanted  # what a drawn row stands for
        many = max(1, round(float(weights.sum()) / unit))
        if count <= many or count <= wanted:
            return None, weights / unit
        draw = torch.Generator().manual_seed(chunk)
        along = weights.double().cumsum(0)
        place = torch.arange(many) + torch.rand(many, generator=draw, dtype=torch.float64)
        at = torch.searchsorted(along, place * (float(along[-1]) / many)).clamp(max=count - 1)
        at, times = torch.unique_consecutive(at, return_counts=True)
        return at, times.to(weights.dtype)


def relevance(graph: Graph, data: Calibration, seed: int = 0) -> Relevance | None:
    """How much the outputs depend on each row of the results of the layers of ``graph`` on
    ``data``; None where no output holds quantities beside likelihoods (``presence``), and where the
    model has no gradient.

    Costs a forward and a backward pass over the data. Each rank keeps the rows of its chunks."""
    import torch

    from irprune.analysis.layers import layers
    from irprune.run.batch import split_rows
    from irprune.run.calibration import ACTIVATIONS
    from irprune.run.gradients import Gradients
    from irprune.run.total import total

    if not _tells_places(graph, data):
        return None
    made = Relevance()
    nodes: Mapping[Node, Cut] = {layer.node: layer.output_rows for layer in layers(graph)}
    try:
        gradients = Gradients(graph, None, seed)
    except IrpruneError:
        return None
    room = min(16, data.activations.fitting(2 * ACTIVATIONS, derived=True))

    def add(sums: Sums, batch: Batch) -> None:
        parts = split_rows(batch, room) if data.resizable else [batch]
        found: dict[str, list[torch.Tensor]] = {}
        try:
            for part in parts:
                for node, squares in gradients.rows(part, nodes):
                    found.setdefault(node.outputs[0].name, []).append(squares)
        except (IrpruneError, RuntimeError):  # operators that torch has no derivative of
            sums["failed"] = True
            return
        sums["samples"] = True
        for name, many in found.items():
            rows = torch.cat(many)
            made.rows.setdefault(name, {})[batch.number] = rows
            sums.add((name, "sum"), float(rows.double().sum()))
            sums.add((name, "count"), len(rows))

    sums = total(data, Sums, add)
    if "failed" in sums or "samples" not in sums:
        return None
    for name in [node.outputs[0].name for node in nodes]:
        made.means[name] = sums.get((name, "sum"), 0.0) / max(1, sums.get((name, "count"), 1))
    return made


def _tells_places(graph: Graph, data: Calibration) -> bool:
    """Whether an output holds quantities beside likelihoods."""

    from irprune.run.difference import channel_dims, presence, units
    from irprune.run.interpret import evaluate
    from irprune.run.precision import computing_type

    dims = channel_dims(graph)
    if all(dim is None for dim in dims):
        return False
    half = computing_type(graph)
    (batch, *_) = data.joined(FEW)
    outputs = evaluate(graph, batch.inputs, dtype=half)
    return any(
        dim is not None
        and y.is_floating_point()
        and units(y, dim) is not None
        and presence(y, dim) is not None
        for y, dim in zip(outputs, dims, strict=True)
    )
