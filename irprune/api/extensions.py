"""Files with operators, criteria, repairs and passes of the user's own, which join by being
imported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from irprune.api.user_code import import_place
from irprune.errors import IrpruneError
from irprune.ops.registry import load_table

__all__ = ["load_extensions"]


def load_extensions(files: Iterable[str | Path]) -> None:
    """Import ``files``, Python files or dotted names of modules. Raises IrpruneError for what
    cannot be imported."""
    given = list(files)
    if given:
        load_table()  # so that what is declared twice is theirs
    for file in given:
        place = str(file)
        if "/" in place and not place.endswith(".py"):
            raise IrpruneError(
                "not a Python file", place, "an extension is a file that ends in .py"
            )
        import_place(place, "name a Python file, or a module")
