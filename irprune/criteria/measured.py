"""measured: scores in units of what the outputs lose, so that groups of any kind can be added up
and compared.

A criterion ranks the indices of one group; what their loss means to the model differs from group to
group, and no gradient says it where errors go together (those of attention do, from token to
token). So it is measured: at a few levels the lowest indices of a group are silenced, the layers
that read them are refitted to the others as a repair will do, and the outputs are compared with the
original's. The scores between two levels are then scaled so that their sums are these errors.
Databases of measured errors are what ZipLM (Kurtic et al., NeurIPS 2023) and SPDY (Frantar and
Alistarh, ICML 2022) search in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from irprune.criteria import Scores
from irprune.criteria.consumers import (
    Reader,
    Reading,
    calibrated,
    key_of,
    portions,
    readers,
    readings,
)
from irprune.criteria.reconstruction import Surgeon
from irprune.ir.axis import Axis
from irprune.ir.dtype import is_half, is_real
from irprune.ir.graph import Graph, Node
from irprune.ir.group import Group
from irprune.ir.kept import Kept

if TYPE_CHECKING:
    import torch

    from irprune.run.calibration import Batch, Calibration

__all__ = ["LEVELS", "measured", "scaled"]

LEVELS = (
    0.125,
    0.25,
    0.5,
    0.75,
    1.0,
)  # shares of a group that are dropped to measure; of all of it, one index stays
SAMPLES = 32  # of the calibration data that the outputs are compared on
RIDGE = 1e-2  # of the refit, relative to the mean diagonal of the Gram matrix

Refits = dict[Node, dict[int, "torch.Tensor"]]  # what stands in for operands of a node


def measured(
    scores: Mapping[Axis, Scores],
    graph: Graph,
    groups: Sequence[Group],
    blocks: Mapping[Axis, Axis],
    calibration: Any,
) -> dict[Axis, Scores]:
    """``scores`` scaled so that the sum of the lowest is the error of the outputs without them: the
    mean over floating-point outputs of the squared difference relative to the square of the output;
    of a model without any the share of elements that differ.

    Costs one run over the data for the Gram matrices and, for each group, a run of ``SAMPLES``
    samples per level. Raises IrpruneError where there are no data, and for activations that are
    NaN."""
    data = calibrated(calibration, graph, "measured")
    probe = _Probe(graph, data)
    out = {}
    for some in portions(readers(graph, [g for g in groups if g.axis in scores], blocks)):
        read = readings(graph, some, data, gram=True)
        inverses: dict[str, Any] = {}
        for leaf, many in some.items():
            out[leaf] = scaled(
                scores[leaf], _errors(leaf, scores[leaf], blocks, many, read, inverses, probe)
            )
    return {leaf: out[leaf] for leaf in scores}


def scaled(scores: Scores, errors: Sequence[tuple[int, float]]) -> Scores:
    """``scores``, of shape (size,) or (blocks, size), in their order, scaled so that for each
    (count, error) the ``count`` lowest (of each block, in the mean over blocks) add up to
    ``error``; errors that fall with the count are taken as equal."""
    order = np.argsort(scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    ranked = ranked - min(float(ranked.min()), 0.0)  # a sum needs what is not below zero
    size, start, known, factor = ranked.shape[-1], 0, 0.0, 1.0
    rows = ranked[..., 0].size
    least = 1e-12 * float(ranked.sum()) / rows
    for count, error in errors:
        piece = ranked[..., start:count]
        total, rise = float(piece.sum()) / rows, max(error - known, 0.0)
        if total > least:
            factor = rise / total
            piece *= factor
        else:  # nothing to go by
            piece[...] = rise / (count - start)
        start, known = count, max(known, error)
    ranked[..., start:size] *= factor
    ranked = np.maximum.accumulate(ranked, axis=-1)
    out = np.empty_like(ranked)
    np.put_along_axis(out, order, ranked, -1)
    return out


def _errors(
    leaf: Axis,
    scores: Scores,
    blocks: Mapping[Axis, Axis],
    many: Sequence[Reader],
    read: Mapping[str, Reading],
    inverses: dict[str, Any],
    probe: _Probe,
) -> list[tuple[int, float]]:
    """The error of the outputs with the lowest of ``leaf`` gone, for the count of each level."""
    size = scores.shape[-1]
    order = np.argsort(scores, axis=-1, kind="stable")
    refitted = [
        (r, Surgeon(r, read[key_of(r.layer)], RIDGE, inverses))
        for r in many
        if read[key_of(r.layer)].gram is not None and not r.layer.shared()
    ]
    out: list[tuple[int, float]] = []
    for level in LEVELS:
        start, count = out[-1][0] if out else 0, min(round(level * size), size - 1)
        if count <= start:
            continue
        gone = order[..., start:count] + size * np.arange(order[..., 0].size).reshape(
            -1, *[1] * (scores.ndim > 1)
        )
        refits: Refits = {}
        for reader, surgeon in refitted:
            surgeon.drop(gone.reshape(-1).tolist())
            _refit(reader, surgeon, read[key_of(reader.layer)], refits)
        kept = Kept(
            {leaf: np.sort(order[..., count:], axis=-1)},
            {leaf: blocks[leaf]} if scores.ndim > 1 else None,
        )
        out.append((count, probe.error(kept, refits)))
    return out


def _refit(reader: Reader, surgeon: Surgeon, reading: Reading, refits: Refits) -> None:
    """The layer's weights without what the surgeon has taken out, and the bias that keeps its
    mean."""
    layer = reader.layer
    numbers = layer.array(surgeon.weight)
    refits.setdefault(layer.node, {})[layer.by] = layer.stored.operand(numbers)
    if layer.bias is not None:
        moved = (reading.mean[:, None] @ (reading.weight - surgeon.weight))[:, 0]
        bias, held = layer.bias, layer.bias.stored.load()
        refits.setdefault(bias.node, {})[bias.at] = bias.stored.operand(
            held + bias.sign * moved.reshape(held.shape)
        )


class _Probe:
    """A share of the calibration data and what the original says to it."""

    def __init__(self, graph: Graph, data: Calibration) -> None:
        import torch

        self.graph = graph
        self.half = torch.float32 if any(is_half(v.dtype) for v in graph.values()) else None
        floating = [i for i, v in enumerate(graph.outputs) if is_real(v.dtype)]
        self.judged = floating or list(range(len(graph.outputs)))
        self.batches = list(data.spread(SAMPLES))
        self.said = [self._outputs(b) for b in self.batches]

    def _outputs(self, batch: Batch, hook: Any = None) -> list[torch.Tensor]:
        from irprune.run.interpret import evaluate

        made = evaluate(self.graph, batch.inputs, dtype=self.half, hook=hook)
        return [made[i] for i in self.judged]

    def error(self, kept: Kept, refits: Refits) -> float:
        """How far the outputs under ``kept`` with some operands replaced are off, averaged over
        outputs."""
        from irprune.run.oracle import silencer

        silence = silencer(kept, self.batches[0].inputs[0].device)

        def hook(node: Node, operands: list[Any], run: Any) -> Any:
            for i, tensor in refits.get(node, {}).items():
                operands[i] = tensor.to(operands[i])
            return silence(node, operands, run)

        ours = [self._outputs(b, hook) for b in self.batches]
        errors = [
            _off(list(a), list(b))
            for a, b in zip(zip(*ours, strict=True), zip(*self.said, strict=True), strict=True)
        ]
        return sum(errors) / len(errors)


def _off(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """The squared difference of one output over all batches, relative to its square; of one that is
    not floating-point the share of elements that differ."""
    import torch

    off = power = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:  # as many as were found
            off, power = off + max(1, b.numel()), power + max(1, b.numel())
        elif b.is_floating_point():
            off, power = (
                off + float((a.double() - b.double()).square().sum()),
                power + float(b.double().square().sum()),
            )
        else:
            off, power = off + float(torch.ne(a, b).sum()), power + b.numel()
    return off / power if power > 0 else float(off > 0)
