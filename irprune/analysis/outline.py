"""An outline of a model's groups: repeated blocks folded into one line ("layers.0..11"), with the
cost of one channel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from irprune.analysis.cost import Costs
from irprune.analysis.describe import describe
from irprune.analysis.kinds import kinds
from irprune.analysis.sizes import shown_sizes
from irprune.base.format import human
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group, groups_of

__all__ = ["Line", "Outline", "blank", "fold_names", "outline", "placed"]


@dataclass(frozen=True)
class Line:
    """Groups of the same shape: ``count`` of them, each of ``size`` channels; dropping one channel
    saves ``macs`` and ``params``."""

    name: str
    size: int
    count: int
    kind: str
    macs: float
    params: float
    members: tuple[str, ...]
    reason: str = ""


@dataclass
class Outline:
    """The free groups, the frozen ones, the operators without a rule, and the whole cost."""

    free: list[Line]
    frozen: list[Line]
    unruled: dict[str, str] = field(default_factory=dict)
    macs: int = 0
    params: int = 0
    sizes: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "macs": self.macs,
            "params": self.params,
            "sizes": self.sizes,
            "groups": [asdict(x) for x in self.free],
            "frozen": [asdict(x) for x in self.frozen],
            "unruled": self.unruled,
        }

    def __str__(self) -> str:
        at = f" at {self.sizes}" if self.sizes else ""
        lines = [
            f"{human(self.params)} parameters, {human(self.macs)} MACs{at}; one channel less saves:",
            "",
        ]
        lines += _table(
            ["group", "size", "kind", "MACs", "parameters", "members"],
            [
                [
                    x.name,
                    _times(x),
                    x.kind,
                    human(x.macs),
                    human(x.params),
                    _shortened(_by_block(x.members)),
                ]
                for x in self.free
            ],
        )
        if self.frozen:
            lines += ["", "frozen:"]
            lines += _table(
                ["group", "size", "why"],
                [[x.name, _times(x), placed(x.reason)] for x in self.frozen],
            )
        if self.unruled:
            lines += [
                "",
                "no rule for:",
                *(f"  {op}: {placed(where)}" for op, where in self.unruled.items()),
            ]
        return "\n".join(lines)


def outline(graph: Graph, fold: bool = True) -> Outline:
    """The outline of an analysed graph; ``fold`` joins the groups of repeated blocks."""
    costs = Costs(graph)
    kind = kinds(graph)
    whole = {g.axis: g.size for g in groups_of(graph)}
    free: dict[tuple[Any, ...], list[tuple[Group, tuple[float, float]]]] = {}
    frozen: dict[tuple[Any, ...], list[tuple[Group, tuple[float, float]]]] = {}
    for group in groups_of(graph):
        saved = (0.0, 0.0) if group.frozen else _saved(costs, group.axis, whole)
        shape = tuple(blank(str(m)) for m in group.members)
        key = (shape, group.size, blank(group.frozen), saved) if fold else (group.name,)
        (frozen if group.frozen else free).setdefault(key, []).append((group, saved))
    total = costs.at({})
    lines, still = ([_line(v, kind) for v in found.values()] for found in (free, frozen))
    return Outline(lines, still, describe(graph)[2], total.macs, total.params, shown_sizes(graph))


def _saved(costs: Costs, leaf: Axis, whole: dict[Axis, int]) -> tuple[float, float]:
    """MACs and parameters that one channel less saves."""
    less = {leaf: whole[leaf] - 1}
    return -costs.change("macs", leaf, {leaf: whole[leaf]}, less), -costs.change(
        "params", leaf, {leaf: whole[leaf]}, less
    )


def _line(many: Sequence[tuple[Group, tuple[float, float]]], kind: dict[Axis, str]) -> Line:
    groups = [g for g, _ in many]
    members = tuple(
        fold_names(same)
        for same in zip(*([str(m) for m in g.members] for g in groups), strict=True)
    )
    first, saved = many[0]
    reason = fold_names([g.frozen for g in groups]) if first.frozen else ""
    return Line(
        fold_names([g.name for g in groups]),
        first.size,
        len(groups),
        kind.get(first.axis, ""),
        *saved,
        members,
        reason,
    )


_NUMBER = re.compile(r"\d+")


def blank(text: str) -> str:
    """``text`` with its numbers masked: alike for the same place in repeated blocks."""
    return _NUMBER.sub("#", text)


def fold_names(names: Iterable[str]) -> str:
    """``layers.0.fc`` ... ``layers.11.fc`` as ``layers.0..11.fc``; names must differ in numbers
    alone."""
    many = list(names)
    pieces = [_NUMBER.split(n) for n in many]
    numbers = [_NUMBER.findall(n) for n in many]
    if len(many) == 1 or any(p != pieces[0] for p in pieces):
        return many[0]
    out = pieces[0][0]
    for k, after in enumerate(pieces[0][1:]):
        seen = sorted({int(n[k]) for n in numbers})
        out += (str(seen[0]) if len(seen) == 1 else _span(seen)) + after
    return out


def _span(seen: list[int]) -> str:
    if seen == list(range(seen[0], seen[-1] + 1)) and len(seen) > 2:
        return f"{seen[0]}..{seen[-1]}"
    return ",".join(map(str, seen)) if len(seen) < 5 else f"{seen[0]},{seen[1]}..{seen[-1]}"


def placed(text: str) -> str:
    """``text`` with paths as they are read: from the package where it is installed, from the
    working directory."""
    return re.sub(r"/\S*/site-packages/", "", text).replace(f"{Path.cwd()}/", "")


def _by_module(members: Sequence[str]) -> list[str]:
    """``norm.weight:0, norm.bias:0`` as ``norm.*:0``: the parameters of one module along the same
    dimension."""
    found: dict[tuple[str, str], list[str]] = {}
    for member in members:
        name, _, dim = member.rpartition(":")
        found.setdefault((name.rpartition(".")[0] or name, dim), []).append(member)
    return [
        same[0] if len(same) == 1 else f"{module}.*:{dim}" for (module, dim), same in found.items()
    ]


def _by_block(members: Sequence[str]) -> list[str]:
    """``layers.0.fc.weight:0`` ... ``layers.11.fc.weight:0`` as ``layers.0..11.fc.weight:0``, and
    modules as ``_by_module`` has them."""
    found: dict[str, list[str]] = {}
    for member in _by_module(members):
        found.setdefault(blank(member), []).append(member)
    return [fold_names(same) for same in found.values()]


def _times(line: Line) -> str:
    return f"{line.size}" if line.count == 1 else f"{line.size} x{line.count}"


def _shortened(members: Sequence[str], most: int = 6) -> str:
    return ", ".join(members[:most]) + (
        f", ... {len(members) - most} more" if len(members) > most else ""
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell; the last is left as it is."""
    widths = [max(len(r[k]) for r in (head, *rows)) for k in range(len(head) - 1)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[-1]]).rstrip()
        for r in (head, *rows)
    ]
