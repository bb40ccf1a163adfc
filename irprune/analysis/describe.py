"""The groups of an analysed graph as lines of a report: what is free, what is frozen and why, and
what no rule covers."""

from __future__ import annotations

from dataclasses import dataclass

from irprune.ir.graph import Graph
from irprune.ir.group import Group, groups_of
from irprune.ops.registry import lookup

__all__ = ["GroupLine", "describe"]


@dataclass(frozen=True)
class GroupLine:
    """A coupled group: ``kept`` of ``size`` indices; ``reason`` says why it stayed whole ("" where
    it was cut)."""

    name: str
    size: int
    kept: int
    members: tuple[str, ...]
    reason: str = ""
    frozen: bool = False


def describe(graph: Graph) -> tuple[tuple[GroupLine, ...], tuple[GroupLine, ...], dict[str, str]]:
    """The free groups, the frozen ones, and the operators without a rule (name -> where they
    stand), of an analysed graph."""
    free: list[GroupLine] = []
    frozen: list[GroupLine] = []
    for group in groups_of(graph):
        (frozen if group.frozen else free).append(_line(group, graph))
    unruled: dict[str, str] = {}
    for node in graph.nodes:
        if lookup(node) is None:
            unruled.setdefault(
                node.op,
                f"{node.where}; its axes are frozen (docs/guides/operator.md: how to write a rule)",
            )
    return tuple(free), tuple(frozen), unruled


def _line(group: Group, graph: Graph) -> GroupLine:
    kept = (
        int(graph.kept.size(group.axis))  # type: ignore[arg-type]
        if graph.kept is not None and not group.frozen
        else group.size
    )
    reason = group.frozen or graph.skipped.get(group.axis, "")
    return GroupLine(
        group.name, group.size, kept, tuple(map(str, group.members)), reason, bool(group.frozen)
    )
