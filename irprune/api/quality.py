"""What pruning cost a language model, on calibration samples that no statistic has seen: the same
figures as ``irprune.evaluate`` gives for texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from irprune.ir.graph import Graph
from irprune.run.interpret import evaluate
from irprune.run.logits import Logits, divergence, logits_of, same_choice, surprise
from irprune.run.precision import computing_type

if TYPE_CHECKING:
    from irprune.run.batch import Batch
    from irprune.run.calibration import Calibration

__all__ = ["Quality", "quality"]

ROWS = 8  # that are measured at most


@dataclass(frozen=True)
class Quality:
    """Before and after, on ``tokens`` tokens: the perplexity of the next token (None of a model
    that sees it already), the share of them where both find the same the likeliest, and the mean
    divergence from the original's distribution in nats."""

    tokens: int
    before: float | None
    after: float | None
    agreement: float
    divergence: float

    def __str__(self) -> str:
        told = f"next token the same {self.agreement:.1%}, divergence {self.divergence:.3f} nats"
        if self.before is not None and self.after is not None:
            told = f"perplexity {self.before:.4g} -> {self.after:.4g}, {told}"
        return f"{told} on {self.tokens} tokens of calibration data that were held out"


def quality(original: Graph, cut: Graph, data: Calibration) -> Quality | None:
    """What ``cut`` says beside ``original`` on up to ``ROWS`` samples of ``data``; None where their
    output is no logits."""
    logits = logits_of(original)
    if logits is None:
        return None
    half = computing_type(original)
    lost = before = apart = alike = 0.0
    told = count = 0
    causal: bool | None = None
    for batch in data.spread(ROWS):
        theirs = evaluate(original, batch.inputs, dtype=half)[logits.output]
        if causal is None:
            causal = _is_causal(original, batch, logits, theirs)
        ours = evaluate(cut, batch.inputs, dtype=half)[logits.output]
        weights = logits.weights(batch.inputs)
        more, tokens = divergence(ours, theirs, weights)
        apart, count = apart + more, count + tokens
        alike += sum(
            same_choice(
                *(
                    x[n : n + 1] if weights is None else x[n][weights[n]][None]
                    for x in (ours, theirs)
                )
            )
            for n in range(len(ours))
        )
        if not causal or (weights is not None and not bool(weights.all())):
            continue
        assert logits.tokens is not None
        ids = batch.inputs[logits.tokens]
        lost, before = lost + surprise(ours, ids), before + surprise(theirs, ids)
        told += ids[:, 1:].numel()
    if not count:
        return None
    after, dense = (math.exp(min(x / told, 700.0)) if told else None for x in (lost, before))
    return Quality(count, dense, after, alike / count, apart / count)


def _is_causal(graph: Graph, batch: Batch, logits: Logits, said: torch.Tensor) -> bool:
    """Whether what is ``said`` at a token of ``batch`` does not change with those behind it, so
    that it foretells them."""
    if logits.tokens is None or batch.inputs[logits.tokens].shape[1] < 2:
        return False
    ids = batch.inputs[logits.tokens]
    other = ids.clone()
    other[:, -1] = torch.where(ids[:, -1] > 0, ids[:, -1] - 1, ids[:, -1] + 1)
    swapped = [other if n == logits.tokens else t for n, t in enumerate(batch.inputs)]
    again = evaluate(graph, swapped, dtype=computing_type(graph))[logits.output]
    return bool(torch.allclose(said[:, :-1], again[:, :-1], rtol=1e-3, atol=1e-4))
