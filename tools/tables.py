"""Where the tables of the measuring tools go: the pages of docs/results/.

A page has a title, a paragraph that says how the table is made, and the table between two markers.
A tool replaces what stands between them and leaves the rest of the page as it is."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["RESULTS", "cells", "table_of", "write_table"]

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
_BEGIN, _END = "<!-- table -->\n", "<!-- end -->"
_TABLE = re.compile(f"(?<={re.escape(_BEGIN)}).*?(?={re.escape(_END)})", re.S)


def write_table(path: Path, table: str) -> None:
    """Put ``table`` between the markers of the page ``path``; a file that there is not, or that has
    no markers, becomes the table alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = path.read_text() if path.exists() else ""
    if _TABLE.search(page) is None:
        path.write_text(f"{table.strip()}\n")
    else:
        path.write_text(_TABLE.sub(lambda _: f"\n{table.strip()}\n\n", page))


def table_of(name: str, folder: Path = RESULTS) -> str:
    """What stands between the markers of the page ``name``. Raises ValueError where it has none."""
    found = _TABLE.search((folder / f"{name}.md").read_text())
    if found is None:
        raise ValueError(f"docs/results/{name}.md has no table between its markers")
    return found[0].strip()


def cells(name: str, folder: Path = RESULTS) -> list[dict[str, str]]:
    """The rows of all tables on the page ``name``, each as {column: cell}. A heading that comes
    twice in a table keeps its first column."""
    rows: list[dict[str, str]] = []
    head: list[str] = []
    for line in table_of(name, folder).splitlines():
        if not line.startswith("|"):
            head = []
            continue
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if not head:
            head = row
        elif set(line) - set("|-: "):
            rows.append(dict(reversed([*zip(head, row, strict=True)])))
    return rows
