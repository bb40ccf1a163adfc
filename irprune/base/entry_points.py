"""What installed packages add to irprune: entry points of the groups ``irprune.criteria``,
``irprune.repairs``, ``irprune.metrics``, ``irprune.operators`` and ``irprune.passes``."""

from __future__ import annotations

from importlib.metadata import entry_points

from irprune.errors import IrpruneError, gist

__all__ = ["load_entry_points"]


def load_entry_points(group: str) -> None:
    """Import what the entry points of ``group`` name, in the order of their names; it registers
    itself, by ``@criterion`` and the like. Raises IrpruneError for what cannot be imported."""
    for point in sorted(entry_points(group=group), key=lambda p: p.name):
        try:
            point.load()
        except Exception as broken:
            raise IrpruneError(
                f"{point.value!r} cannot be loaded: {gist(broken)}",
                f"{group}: {point.name}",
                "update or uninstall that package",
            ) from broken
