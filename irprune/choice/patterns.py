"""Glob patterns over the names a user knows: weights, groups and modules."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from irprune.errors import IrpruneError
from irprune.ir.axis import Axis, leaves
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import Group, groups_of

__all__ = ["NamePatterns"]


class NamePatterns:
    """Every name that a pattern may mean, and the leaves it stands for.

    A weight's name (or alias) stands for all leaves in its dimensions, a module path for those of
    all weights it owns or reads, ``weight:dim`` for the one group that has this place."""

    def __init__(self, graph: Graph, groups: Iterable[Group] | None = None) -> None:
        self.leaves: dict[str, dict[Axis, None]] = {}
        self.exact: dict[str, Axis] = {}
        for group in groups_of(graph) if groups is None else groups:
            for member in group.members:
                self.exact[str(member)] = group.axis
                self._add(str(member), [group.axis])
        for weight in graph.weights.values():
            own = list(dict.fromkeys(x for a in weight.axes or () for x in leaves(a)))
            for name in (weight.name, *weight.aliases):
                self._add(name, own)
                for path in _paths(name)[:-1]:
                    self._add(path, own)
        for node in graph.nodes:
            for path in _paths(node.origin.scope):
                self._add(
                    path,
                    [
                        x
                        for v in node.inputs
                        if isinstance(v, Weight)
                        for a in v.axes or ()
                        for x in leaves(a)
                    ],
                )

    def _add(self, name: str, found: Iterable[Axis]) -> None:
        self.leaves.setdefault(name, {}).update(dict.fromkeys(found))

    def match(self, pattern: str, option: str) -> dict[Axis, None]:
        """The leaves that ``pattern`` stands for. Raises IrpruneError, naming ``option``, where it
        matches no name."""
        hits = [name for name in self.leaves if fnmatchcase(name, pattern)]
        if not hits:
            raise IrpruneError(
                f"{option}: {pattern!r} matches no weight, group or module", "", self._near(pattern)
            )
        found = dict.fromkeys(x for name in hits for x in self.leaves[name])
        if not found:
            raise IrpruneError(
                f"{option}: {pattern!r} matches only modules without weights",
                "",
                "name weights or groups",
            )
        return found

    def _near(self, pattern: str) -> str:
        core = re.sub(r"[*?]|\[[^]]*\]", "", pattern).strip(".")
        names = list(self.leaves)
        near = difflib.get_close_matches(core, names, n=4, cutoff=0.5)
        near += [n for n in names if core and core.lower() in n.lower() and n not in near][
            : 4 - len(near)
        ]
        near = near or difflib.get_close_matches(core, names, n=3, cutoff=0.0) or names[:3]
        return "near matches: " + ", ".join(near) if near else "the model has no named weights"


def _paths(name: str) -> list[str]:
    """``a``, ``a.b`` and ``a.b.c`` for ``a.b.c`` (or ``/a/b/c``)."""
    pieces = [p for p in re.split(r"[./]", name) if p]
    return [".".join(pieces[: i + 1]) for i in range(len(pieces))]
