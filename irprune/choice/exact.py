"""A choice that is given index by index: for dimensions of weights, what of them is kept."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from irprune.analysis.blocks import blocks_of
from irprune.criteria.places import elements
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis, leaves
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import Group, LeafPosition, groups_of, leaf_positions
from irprune.ir.selection import Indices, Mask, Selection
from irprune.ir.size import probe_of

__all__ = ["choose_exactly", "choose_masks"]

_WHAT = "indices to keep"
_SHOWN = 8  # indices that a message lists


def choose_exactly(graph: Graph, wanted: Mapping[str, Sequence[int] | Any]) -> None:
    """Set the choice of an analysed ``graph`` to exactly ``wanted``.

    Args:
        graph: The graph; every group that is not named stays whole.
        wanted: ``weight:dim`` -> the kept indices of that dimension, or a truth for each of its
            indices.

    Raises:
        IrpruneError: For what is no dimension of a weight, for indices that it does not have, for
            channels that may not go (naming why), for indices that go together of which only some
            are kept, and for two entries that say different things of the same channels.
    """
    groups = {g.axis: g for g in groups_of(graph)}
    blocks = blocks_of(graph)
    choice: dict[Axis, Indices] = {}
    within: dict[Axis, Axis] = {}
    said: dict[Axis, str] = {}
    for name, given in wanted.items():
        weight, dim = _place(graph, name)
        mask = _mask(name, given, probe_of(weight.shape[dim]))
        axis = (weight.axes or ())[dim]
        here = {
            slot.leaf: _rows(slot, mask, blocks.get(slot.leaf))
            for slot in leaf_positions(axis)
            if slot.leaf in groups
        }
        for x, rows in here.items():
            _check_free(name, groups[x], rows)
        own = {x: _indices(name, groups[x], rows) for x, rows in here.items() if not rows.all()}
        held = {x: blocks[x] for x, k in own.items() if k.ndim == 2}
        _check_whole(name, weight, dim, Selection(own, held), mask)
        for x in here:
            kept = own.get(x, np.arange(probe_of(x.size)))
            before = choice.get(x)
            if before is not None and not np.array_equal(before, kept):
                raise IrpruneError(
                    f"{_WHAT}: {said[x]!r} and {name!r} keep different indices of the same "
                    "channels",
                    groups[x].name,
                    "name one of them",
                )
            choice[x], said[x] = kept, name
        within.update(held)
    _set(graph, Selection(_cut(choice), within), "it is not named among the indices to keep")


def choose_masks(graph: Graph, gone: Mapping[Axis, Mask], whole: str) -> None:
    """Set the choice of an analysed ``graph`` to what is left without ``gone``; every group keeps
    at least one channel. ``whole`` says why the others stay."""
    choice: dict[Axis, Indices] = {}
    for axis, mask in gone.items():
        kept = np.flatnonzero(~mask)
        choice[axis] = kept if len(kept) else np.array([0])
    _set(graph, Selection(_cut(choice)), whole)


def _cut(choice: Mapping[Axis, Indices]) -> dict[Axis, Indices]:
    return {x: k for x, k in choice.items() if k.shape[-1] != x.size}


def _set(graph: Graph, kept: Selection, whole: str) -> None:
    graph.kept = kept
    graph.skipped = {
        g.axis: whole for g in groups_of(graph) if not g.frozen and not kept.changes(g.axis)
    }


def _place(graph: Graph, name: str) -> tuple[Weight, int]:
    """The weight and dimension that ``weight:dim`` means."""
    known = {n: w for w in graph.weights.values() for n in (w.name, *w.aliases)}
    path, _, dim = name.rpartition(":")
    weight = known.get(path)
    if weight is None:
        near = difflib.get_close_matches(path or name, known, n=3, cutoff=0.5) or list(known)[:3]
        raise IrpruneError(
            f"{_WHAT}: {name!r} is no dimension of a weight",
            graph.name,
            f"write weight:dimension; near matches: {', '.join(near)}",
        )
    if not dim.isdecimal() or int(dim) >= weight.rank:
        raise IrpruneError(
            f"{_WHAT}: {path!r} has no dimension {dim!r}",
            graph.name,
            f"it has {weight.rank}, of sizes {[probe_of(s) for s in weight.shape]}",
        )
    return weight, int(dim)


def _mask(name: str, given: Any, size: int) -> Mask:
    """Who stays, of the ``size`` indices of a dimension."""
    kept = np.asarray(given)
    if kept.dtype == np.bool_ and kept.shape == (size,):
        mask: Mask = kept
    else:
        whole = kept.ndim == 1 and kept.dtype.kind in "iu"
        if kept.size == 0:
            raise IrpruneError(f"{_WHAT}: {name!r} keeps nothing", "", "keep at least one index")
        if not whole or kept.min() < 0 or kept.max() >= size or len(set(kept.tolist())) < len(kept):
            raise IrpruneError(
                f"{_WHAT}: {name!r} keeps {_few(kept.reshape(-1).tolist())}",
                "",
                f"give different whole numbers from 0 to {size - 1}, or {size} truths",
            )
        mask = np.zeros(size, dtype=bool)
        mask[kept] = True
    if not mask.any():
        raise IrpruneError(f"{_WHAT}: {name!r} keeps nothing", "", "keep at least one index")
    return mask


def _rows(slot: LeafPosition, mask: Mask, outer: Axis | None) -> Mask:
    """Who of a leaf has anything left in its dimension: by index, or by index of ``outer`` and
    index where that stands around it."""
    at = elements(slot, outer if outer in slot.around else None)
    return np.asarray(mask[at].any(axis=-1))


def _indices(name: str, group: Group, rows: Mask) -> Indices:
    """The kept indices of a group: one row, or a row for each block where blocks differ."""
    alive = rows[rows.any(axis=-1)] if rows.ndim == 2 else rows[None]
    if (alive == alive[0]).all():
        return np.flatnonzero(alive[0])
    counts = set(alive.sum(axis=-1).tolist())
    if len(counts) > 1:
        raise IrpruneError(
            f"{_WHAT}: {name!r} keeps {_few(sorted(counts))} indices in different blocks",
            group.name,
            "keep the same number in each",
        )
    n = counts.pop()
    return np.stack([np.flatnonzero(r) if r.any() else np.arange(n) for r in rows])


def _check_free(name: str, group: Group, rows: Mask) -> None:
    if group.frozen and not rows.all():
        raise IrpruneError(
            f"{_WHAT}: {name!r} drops channels that may not go: {group.frozen}",
            group.name,
            "irprune explain says more",
        )


def _check_whole(name: str, weight: Weight, dim: int, kept: Selection, mask: Mask) -> None:
    """Whether dropping whole channels leaves what ``mask`` asks for."""
    axes = weight.axes or ()
    present = np.asarray(kept.table(axes[dim]).mask)
    if present.ndim > 1:  # by block, which stands in another dimension
        return
    wrong = np.flatnonzero(present & ~mask)
    if len(wrong):
        names = dict.fromkeys(str(x.role or "channel") for x in leaves(axes[dim]))
        raise IrpruneError(
            f"{_WHAT}: {name!r} drops {_few(wrong.tolist())}, which go only together with "
            "others that it keeps",
            weight.name,
            f"keep or drop whole channels ({', '.join(names)}); irprune inspect shows the groups",
        )


def _few(found: Sequence[Any]) -> str:
    return ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
