"""Why two dimensions are coupled, or why one is frozen: the chain of operators that hands the
channels on from one to the other."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from irprune.analysis.kinds import kinds
from irprune.analysis.outline import blank, fold_names, placed
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis, Reason, leaves
from irprune.ir.graph import Graph, Node, Value
from irprune.ir.group import Group, groups_of

__all__ = ["Explanation", "ExplanationStep", "explain"]


@dataclass(frozen=True)
class ExplanationStep:
    """One operator on the way: what it is, where the user wrote it, and in which module."""

    op: str
    source: str
    scope: str

    def __str__(self) -> str:
        place = " ".join(
            x
            for x in (
                self.scope and f"in {self.scope}",
                self.source and f"at {placed(self.source)}",
            )
            if x
        )
        return f"{self.op}  {place}".rstrip()


@dataclass(frozen=True)
class Explanation:
    """A dimension: its size, the group it belongs to and what that is, and the chain to each other
    member or to what froze it."""

    name: str
    size: int
    group: str
    frozen: str
    chains: tuple[tuple[str, tuple[ExplanationStep, ...]], ...]
    kind: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "size": self.size,
            "group": self.group,
            "kind": self.kind,
            "frozen": self.frozen,
            "chains": [
                {"to": to, "steps": [asdict(s) for s in steps]} for to, steps in self.chains
            ],
        }

    def __str__(self) -> str:
        head = f"{self.name}: {self.size} channels of group {self.group}{self.kind and f' ({self.kind})'}"
        places = f"{len(self.chains)} other place{'s' * (len(self.chains) != 1)}"
        head += f", frozen: {placed(self.frozen)}" if self.frozen else f", coupled with {places}"
        alike: dict[str, list[tuple[str, tuple[ExplanationStep, ...]]]] = {}
        for chain in self.chains:
            alike.setdefault(blank(chain[0]), []).append(chain)
        ways: dict[tuple[ExplanationStep, ...], list[str]] = {}
        for many in alike.values():
            nearest, steps = min(many, key=lambda chain: len(chain[1]))
            name = fold_names([to for to, _ in many])
            ways.setdefault(steps, []).append(
                name if len(many) == 1 else f"{name} (nearest: {nearest})"
            )
        lines = [head]
        told: dict[tuple[ExplanationStep, ...], None] = {}
        for steps, names in ways.items():
            lines.append(f"  {'because of' if self.frozen else 'with'} {', '.join(names)}")
            known = max((k for k in range(len(steps) + 1) if steps[:k] in told), default=0)
            if known > 1:
                lines.append(f"    as above up to  {steps[known - 1]}")
            lines += [f"    {line}" for line in _lines(steps[known if known > 1 else 0 :])]
            told |= dict.fromkeys(steps[:k] for k in range(1, len(steps) + 1))
        return "\n".join(lines)


def _lines(steps: Sequence[ExplanationStep]) -> list[str]:
    """A line for each step; the same step in repeated blocks is told once."""
    lines = []
    for _, alike in groupby(steps, key=lambda s: (s.op, blank(s.scope))):
        many = list(alike)
        scopes = fold_names([s.scope for s in many])
        lines.append(
            str(many[0])
            if len(many) == 1
            else f"{ExplanationStep(many[0].op, many[0].source, scopes)}  ({len(many)} of them)"
        )
    return lines


def explain(graph: Graph, name: str) -> list[Explanation]:
    """An explanation for each leaf of the dimensions that ``name`` means: a weight, ``weight:dim``,
    ``weight:dim/leaf`` or a value.

    Raises IrpruneError for a name that the graph does not have.
    """
    assert graph.axes is not None
    groups = {g.axis: g for g in groups_of(graph)}
    kind = kinds(graph)
    return [
        replace(_explained(place, start, leaf, groups.get(leaf), graph), kind=kind.get(leaf, ""))
        for place, start, leaf in _places(graph, name)
    ]


def _places(graph: Graph, name: str) -> list[tuple[str, Value, Axis]]:
    """(what it is called, the value, the leaf) for every leaf that the name means."""
    base, _, rest = name.partition(":")
    found = next(
        (v for v in graph.values() if v.name == base or base in getattr(v, "aliases", ())), None
    )
    if found is None:
        known = [v.name for v in (*graph.weights.values(), *graph.inputs)] + [
            v.name for n in graph.nodes for v in n.outputs
        ]
        near = difflib.get_close_matches(base, known, n=4, cutoff=0.4) or known[:3]
        raise IrpruneError(f"no weight or value {base!r}", "", f"near matches: {', '.join(near)}")
    dim, _, index = rest.partition("/")
    rank = len(found.axes or ())
    if (dim and not (dim.isdigit() and int(dim) < rank)) or (index and not index.isdigit()):
        raise IrpruneError(
            f"{base!r} has no dimension {rest!r}", "", f"it has {rank} dimensions: write {base}:0"
        )
    out = []
    for d, a in enumerate(found.axes or ()):
        every = list(leaves(a))
        for k, leaf in enumerate(every):
            wanted = (not dim or int(dim) == d) and (not index or int(index) == k)
            if wanted and leaf.size != 1:
                out.append((f"{base}:{d}" + (f"/{k}" if k else ""), found, leaf))
    return out


def _explained(
    place: str, start: Value, leaf: Axis, group: Group | None, graph: Graph
) -> Explanation:
    size = leaf.size if isinstance(leaf.size, int) else leaf.size.probe
    title = group.name if group is not None else place
    came = _spread(start, leaf)
    if leaf.reason is not None:
        return Explanation(
            place,
            size,
            title,
            str(leaf.reason),
            ((leaf.reason.text, _to_freeze(leaf.reason, came, graph)),),
        )
    chains = [
        (str(member), _back(member.weight, came))
        for member in (group.members if group is not None else ())
        if member.weight is not start or str(member).split("/")[0] != place.split("/")[0]
    ]
    return Explanation(place, size, title, "", tuple(chains))


Came = dict[Value, tuple[Value, Node] | None]


def _spread(start: Value, leaf: Axis) -> Came:
    """Every value that holds the leaf and is reached from ``start`` through operators whose other
    values hold it too, breadth first: where each was reached from, and through which operator."""
    came: Came = {start: None}
    queue = deque([start])
    while queue:
        value = queue.popleft()
        nodes = [*value.users, *([value.producer] if value.producer is not None else [])]
        for node in nodes:
            for other in (*node.inputs, *node.outputs):
                if (
                    other is not None
                    and other not in came
                    and any(leaf in leaves(a) for a in other.axes or ())
                ):
                    came[other] = (value, node)
                    queue.append(other)
    return came


def _back(to: Value, came: Came) -> tuple[ExplanationStep, ...]:
    """The operators from the start to ``to``."""
    out: list[ExplanationStep] = []
    at = came.get(to)
    while at is not None:
        out.append(_step(at[1]))
        at = came[at[0]]
    return tuple(out[::-1])


def _to_freeze(reason: Reason, came: Came, graph: Graph) -> tuple[ExplanationStep, ...]:
    """The operators from the start to the one that froze the leaf, or to the graph's own input or
    output that did."""
    node = reason.node if isinstance(reason.node, Node) else None
    if node is None:
        ends = [
            v for v in (*graph.inputs, *graph.outputs) if v in came and f"'{v.name}'" in reason.text
        ]
        return _back(ends[0], came) if ends else ()
    near = next((v for v in came if node in v.users or v.producer is node), None)
    steps = _back(near, came) if near is not None else ()
    return steps if steps and steps[-1] == _step(node) else (*steps, _step(node))


def _step(node: Node) -> ExplanationStep:
    return ExplanationStep(node.op, node.origin.source, node.origin.scope)
