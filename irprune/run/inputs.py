"""The one source of random inputs, for proofs, comparisons, latency and calibration without data:
random where numbers are continuous, within what they index or the example's own where they have a
meaning. The same seed gives the same numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from irprune.errors import IrpruneError
from irprune.ir.dtype import element_type
from irprune.ir.graph import Graph, Value
from irprune.ir.size import Size, evaluate, probe_of
from irprune.ops.registry import lookup

if TYPE_CHECKING:
    import torch

__all__ = [
    "asserts_values",
    "check_fits",
    "draw",
    "drawn",
    "flat_tensors",
    "index_limits",
    "over_tensors",
    "random_inputs",
    "redraw",
    "to_device",
]


# -- from types ------------------------------------------------------------------------------------


def drawn(
    generator: np.random.Generator,
    shape: Sequence[int],
    dtype: str,
    limit: int | None = None,
    within: tuple[float, float] | None = None,
) -> NDArray[Any]:
    """An array of random numbers.

    Args:
        generator: where the numbers come from.
        shape: the shape of the array.
        dtype: its element type, by its short name.
        limit: integers are below it; 0 and 1 where it is None.
        within: real numbers are uniform between these two; normal where it is None.
    """
    kind = element_type(dtype)
    if kind.is_float or kind.is_complex:
        numbers = (
            generator.standard_normal(shape)
            if within is None
            else generator.uniform(*within, shape)
        )
        return np.asarray(numbers).astype(kind.numpy())
    high = 2 if limit is None or kind.kind == "bool" else max(1, limit)
    return np.asarray(generator.integers(0, high, shape)).astype(kind.numpy())


def check_fits(shape: Sequence[int], where: str) -> None:
    """Raises IrpruneError where numbers of this shape are more than this machine can hold."""
    held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if min(shape, default=0) < 0:
        raise IrpruneError(f"an input of shape {list(shape)}", where, "sizes are not negative")
    if 8 * prod(shape) > held:
        raise IrpruneError(
            f"an input of shape {list(shape)} takes {8 * prod(shape) / 1e9:.3g} GB, more than this machine holds",
            where,
        )


def random_inputs(
    graph: Graph, sizes: Mapping[str, int] | None = None, seed: int = 0, default: int = 2
) -> dict[str, NDArray[Any]]:
    """Inputs for ``graph`` by name; symbols take ``sizes`` or ``default``. Integers fit what they
    index, booleans are fair."""
    generator, below, known = np.random.default_rng(seed), index_limits(graph), sizes or {}
    for v in graph.inputs:
        if v.type.shape is None:
            raise IrpruneError(f"the input '{v.name}' is no tensor: it cannot be drawn", graph.name)
        check_fits([evaluate(s, known, default) for s in v.shape], f"input '{v.name}'")
    return {
        v.name: drawn(
            generator,
            [evaluate(s, known, default) for s in v.shape],
            v.dtype,
            evaluate(below[v], known, default) if v in below else None,
        )
        for v in graph.inputs
    }


def index_limits(graph: Graph) -> dict[Value, Size]:
    """For integer values that are used as indices, the size of the smallest dimension that they
    index."""
    below: dict[Value, Size] = {}

    def note(value: Value | None, size: Size) -> None:
        if value is not None and (value not in below or probe_of(size) < probe_of(below[value])):
            below[value] = size

    for node in reversed(graph.nodes):
        entry = lookup(node)
        if entry is not None and entry.indexes is not None:
            for i, size in entry.indexes(node):
                note(node.operand(i), size)
        elif entry is not None and entry.rearranges:
            for v in node.outputs:
                if v in below:
                    for x in node.inputs:
                        note(x, below[v])
    return below


def asserts_values(graph: Graph) -> bool:
    """Whether ``graph`` is right for values alone by which forward goes as it did in the example;
    others are not to be drawn for it."""
    return any((entry := lookup(n)) is not None and entry.asserts for n in graph.nodes)


# -- from an example -------------------------------------------------------------------------------


def draw(example: torch.Tensor, generator: torch.Generator, tails: bool = False) -> torch.Tensor:
    """Random numbers with the mean and spread of ``example``; integers and booleans are the
    example's own, a constant stays. With ``tails`` one in four numbers lies three times as far
    out, so that what happens seldom happens."""
    import torch

    if not example.is_floating_point() or example.numel() == 0 or example.is_meta:
        return example
    flat = example.detach().double().cpu()
    spread, middle = float(flat.std(correction=0)), float(flat.mean())
    if not (0 < spread < float("inf")) or not abs(middle) < float("inf"):
        return example
    made = torch.randn(example.shape, generator=generator, dtype=torch.float64) * spread
    if tails:
        made *= 1 + 2 * (torch.rand(example.shape, generator=generator) < 0.25)
    made += middle
    return made.to(example.dtype).to(example.device)


def redraw(
    args: Sequence[Any], kwargs: dict[str, Any], seed: int = 0, tails: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``args`` and ``kwargs`` with every floating-point tensor drawn anew; the same seed gives the
    same numbers."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = over_tensors((tuple(args), dict(kwargs)), lambda t: draw(t, generator, tails))
    return made[0], made[1]


def over_tensors(tree: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``tree`` with ``change`` applied to each tensor in it."""
    import torch
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda x: change(x) if isinstance(x, torch.Tensor) else x, tree)


def to_device(tree: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """``tree`` with its tensors on ``device``, those of floating-point numbers in ``dtype`` where
    one is given."""
    return over_tensors(
        tree, lambda t: t.to(device, dtype) if dtype and t.is_floating_point() else t.to(device)
    )


def flat_tensors(result: Any) -> list[torch.Tensor]:
    """The tensors of a nested result, in order; those in a dictionary of a class of its own too,
    such as stands in a folder for a class that is not installed."""
    import torch
    from torch.utils import _pytree as pytree

    found: list[torch.Tensor] = []
    for x in pytree.tree_leaves(result):
        if isinstance(x, torch.Tensor):
            found.append(x)
        elif isinstance(x, dict):
            found += flat_tensors(dict(x))
    return found
