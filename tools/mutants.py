"""Plant faults one at a time and see what sees them (``irprune.testing.mutants``).

    python tools/mutants.py [--only conv] [--verbose]

Every entry of the operator table with samples in ATen gives faults and small models. The table goes
to ``docs/results/mutants.md``. Exit code 1 where a wrong model came out of a fault."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import irprune
from irprune.errors import IrpruneError
from irprune.ops.registry import Op, load_table
from irprune.testing.mutants import Mutant, Seen, Subject, see, subjects, systematic


def main() -> None:
    """Plant all and write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", action="append", default=[])
    options.add_argument("--verbose", action="store_true")
    options.add_argument("--most", type=int, default=4, help="models for each entry")
    given = options.parse_args()
    warnings.filterwarnings("ignore")
    found: dict[str, Counter[str]] = defaultdict(Counter)
    missed: list[str] = []
    for entry in [e for name, e in load_table().items() if not given.only or name in given.only]:
        models = list(sound(entry, given.most))
        for mutant in systematic(entry) if models else ():
            by = judged(mutant, models)
            found[mutant.kind][by.by] += 1
            if by.by == "nothing":
                missed.append(f"{mutant.name}: {by.subject} {by.said[:160]}")
            if given.verbose or by.by == "nothing":
                print(f"{by.by:9} {mutant.name} {by.said[:120]}", flush=True)
    if not given.only:
        results = Path(__file__).parent.parent / "docs" / "results"
        (results / "mutants.md").write_text(table(found), encoding="utf-8")
    print(table(found))
    sys.exit(1 if missed else 0)


def sound(entry: Op, most: int) -> Iterator[Subject]:
    """The models of ``entry`` that prune as they should when nothing is planted."""
    for subject in list(subjects(entry))[:most]:
        model, args = subject.make()
        try:
            pruned = irprune.prune(model, args, ratio=0.5)
        except (IrpruneError, ValueError, RuntimeError, AssertionError, TypeError):
            continue
        if not pruned.report.cuts_nothing:
            yield subject


def judged(mutant: Mutant, models: list[Subject]) -> Seen:
    """What sees ``mutant`` in the model where it is seen best."""
    order = ("proof", "refused", "nothing", "harmless")
    return min((see(mutant, m) for m in models), key=lambda seen: order.index(seen.by))


def table(found: dict[str, Counter[str]]) -> str:
    """The page of results."""
    lines = [
        "# Planted faults",
        "",
        "`python tools/mutants.py`: faults planted one at a time in the rules of the operator table. Each is tried in up to four",
        "small models made of the operator's samples, and counts where it is seen best. Refused: no model came out, for another",
        "reason than the proof. Harmless: it changes nothing in these models, or what it gives is right.",
        "",
        "| fault | planted | seen by the proof | refused | harmless | seen by nothing |",
        "|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for kind, counts in sorted(found.items()):
        total.update(counts)
        lines.append(_row(kind, counts))
    lines.append(_row("all", total))
    wrong = total["proof"] + total["refused"] + total["nothing"]
    lines += [
        "",
        f"Of {wrong} faults that are wrong in these models {total['proof'] + total['refused']} do not come out.",
    ]
    return "\n".join(lines) + "\n"


def _row(kind: str, counts: Counter[str]) -> str:
    cells = [counts[by] for by in ("proof", "refused", "harmless", "nothing")]
    return f"| {kind} | {sum(cells)} | " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
