"""What installed packages add to irprune: entry points of the groups ``irprune.criteria``,
``irprune.repairs``, ``irprune.metrics``, ``irprune.operators`` and ``irprune.sources``, and of
``irprune.passes`` (``irprune.driver.registry``)."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from irprune.errors import IrpruneError, gist

__all__ = ["entry_point", "load_entry_points"]


def load_entry_points(group: str) -> None:
    """Import what the entry points of ``group`` name, in the order of their names; it registers
    itself, by ``@criterion`` and the like. Raises IrpruneError for what cannot be imported."""
    for point in sorted(entry_points(group=group), key=lambda p: p.name):
        _load(point)


def entry_point(group: str, name: str) -> Any:
    """What the entry point ``name`` of ``group`` names, None where no installed package has it.
    Raises IrpruneError for what cannot be imported."""
    found = [p for p in entry_points(group=group) if p.name == name]
    return _load(found[0]) if found else None


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as broken:
        raise IrpruneError(
            f"{point.value!r} cannot be loaded: {gist(broken)}",
            f"{point.group}: {point.name}",
            "update or uninstall that package",
        ) from broken
