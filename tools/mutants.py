"""Plant faults one at a time and see what sees them (``irprune.testing.mutants``).

    python tools/mutants.py [--only conv] [--verbose] [--seconds 420] [--kept tools/mutants.jsonl]

Every entry of the operator table with samples gives faults and small models, in PyTorch and as
ONNX files; faults of capturing, cutting, emitting, reading, writing, gradients and repairs are
planted by hand (``irprune.testing.planted``). A run that is bounded in ``--seconds`` puts what it
found into ``--kept``, and the next one goes on from there. The table goes to
``docs/results/mutants.md`` and says how far it came. Exit code 1 where neither the proof nor the
tests see a fault."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from kept_rows import add_row, kept_rows

import irprune
from irprune.errors import IrpruneError
from irprune.ops.registry import Op, load_table
from irprune.testing.mutants import Seen, Subject, see, subjects, systematic
from irprune.testing.onnx_subjects import onnx_faults, onnx_subjects
from irprune.testing.planted import FAULTS, seen

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import onnxcheck  # noqa: E402 - the tests of the operator table
import opcheck  # noqa: E402

ORDER = ("proof", "refused", "tests", "nothing", "harmless")


@dataclass(frozen=True)
class Result:
    """A fault, its kind, where it was planted, and what saw it."""

    fault: str
    kind: str
    dialect: str
    by: str
    subject: str
    said: str


def main() -> None:
    """Plant all and write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", action="append", default=[])
    options.add_argument("--verbose", action="store_true")
    options.add_argument("--most", type=int, default=4, help="models for each entry and dialect")
    options.add_argument("--seconds", type=float, default=float("inf"))
    options.add_argument("--kept", type=Path)
    given = options.parse_args()
    warnings.filterwarnings("ignore")
    began = time.monotonic()
    found = {(r.dialect, r.fault): r for r in (Result(**row) for row in kept_rows(given.kept))}
    for dialect, name, plants in works(given.most):
        if given.only and name not in given.only:
            continue
        if (dialect, name) in found:
            continue
        if time.monotonic() - began > given.seconds:
            break
        _cases()  # here, where nothing is planted
        # What marks a whole entry as done stands behind its faults
        made = [*plants(), Result(name, "", dialect, "", "", "")]
        for one in made:
            found[one.dialect, one.fault] = one
            if given.verbose or one.by in ("nothing", "tests"):
                print(f"{one.by:9} {one.dialect} {one.fault}: {one.said[:200]}", flush=True)
            add_row(given.kept, asdict(one))
    done = [r for r in found.values() if r.by]
    every = [(dialect, name) for dialect, name, _ in works(given.most)]
    page = table(done, sum(key in found for key in every), len(every))
    if not given.only:
        (ROOT / "docs" / "results" / "mutants.md").write_text(page, encoding="utf-8")
    print(page)
    sys.exit(1 if any(r.by == "nothing" for r in done) else 0)


Plants = Callable[[], Iterator[Result]]


def works(most: int) -> Iterator[tuple[str, str, Plants]]:
    """The dialect and the name of each entry, or of each kind of faults that are planted by hand,
    and what plants them."""
    for name, entry in load_table().items():
        yield "ATen", name, lambda entry=entry: planted(entry, "ATen", list(subjects(entry)), most)
    for name, entry in load_table().items():
        yield (
            "ONNX",
            name,
            lambda entry=entry: planted(entry, "ONNX", list(onnx_subjects(entry)), most),
        )
    for kind in dict.fromkeys(f.kind for f in FAULTS):
        yield "by hand", kind, lambda kind=kind: by_hand(kind)


def by_hand(kind: str) -> Iterator[Result]:
    """The faults of ``kind`` that are planted by hand."""
    for fault in FAULTS:
        if fault.kind == kind:
            by, said = seen(fault)
            yield Result(fault.name, kind, "by hand", by, "", said[:300])


def planted(entry: Op, dialect: str, models: list[Subject], most: int) -> Iterator[Result]:
    """The faults of ``entry``, each in the model where it is seen best."""
    models = list(sound(models))[:most]
    if not models:
        return
    faults = [*systematic(entry, models), *(onnx_faults(entry) if dialect == "ONNX" else ())]
    check = samples_of_aten if dialect == "ATen" else samples_of_onnx
    for mutant in faults:
        best = Seen("harmless", "")
        for model in models:
            one = see(mutant, model, samples=check)
            best = min(best, one, key=lambda s: ORDER.index(s.by))
            if best.by == "proof":
                break
        yield Result(mutant.name, mutant.kind, dialect, best.by, best.subject, best.said[:300])


def sound(models: list[Subject]) -> Iterator[Subject]:
    """The models that prune as they should when nothing is planted."""
    for subject in models:
        model, args = subject.make()
        try:
            pruned = irprune.prune(model, args, ratio=0.5)
        except (IrpruneError, ValueError, RuntimeError, AssertionError, TypeError):
            continue
        if not pruned.report.cuts_nothing:
            yield subject


@cache
def _cases() -> dict[str, list[opcheck.Case]]:
    """The samples of each entry, by name."""
    out: dict[str, list[opcheck.Case]] = {}
    for case in opcheck.cases():
        out.setdefault(case.entry.name, []).append(case)
    return out


def samples_of_aten(name: str) -> str:
    """What is wrong with the samples of entry ``name``, whose free axes are left out of account."""
    for made in _cases().get(name, ()):
        case = replace(made, entry=load_table()[name])
        try:
            built = opcheck.build(case)
            opcheck._check_sizes(built)
            if not case.entry.random:
                opcheck._check_silence_of_nothing(built)
            for choice in opcheck.choices(opcheck.free_leaves(built), 0):
                opcheck._check_cut(built, choice, case.entry)
        except opcheck.Misfit:
            continue
        except Exception as refused:  # whatever it is, the sample does not pass
            return f"{type(refused).__name__}: {refused}"
    return ""


def samples_of_onnx(name: str) -> str:
    """What is wrong with the samples of the ONNX operators that are read into entry ``name``."""
    for case in onnxcheck.onnx_cases():
        if name not in case.spelling.entries:
            continue
        try:
            onnxcheck.check_onnx(case)
        except Exception as refused:  # whatever it is, the sample does not pass
            if "free axes" not in str(refused):
                return f"{type(refused).__name__}: {refused}"
    return ""


def table(done: list[Result], planted_in: int, every: int) -> str:
    """The page of results; faults were planted in so many of all entries and kinds."""
    wrong = [r for r in done if r.by != "harmless"]
    proof = sum(r.by == "proof" for r in wrong)
    share = proof / len(wrong) if wrong else 1.0
    lines = [
        "# Planted faults",
        "",
        f"`python tools/mutants.py`: {len(done)} faults planted one at a time, in {planted_in} of {every} entries and kinds.",
        "Those of the operator table are made by rules: two letters of a signature swapped, a dimension not tied, a factor",
        "dropped, a freeze, a relation, the silencing or the new sizes forgotten, sizes off by one. Each is tried in up to four",
        "small models made of the operator's samples, as modules and as ONNX files, and counts where it is seen best. The others",
        "are planted by hand, each with a model of its own.",
        "",
        "Stopped: no model came out, for another reason than the proof. Tests: the proof passes, and the samples of the operator",
        "that the tests run do not. Harmless: no fault. The cut is the same, or the right table makes the same cut, or the",
        "original itself, with its dropped weights zeroed, computes what was cut and the operator's samples commute with slicing",
        "all the same: so it is with a freeze that only keeps widths that might go, and with what changes a result by less than",
        "rounding does.",
        "",
        f"Of {len(wrong)} faults that are wrong in these models the proof alone sees {proof} ({share:.1%}).",
        "",
        "| where | fault | planted | proof | stopped | tests | seen by neither | harmless |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys((r.dialect, r.kind) for r in done)
    for dialect, kind in kinds:
        own = Counter(r.by for r in done if (r.dialect, r.kind) == (dialect, kind))
        lines.append(_row(dialect, kind, own))
    lines.append(_row("all", "", Counter(r.by for r in done)))
    by_hand = [r for r in done if r.dialect == "by hand"]
    if by_hand:
        lines += ["", "| planted by hand | kind | seen by |", "|---|---|---|"]
        lines += [f"| {r.fault} | {r.kind} | {_SEEN[r.by]} |" for r in by_hand]
    return "\n".join(lines) + "\n"


_SEEN = {
    "proof": "the proof",
    "refused": "nothing came out",
    "tests": "the tests",
    "nothing": "neither",
    "harmless": "harmless",
}


def _row(dialect: str, kind: str, counts: Counter[str]) -> str:
    cells = [counts[by] for by in ("proof", "refused", "tests", "nothing", "harmless")]
    return f"| {dialect} | {kind} | {sum(cells)} | " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
