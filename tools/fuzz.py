"""Run fuzzed inputs through the command line (``irprune.testing.fuzz``).

    python tools/fuzz.py [--count 1000] [--seed 0] [--kind "onnx sizes"] [--verbose]
        [--seconds 420] [--kept tools/fuzz.jsonl]

A run that is bounded in ``--seconds`` puts what it found into ``--kept``, and the next one goes on
from there. The table goes to ``docs/results/fuzz.md`` once all inputs ran. Exit code 1 where an
input did not end as it should."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import onnx  # noqa: F401 - loaded once, before processes are forked
import onnxruntime  # noqa: F401
import torch  # noqa: F401
from kept_rows import add_row, kept_rows

import irprune.api
import irprune.cli.prune  # noqa: F401
from irprune.cli import run
from irprune.testing.fuzz import Verdict, planned, run_one


def main() -> None:
    """Run all and write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kind", action="append", default=[])
    options.add_argument("--verbose", action="store_true")
    options.add_argument("--seconds", type=float, default=float("inf"))
    options.add_argument("--kept", type=Path)
    given = options.parse_args()
    began = time.monotonic()
    inputs = planned(given.count, given.seed, given.kind)
    found = {(v.kind, v.seed): v for v in (Verdict(**row) for row in kept_rows(given.kept))}
    with tempfile.TemporaryDirectory() as folder:
        for kind, seed in inputs:
            if (kind, seed) in found:
                continue
            if time.monotonic() - began > given.seconds:
                break
            verdict = found[kind, seed] = run_one(run, kind, seed, Path(folder))
            add_row(given.kept, asdict(verdict))
            if verdict.wrong or given.verbose:
                print(
                    f"{verdict.kind} {verdict.seed}: {verdict.code} {verdict.seconds:.1f}s {verdict.wrong}",
                    flush=True,
                )
                if verdict.wrong:
                    print("   " + "\n   ".join(verdict.said.strip().splitlines()[-4:]), flush=True)
    done = [found[i] for i in inputs if i in found]
    whole = len(done) == len(inputs)
    if whole and not given.kind:
        results = Path(__file__).parent.parent / "docs" / "results"
        (results / "fuzz.md").write_text(table(done, given.count, given.seed), encoding="utf-8")
    wrong = sum(bool(v.wrong) for v in done)
    print(f"{len(done)} of {len(inputs)} inputs, {wrong} wrong")
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
