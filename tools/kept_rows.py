"""Rows of measurements in a file, a line of JSON each, so that a run that was ended goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["add_row", "kept_rows"]


def kept_rows(path: Path | None) -> list[Any]:
    """The rows of a file; none where there is no file."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def add_row(path: Path | None, row: Any) -> None:
    """Append ``row`` to the file ``path``, if there is to be one."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
