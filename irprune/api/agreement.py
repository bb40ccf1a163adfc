"""What ranks that prune together must have in common, and how they keep it: the same model, options
and data go in, and the scores, the choice and the weights of the first rank are those of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from irprune.choice.plan import Plan, fingerprint
from irprune.choice.replay import choose_by_plan
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.ops.arrays import checksum, is_meta, is_tensor

if TYPE_CHECKING:
    from irprune.run.ranks import Ranks

A = TypeVar("A")

__all__ = ["check_same", "choose_together", "same_scores", "same_weights"]

_OWN = (
    "progress",
    "device",
    "calibration",
)  # options that ranks may differ in, or that are compared where they are read


def check_same(ranks: Ranks, graph: Graph, options: Mapping[str, Any]) -> None:
    """Raises IrpruneError where a rank has another model or other options than the first."""
    if ranks.size == 1:
        return
    mine = {f"option {name}": _shown(x) for name, x in options.items() if name not in _OWN}
    mine["model"] = fingerprint(graph)
    mine["model's weights"] = _weights(graph)
    first, *others = ranks.gather(mine)
    for rank, theirs in enumerate(others, 1):
        wrong = [name for name in first if first[name] != theirs.get(name)]
        if wrong:
            told = wrong[0].startswith("option")
            raise IrpruneError(
                f"rank {rank} gives another {wrong[0]} than rank 0"
                + (f": {theirs[wrong[0]]} and {first[wrong[0]]}" if told else ""),
                "",
                "call irprune with the same model, options and data on every rank",
            )


def _shown(value: Any) -> str:
    """A value as text that is the same in every process."""
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_shown(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    kind = value if isinstance(value, type) or callable(value) else type(value)
    return getattr(kind, "__qualname__", type(kind).__qualname__)


def _weights(graph: Graph) -> str:
    """A digest of the values of all weights."""
    digest = sha256()
    for weight in graph.weights.values():
        held = weight.load()
        digest.update(f"{weight.name} {weight.dtype} {tuple(held.shape)} ".encode())
        if not is_meta(held):
            digest.update(checksum(held))
    return digest.hexdigest()


def same_scores(ranks: Ranks, graph: Graph) -> None:
    """The scores of the first rank, on all: processors of other kinds round otherwise."""
    scores, drops = ranks.first((list(graph.scores.values()), list(graph.drops.values())))
    graph.scores = dict(zip(graph.scores, scores, strict=True))
    graph.drops = dict(zip(graph.drops, drops, strict=True))


def choose_together(ranks: Ranks, graph: Graph, timed: bool, choose: Callable[[], A]) -> A:
    """Make the same choice on every rank: what is ``timed``, which comes out differently each time,
    on the first alone."""
    if ranks.size == 1 or not timed:
        return choose()
    names = {g.axis: g.name for g in groups_of(graph)}
    if ranks.leads:
        found = choose()
        skipped = {names[leaf]: why for leaf, why in graph.skipped.items()}
        ranks.first((found, Plan.from_graph(graph).as_json(), skipped))
        return found
    told: Any = ranks.first(None)
    found, plan, skipped = told
    choose_by_plan(Plan.from_json(plan), graph)
    graph.skipped = {leaf: skipped[n] for leaf, n in names.items() if n in skipped}
    return found


def same_weights(ranks: Ranks, cut: Graph) -> None:
    """The weights of the first rank, on all, where any differ: those of a repair, which processors
    of other kinds round otherwise."""
    if ranks.size == 1:
        return
    mine = [checksum(w.load()) for w in cut.weights.values()]
    every = ranks.gather([sha256(c).digest() for c in mine])
    for i, weight in enumerate(cut.weights.values()):
        if any(theirs[i] != every[0][i] for theirs in every):
            held = ranks.first(weight.load())
            weight.load = _LoadedArray(held)


class _LoadedArray:
    """An array that is loaded as it is, or as a copy where a module will own it."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __call__(self) -> Any:
        return self.array.clone() if is_tensor(self.array) else self.array
