"""Cutting exactly what is said: indices that are listed, what torch's own masks have zeroed, or
only what is dead anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.api.option_kinds import DEAD, MASKS
from irprune.choice.exact import choose_exactly, choose_masks
from irprune.choice.zero_channels import zero_channels
from irprune.errors import IrpruneError, option
from irprune.ir.axis import Axis
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph, Weight
from irprune.ir.selection import Mask, Selection
from irprune.ops.arrays import as_numpy, is_meta
from irprune.validate.unchanged import changes_nothing

__all__ = ["choose_fixed", "with_masks"]


def with_masks(model: Any, wanted: Any) -> tuple[Any, dict[str, NDArray[Any]]]:
    """The model to capture and its masks by weight, where the masks of ``torch.nn.utils.prune``
    are what is ``wanted``; else ``model`` as it is."""
    if wanted != MASKS:
        return model, {}
    import torch

    if not isinstance(model, torch.nn.Module):
        raise IrpruneError(
            "masks of torch.nn.utils.prune lie in modules of torch",
            str(model),
            f"{option('keep_indices', repr(DEAD))} finds channels of zeros in files",
        )
    from irprune.frontend.torch.masks import masked_twin

    twin, masks = masked_twin(model)
    return twin, {name: as_numpy(mask) for name, mask in masks.items()}


def choose_fixed(graph: Graph, wanted: Any, masks: Mapping[str, NDArray[Any]]) -> list[str]:
    """Set the choice of an analysed ``graph`` to what ``keep_indices`` says.

    Args:
        graph: The graph.
        wanted: A mapping (``irprune.choice.exact``), "masks" or "dead".
        masks: For "masks": by weight, 0 where an element is masked.

    Returns:
        Notes for the report.

    Raises:
        IrpruneError: For what cannot be kept or dropped as it is said.
    """
    if isinstance(wanted, Mapping):
        choose_exactly(graph, wanted)
        return []
    if wanted == MASKS:
        gone = zero_channels(graph, lambda w: _masked(w, masks), vectors=False)
        choose_masks(graph, gone, "no channel of it is masked as a whole")
        return _sparse(masks, graph)
    if any(is_meta(w.load()) for w in graph.weights.values() if w.kind == "parameter"):
        raise IrpruneError("the weights are on the meta device", graph.name, "load them")
    dead = _dead(graph, zero_channels(graph, _zeros, vectors=True))
    choose_masks(graph, dead, "none of its channels is dead")
    count = sum(int(m.sum()) for m in dead.values())
    return [
        f"{count} dead channel{'s' * (count > 1)} went: the outputs are exactly those of the original"
    ] * bool(dead)


def _zeros(weight: Weight) -> Mask | None:
    if not is_real(weight.dtype):
        return None
    array = as_numpy(weight.load())
    return np.asarray(array == 0) if (array == 0).any() else None


def _masked(weight: Weight, masks: Mapping[str, NDArray[Any]]) -> Mask | None:
    found = next((masks[n] for n in (weight.name, *weight.aliases) if n in masks), None)
    return None if found is None else np.asarray(found == 0)


def _sparse(masks: Mapping[str, NDArray[Any]], graph: Graph) -> list[str]:
    """That single elements are masked, which leave no channel out."""
    if graph.kept is not None and graph.kept.choice:
        return []
    share = 1 - sum(m.sum() for m in masks.values()) / max(1, sum(m.size for m in masks.values()))
    return [f"{share:.1%} of the masked weights are zero, and no channel is masked as a whole"]


def _dead(graph: Graph, found: Mapping[Axis, Mask]) -> dict[Axis, Mask]:
    """Of channels without weights on one side those that the graph does as well without, whatever
    stands between the two sides."""

    def silent(some: Mapping[Axis, Mask]) -> bool:
        kept = {x: np.flatnonzero(~m) for x, m in some.items()}
        return changes_nothing(graph, Selection(kept))

    some = {x: _but_one(m) for x, m in found.items()}
    some = {x: m for x, m in some.items() if m.any()}
    if not some or silent(some):
        return some
    return {x: m for x, m in some.items() if silent({x: m})}


def _but_one(mask: Mask) -> Mask:
    """``mask``, that leaves the first channel where all would go."""
    out = mask.copy()
    out[0] &= not mask.all()
    return out
