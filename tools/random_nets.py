"""Prune small networks made at random and look at how that ends (``irprune.testing.random_nets``).

    python tools/random_nets.py [--count 500] [--first 0] [--dtype bfloat16] [--seconds 420]
        [--kept tools/random_nets.jsonl]

A run that is bounded in ``--seconds`` puts what it found into ``--kept``, and the next one goes on
from there. The table goes to ``docs/results/random-nets.md``. Exit code 1 where one came out wrong
or crashed."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kept_rows import add_row, kept_rows

from irprune.testing.random_nets import MAPS, SEQUENCES, TYPES, Ended, nets, tried


def main() -> None:
    """Run all and write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=500)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--dtype", choices=TYPES)
    options.add_argument("--seconds", type=float, default=float("inf"))
    options.add_argument("--kept", type=Path)
    given = options.parse_args()
    warnings.filterwarnings("ignore")
    began = time.monotonic()
    wanted = [(s, given.dtype or d) for s, d in nets(given.count, given.first)]
    found = {(e.seed, e.dtype): e for e in map(_ended, kept_rows(given.kept))}
    for seed, dtype in wanted:
        if (seed, dtype) in found:
            continue
        if time.monotonic() - began > given.seconds:
            break
        ended = found[seed, dtype] = tried(seed, dtype)
        add_row(given.kept, asdict(ended))
        if ended.how in ("wrong", "crashed"):
            print(f"{seed} {dtype} {ended.how}: {ended.kinds}: {ended.said[:300]}", flush=True)
    done = [found[key] for key in wanted if key in found]
    if given.dtype is None:
        results = Path(__file__).parent.parent / "docs" / "results"
        (results / "random-nets.md").write_text(
            table(done, given.count, given.first), encoding="utf-8"
        )
    bad = sum(e.how in ("wrong", "crashed") for e in done)
    print(f"{len(done)} of {len(wanted)} nets, {bad} wrong or crashed")
    sys.exit(1 if bad else 0)


def _ended(row: dict[str, Any]) -> Ended:
    return Ended(**{**row, "kinds": tuple(row["kinds"]), "notes": tuple(row["notes"])})


def table(done: list[Ended], count: int, first: int) -> str:
    """The page of results."""
    lines = [
        "# Random networks",
        "",
        f"`python tools/random_nets.py --count {count} --first {first}`: {len(done)} small networks of two to five blocks, drawn from",
        f"{len(MAPS)} kinds of blocks for feature maps and {len(SEQUENCES)} for sequences, pruned by half. Mixed: each block in a type",
        "of its own, with casts around it. Unfit: forward itself does not run, as some operators in halves. Judged: the mean share",
        "of the cut weights that were compared with the user's own forward, those weights zeroed.",
        "",
        "| element type | nets | proven | nothing to cut | unfit | wrong | crashed | judged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dtype in (*TYPES, "all"):
        own = [e for e in done if dtype in (e.dtype, "all")]
        by = Counter(e.how for e in own)
        judged = [e.judged for e in own if e.how == "proven"]
        mean = f"{sum(judged) / len(judged):.0%}" if judged else ""
        cells = [by[k] for k in ("proven", "whole", "unfit", "wrong", "crashed")]
        lines.append(f"| {dtype} | {len(own)} | " + " | ".join(map(str, cells)) + f" | {mean} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
