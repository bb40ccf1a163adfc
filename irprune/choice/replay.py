"""A plan on a graph: group by group on the model it was made on, through its weights on another
form of that model.

An export couples the same channels but may store a weight under another name, transposed, with
dimensions of size 1 or with dimensions merged. What the plan drops of each weight is laid out as
masks; masks give the leaves of the graph at hand; the leaves must then give exactly the masks
again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from math import isclose, prod

import numpy as np

from irprune.analysis.blocks import blocks_of
from irprune.choice.plan import Choice, Plan, Recorded, Spot, fingerprint, probe
from irprune.criteria.places import place_of
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import Group, Member, groups_of
from irprune.ir.selection import Indices, Mask, Selection
from irprune.ir.size import probe_of

__all__ = ["choose_by_plan", "replay"]

_HINT = "replay it on the model it was made on, or on an export of it"
# For each dimension of the graph's weight, the plan's dimensions that it consists of
Fit = tuple[tuple[int, ...], ...]


def choose_by_plan(plan: Plan, graph: Graph) -> None:
    """Set the choice of an analysed ``graph`` to ``plan``, as the pass ``choose`` sets it. Raises
    what ``replay`` raises."""
    if plan.low_rank and plan.calibrated:
        raise IrpruneError(
            "the plan has layers of low rank that were fitted to calibration data, which it has not",
            plan.model,
            "prune again with them and the ranks of the plan: low_rank= and keep_indices=",
        )
    graph.kept = replay(plan, graph)
    graph.low_rank = dict(plan.low_rank)
    graph.skipped = {
        g.axis: "the plan leaves it whole"
        for g in groups_of(graph)
        if not g.frozen and not graph.kept.changes(g.axis)
    }


def replay(plan: Plan, graph: Graph) -> Selection:
    """The choice of ``plan`` on an analysed ``graph``. Raises IrpruneError, naming the weight,
    where the plan does not fit it."""
    if plan.dropped and plan.source != fingerprint(graph):
        raise IrpruneError(
            "the plan leaves whole branches out, which are not found in another form of the model",
            plan.model,
            "replay it on the model it was made on, and export that",
        )
    return (
        _same(plan, graph) if plan.source == fingerprint(graph) else _Elsewhere(plan, graph).kept()
    )


def _same(plan: Plan, graph: Graph) -> Selection:
    groups = {g.name: g for g in groups_of(graph)}
    choice: dict[Axis, Indices] = {}
    within: dict[Axis, Axis] = {}
    for c in plan.choices:
        group = groups.get(c.name)
        if group is None or group.size != c.size:
            raise _misfit(
                f"group {c.name!r}",
                f"{c.size} indices",
                "no such group" if group is None else f"{group.size}",
            )
        _free(group)
        choice[group.axis] = np.asarray(c.kept, dtype=np.int64)
        if c.within:
            if c.within not in groups:
                raise _misfit(f"group {c.name!r}", f"blocks of {c.within!r}", "no such group")
            within[group.axis] = groups[c.within].axis
    blocks = blocks_of(graph) if within else {}
    for axis, outer in within.items():
        if blocks.get(axis) is not outer:
            name = next(g.name for g in groups.values() if g.axis is axis)
            raise _misfit(f"group {name!r}", "a choice in each block", "one choice for all blocks")
    try:
        return Selection(choice, within, plan.dropped)
    except ValueError as broken:
        raise IrpruneError(
            f"the plan is damaged: {broken}", plan.model, "make it again"
        ) from broken


def _misfit(what: str, expected: str, found: str) -> IrpruneError:
    return IrpruneError(
        f"the plan does not fit this model: {what}: expected {expected}, found {found}", "", _HINT
    )


def _free(group: Group) -> None:
    if group.frozen:
        raise _misfit(f"group {group.name!r}", "one that may shrink", f"frozen: {group.frozen}")


class _Elsewhere:
    """The plan's weights found in a graph that is not the one it was made on."""

    def __init__(self, plan: Plan, graph: Graph) -> None:
        self.plan, self.graph = plan, graph
        self.groups = groups_of(graph)
        self.blocks = blocks_of(graph)
        self.masks = _masks(plan)
        self.source = self._matched()
        for c in plan.choices:
            if not any(spot.weight in self.source.values() for spot in c.members):
                raise _misfit(
                    f"weight {c.members[0].weight!r}",
                    f"shape {list(plan.weights[c.members[0].weight].shape)}",
                    "no such weight",
                )
        self.fits = {w: _fits_of(plan.weights[n], w) for w, n in self.source.items()}
        for w, n in self.source.items():
            if not self.fits[w]:
                raise _misfit(
                    f"weight {n!r}",
                    f"shape {list(plan.weights[n].shape)}",
                    f"{[str(s) for s in w.shape]}".replace("'", ""),
                )

    def _matched(self) -> dict[Weight, str]:
        """Weights of the graph and what the plan calls them: by name or alias, the others by shape
        and probe."""
        out: dict[Weight, str] = {}
        rest: list[Weight] = []
        for w in self.graph.weights.values():
            name = next(
                (
                    n
                    for n in (w.name, *w.aliases, w.name.rpartition("@")[0])
                    if n in self.plan.weights
                ),
                None,
            )
            if name is not None:
                out[w] = name
            else:
                rest.append(w)
        found = set(out.values())
        wanted = {
            n: r for n, r in self.plan.weights.items() if n not in found and r.probe is not None
        }
        for name, record in wanted.items():
            alike = [
                w
                for w in rest
                if _wide(w.shape) == _wide(record.shape) and _agrees(record, probe(w))
            ]
            if len(alike) == 1:
                out[alike[0]] = name
                rest.remove(alike[0])
        return out

    def kept(self) -> Selection:
        """The choice. Raises IrpruneError where the graph's coupling cannot express what the plan
        drops."""
        members: dict[Weight, list[tuple[Group, Member]]] = {w: [] for w in self.source}
        for group in self.groups:
            for m in group.members:
                if m.weight in members:
                    members[m.weight].append((group, m))
        known = self._settle(members)
        choice: dict[Axis, Indices] = {}
        within: dict[Axis, Axis] = {}
        for group in self.groups:
            rows = known.get(group.axis)
            if rows is None or rows.all():
                continue
            _free(group)
            counts = rows.sum(axis=-1)
            present = rows[counts > 0]
            if rows.ndim == 1 or (present == present[0]).all():
                choice[group.axis] = np.flatnonzero(rows if rows.ndim == 1 else present[0])
            elif len(set(counts[counts > 0].tolist())) == 1:
                n = int(counts.max())
                choice[group.axis] = np.stack(
                    [np.flatnonzero(r) if r.any() else np.arange(n) for r in rows]
                )
                within[group.axis] = self.blocks[group.axis]
        made = Selection({a: k for a, k in choice.items() if k.shape[-1]}, within)
        for w, fit in self.chosen.items():
            laid = self._laid_out(w, fit)
            for dim, mask in enumerate(laid):
                if self._misses(made, w, dim, laid):
                    expected = f"{int(mask.sum(axis=dim).max())} of {mask.shape[dim]} kept in dimension {dim}"
                    raise _misfit(
                        f"weight {self.source[w]!r}", expected, "channels coupled in another way"
                    )
        return made

    def _settle(self, members: dict[Weight, list[tuple[Group, Member]]]) -> dict[Axis, Mask]:
        """Decide how each weight's dimensions lie, the certain ones first, and read the leaves off
        them."""
        known: dict[Axis, Mask] = {}
        self.chosen: dict[Weight, Fit] = {}
        waiting = list(self.source)
        while waiting:
            ready = None
            for w in waiting:
                able = [f for f in self.fits[w] if self._clash(w, f, members[w], known) is None]
                if not able:
                    other = self._clash(w, self.fits[w][0], members[w], known)
                    raise _misfit(
                        f"weight {self.source[w]!r}",
                        "what the plan drops of it",
                        f"group {other!r} coupled to other channels",
                    )
                if len(able) == 1:
                    ready = (w, able[0])
                    break
            # All lie in more than one way: the plainest of the first is as good as any
            if ready is None:
                first = waiting[0]
                ready = (
                    first,
                    next(
                        f
                        for f in self.fits[first]
                        if self._clash(first, f, members[first], known) is None
                    ),
                )
            w, fit = ready
            waiting.remove(w)
            self.chosen[w] = fit
            for group, rows in self._read(w, fit, members[w]):
                known[group.axis] = rows
        return known

    def _clash(
        self, w: Weight, fit: Fit, members: list[tuple[Group, Member]], known: dict[Axis, Mask]
    ) -> str | None:
        """The first group that reads otherwise off ``w`` than it is known already."""
        seen = dict(known)
        for group, rows in self._read(w, fit, members):
            if group.axis in seen and not _equal(seen[group.axis], rows):
                return group.name
            seen[group.axis] = rows
        return None

    def _read(
        self, w: Weight, fit: Fit, members: list[tuple[Group, Member]]
    ) -> Iterator[tuple[Group, Mask]]:
        """What each group keeps by the masks of ``w``: per index, or per block and index where that
        is legal."""
        laid = self._laid_out(w, fit)
        for group, m in members:
            place = place_of(m, self.blocks.get(group.axis))
            here = np.any(
                laid[m.dim],
                axis=tuple(d for d in range(w.rank) if d not in place.dims),
                keepdims=True,
            )
            whole = np.broadcast_to(
                here, [probe_of(s) if d in place.dims else 1 for d, s in enumerate(w.shape)]
            )
            flat = np.moveaxis(whole, place.dims, range(len(place.dims))).reshape(-1)
            rows: Mask = np.any(flat[place.at], axis=-1, keepdims=True)[..., 0]
            yield group, rows

    def _laid_out(self, w: Weight, fit: Fit) -> list[Mask]:
        """For each dimension of ``w`` who is present, to broadcast against it."""
        name = self.source[w]
        sizes = self.plan.weights[name].shape
        order = [d for dims in fit for d in dims]
        order += [d for d in range(len(sizes)) if d not in order]  # of size 1
        out = []
        for t, own in enumerate(fit):
            mask: Mask = np.ones([1] * len(sizes), dtype=bool)
            for d in own:
                mask = mask & self.masks.get((name, d), mask)
            wide = [k == t or any(mask.shape[d] != 1 for d in dims) for k, dims in enumerate(fit)]
            full = {d: sizes[d] for k, dims in enumerate(fit) if wide[k] for d in dims}
            mask = np.broadcast_to(mask, [full.get(d, 1) for d in range(len(sizes))]).transpose(
                order
            )
            out.append(mask.reshape([prod(full.get(d, 1) for d in dims) for dims in fit]))
        return out

    def _misses(self, made: Selection, w: Weight, dim: int, laid: list[Mask]) -> bool:
        """Whether ``made`` keeps others along a dimension of ``w`` than the plan, in what the plan
        keeps of the other dimensions."""
        axes = w.axes or ()
        wrong = made.present(axes, dim) != laid[dim]
        for d, n in enumerate(wrong.shape):
            if d != dim and n != 1:
                wrong = wrong & laid[d]
        return bool(wrong.any())


def _equal(a: Mask, b: Mask) -> bool:
    """Whether two readings agree; rows of blocks that are gone say nothing."""
    if a.shape != b.shape:
        return False
    if a.ndim == 1:
        return bool((a == b).all())
    both = a.any(axis=1) & b.any(axis=1)
    return bool((a[both] == b[both]).all())


def _masks(plan: Plan) -> dict[tuple[str, int], Mask]:
    """For each dimension of a weight that the plan cuts, who stays, to broadcast against the
    weight."""
    out: dict[tuple[str, int], Mask] = {}
    for c in plan.choices:
        for spot in c.members:
            if spot.weight not in plan.weights:
                raise IrpruneError(
                    f"the plan is damaged: it says nothing of weight {spot.weight!r}",
                    plan.model,
                    "make it again",
                )
            key, mask = (spot.weight, spot.dim), _there(c, spot, plan.weights[spot.weight].shape)
            out[key] = out[key] & mask if key in out else mask
    return out


def _there(c: Choice, spot: Spot, shape: tuple[int, ...]) -> Mask:
    """Who stays along the dimension of ``spot`` by this choice alone."""
    rows = np.asarray(c.kept, dtype=np.int64)
    dropped = np.ones((*rows.shape[:-1], c.size), dtype=bool)
    np.put_along_axis(dropped, rows, False, axis=-1)
    at = spot.offset + spot.stride * np.arange(c.size)
    blocks = list(spot.blocks)
    if rows.ndim == 2 and spot.beside is None:
        count, stride = blocks.pop(spot.row)
        at = at[None, :] + stride * np.arange(count)[:, None]
    own = at.ndim
    for count, stride in blocks:
        at = at[..., None] + stride * np.arange(count)
    at = at.reshape(*at.shape[:own], -1)
    width = shape[spot.dim]
    if spot.beside is None:
        mask = np.ones(width, dtype=bool)
        mask[at[dropped]] = False
        return mask.reshape([width if d == spot.dim else 1 for d in range(len(shape))])
    dim, stride = spot.beside
    mask = np.ones((len(rows), width), dtype=bool)
    block, index = np.nonzero(dropped)
    mask[block[:, None], at[index]] = False
    mask = mask[np.arange(shape[dim]) // stride % len(rows)]
    return (mask if dim < spot.dim else mask.T).reshape(
        [n if d in (dim, spot.dim) else 1 for d, n in enumerate(shape)]
    )


def _wide(shape: tuple[object, ...]) -> list[int]:
    return sorted(int(str(s)) for s in shape if s != 1 and str(s).isdecimal())


def _agrees(record: Recorded, found: tuple[float, ...] | None) -> bool:
    """Whether two probes are of the same values, in whatever precision and order of dimensions."""
    if found is None or record.probe is None or len(found) != len(record.probe):
        return False
    return all(
        map(_near, [*record.probe[:3], *sorted(record.probe[3:])], [*found[:3], *sorted(found[3:])])
    )


def _near(a: float, b: float) -> bool:
    return isclose(a, b, rel_tol=1e-2, abs_tol=1e-6)


def _fits_of(record: Recorded, w: Weight) -> list[Fit]:
    """The ways in which ``w`` may lie; where its values are those of the plan and say which, that
    one alone."""
    fits = list(_fits(record.shape, tuple(probe_of(s) for s in w.shape)))
    if (
        len(fits) < 2
        or record.probe is None
        or (found := probe(w)) is None
        or not _agrees(record, found)
    ):
        return fits
    wide = [d for d, s in enumerate(record.shape) if s != 1]
    end = dict(zip(wide, record.probe[3:], strict=True))
    told = [
        f
        for f in fits
        if all(
            _near(end[d], x)
            for (d, *_), x in zip((dims for dims in f if dims), found[3:], strict=True)
        )
    ]
    return told if len(told) == 1 else fits


def _fits(source: tuple[int, ...], target: tuple[int, ...]) -> Iterator[Fit]:
    """The ways in which ``target`` may be ``source`` permuted, merged, or with dimensions of size 1
    more or less; the plain one first."""
    wide = [d for d, s in enumerate(source) if s != 1]
    spread = [d for d, s in enumerate(target) if s != 1]
    if len(wide) == len(spread):
        for order in permutations(wide):
            if all(source[d] == target[t] for d, t in zip(order, spread, strict=True)):
                yield tuple(
                    (order[spread.index(t)],) if t in spread else () for t in range(len(target))
                )
    elif len(spread) < len(wide):
        merged: list[tuple[int, ...]] = []
        left = list(wide)
        for t in range(len(target)):
            taken: list[int] = []
            while left and prod(source[d] for d in taken) < target[t]:
                taken.append(left.pop(0))
            merged.append(tuple(taken))
        if not left and all(
            prod(source[d] for d in dims) == s for dims, s in zip(merged, target, strict=True)
        ):
            yield tuple(merged)
