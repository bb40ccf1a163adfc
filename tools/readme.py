"""Write the tables of tools/results/ into README.md, between their markers. ``--check`` only says
whether they are current."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
_TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def filled(text: str, folder: Path = HERE / "results") -> str:
    """``text`` with each table from ``folder/NAME.md``; a name without a file keeps an empty
    table."""

    def put(found: re.Match[str]) -> str:
        file = folder / f"{found[2]}.md"
        table = f"\n{file.read_text().strip()}\n\n" if file.exists() else ""
        return found[1] + table + found[3]

    return _TABLE.sub(put, text)


def main() -> int:
    """Write or check; 1 where the README is not current."""
    old = README.read_text()
    new = filled(old)
    if "--check" in sys.argv[1:]:
        return int(old != new)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
