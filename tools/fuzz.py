"""Run fuzzed inputs through the command line (``irprune.testing.fuzz``).

    python tools/fuzz.py [--count 1000] [--seed 0] [--kind "onnx sizes"] [--verbose]

The table goes to ``docs/results/fuzz.md``. Exit code 1 where an input did not end as it should."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import onnx  # noqa: F401 - loaded once, before processes are forked
import onnxruntime  # noqa: F401
import torch  # noqa: F401

import irprune.api
import irprune.cli.prune  # noqa: F401
from irprune.cli import run
from irprune.testing.fuzz import Verdict, fuzzed


def main() -> None:
    """Run all and write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kind", action="append", default=[])
    options.add_argument("--verbose", action="store_true")
    given = options.parse_args()
    done: list[Verdict] = []
    with tempfile.TemporaryDirectory() as folder:
        for verdict in fuzzed(run, given.count, Path(folder), given.seed, given.kind):
            done.append(verdict)
            if verdict.wrong or given.verbose:
                print(
                    f"{verdict.kind} {verdict.seed}: {verdict.code} {verdict.seconds:.1f}s {verdict.wrong}",
                    flush=True,
                )
                if verdict.wrong:
                    print("   " + "\n   ".join(verdict.said.strip().splitlines()[-4:]), flush=True)
    if not given.kind:
        results = Path(__file__).parent.parent / "docs" / "results"
        (results / "fuzz.md").write_text(table(done, given.count, given.seed), encoding="utf-8")
    wrong = sum(bool(v.wrong) for v in done)
    print(f"{len(done)} inputs, {wrong} wrong")
    sys.exit(1 if wrong else 0)


def table(done: list[Verdict], count: int, seed: int) -> str:
    """The page of results."""
    lines = [
        "# Fuzzed inputs",
        "",
        f"`python tools/fuzz.py --count {count} --seed {seed}`: inputs that are damaged, hostile or absurd. Each must end within 60 s",
        "and 2 GB with a result that `onnx.checker` takes, or with one line and exit code 2 (1 where a check failed or nothing was cut).",
        "",
        "| kind | inputs | result | check failed | refused in one line | longest (s) | wrong |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(v.kind for v in done):
        own = [v for v in done if v.kind == kind]
        codes = Counter(v.code for v in own)
        longest = max(v.seconds for v in own)
        wrong = sum(bool(v.wrong) for v in own)
        lines.append(
            f"| {kind} | {len(own)} | {codes[0]} | {codes[1]} | {codes[2]} | {longest:.0f} | {wrong} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
