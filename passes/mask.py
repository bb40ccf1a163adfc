"""mask: zeros within weights, unstructured or N of M, without changing a shape.

Before: ``%w: f32[64, 32]`` with values everywhere. After ``mask{pattern="2:4"}``: the same shape,
with two of every four inputs of each output zero.

N:M sparsity as in Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021; unstructured as
in Han et al., NeurIPS 2015, and, where there are calibration data, weighted by activations as in
Sun et al. (Wanda), ICLR 2024."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irprune.base.near import meant
from irprune.criteria.readings import key_of, readings_of
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.passes.result import PassResult

if TYPE_CHECKING:
    import torch

__all__ = ["Mask", "apply_masks"]


@dataclass(frozen=True)
class Mask:
    """Zero the least important weights of every layer that maps its input linearly.

    Args:
        pattern: ``"2:4"`` keeps 2 of every 4 consecutive inputs (those of a layer whose inputs are
            no multiple of 4 are left, with a note); ``"unstructured"`` drops ``ratio`` of the
            weights.
        ratio: Share of weights that is dropped, for unstructured masks.
        scope: ``local``: the share of every layer; ``global``: one threshold for all.
        calibration: Inputs; magnitudes are weighted by the norm of the activation they meet.

    ``data["masks"]`` of the result holds, by weight name, a tensor of the weight's shape that is
    True for what is kept, for training on (``apply_masks``)."""

    pattern: str = "unstructured"
    ratio: float = 0.5
    scope: str = "local"
    calibration: Any = None

    def __post_init__(self) -> None:
        if self.pattern != "unstructured":
            found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
            if found is None or not 0 < int(found[1]) < int(found[2]):
                raise IrpruneError(
                    f"pattern is {self.pattern!r}",
                    "mask",
                    "'unstructured', or 'N:M' with N below M, such as '2:4'",
                )
        if not 0 <= self.ratio < 1:
            raise IrpruneError(
                f"ratio is {self.ratio}",
                "mask",
                "the share of weights that is dropped, from 0 to below 1",
            )
        if self.scope not in ("local", "global"):
            hint = meant(str(self.scope), ("local", "global"), "one of local, global")
            raise IrpruneError(f"scope is {self.scope!r}", "mask", hint)

    def run(self, graph: Graph) -> PassResult:
        import torch

        from irprune.analysis.layers import layers

        masks: dict[str, torch.Tensor] = {}
        notes: list[str] = []
        chosen = {layer.weight.name: layer for layer in layers(graph)}
        read = {}
        if self.calibration is not None:
            read = readings_of(self.calibration, graph, "mask").of(
                list(chosen.values()), products=False
            )
        scores: dict[str, torch.Tensor] = {}
        for name, layer in chosen.items():
            score = layer.load_matrix().abs()
            if read:
                score = score * read[key_of(layer)].square.sqrt()[..., None]
            scores[name] = score
        everything = torch.cat([s.flatten() for s in scores.values()]) if scores else torch.zeros(0)
        threshold = _threshold(everything, self.ratio) if self.scope == "global" else None
        changed = False
        for name, score in scores.items():
            layer = chosen[name]
            mask = self._of(score, threshold)
            if mask is None:
                m = int(self.pattern.split(":")[1])
                notes.append(f"{name}: {score.shape[1]} inputs are no multiple of {m}, left whole")
                continue
            kept = layer.array(mask)
            masks[name] = kept.contiguous()
            if not bool(mask.all()):
                layer.stored.store(layer.stored.load() * kept)
                changed = True
        return PassResult(changed, tuple(notes), {"masks": masks})

    def _of(self, score: torch.Tensor, threshold: float | None) -> torch.Tensor | None:
        """True for what is kept of a layer [b, k, o]; None where the pattern does not fit."""
        import torch

        if self.pattern == "unstructured":
            if threshold is not None:
                return score > threshold
            gone = torch.argsort(score.flatten(), stable=True)[: round(self.ratio * score.numel())]
            mask = torch.ones(score.numel(), dtype=torch.bool)
            mask[gone] = False
            return mask.reshape(score.shape)
        n, m = map(int, self.pattern.split(":"))
        b, k, o = score.shape
        if k % m:
            return None
        parts = score.reshape(b, k // m, m, o)
        best = torch.argsort(parts, dim=2, descending=True, stable=True)[:, :, :n]
        mask = torch.zeros_like(parts, dtype=torch.bool).scatter_(2, best, True)
        return mask.reshape(b, k, o)


def _threshold(scores: torch.Tensor, ratio: float) -> float:
    count = round(ratio * scores.numel())
    return float(scores.kthvalue(count).values) if count else -1.0


def apply_masks(module: Any, masks: Mapping[str, torch.Tensor]) -> None:
    """Zero in ``module`` what ``masks`` drops: to be called after every step of an optimizer."""
    import torch

    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            own[name].mul_(mask.to(own[name]))
