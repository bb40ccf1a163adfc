"""The backend tests of the onnx package, counted by operator: ``python tools/onnx_backend.py
[--write docs/results/onnx-backend.md]``.

A case passes when the file that comes out is the one that came in, onnxruntime gives the same for
both, and the torch module gives what is expected. Operators that pass in every case stand in one
line; what is left out has its reason."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tables import write_table

from irprune.testing.onnx_backend import Outcome, cases, check

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")


def outcomes() -> list[tuple[str, Outcome]]:
    """Every case with what happened to it."""
    return [(case.name, check(case)) for kind in KINDS for case in cases(kind)]


def table(found: list[tuple[str, Outcome]]) -> str:
    """Markdown: how many pass of how many, the operators that pass in every case and both ways, and
    a row for each of the others."""
    rows: dict[str, list[Outcome]] = {}
    for _, o in found:
        rows.setdefault(
            o.operators[0] if len(o.operators) == 1 else "several operators", []
        ).append(o)
    whole = {
        name: many
        for name, many in rows.items()
        if not any(o.left_out or o.failed or o.torch for o in many)
    }
    taken = [o for _, o in found if not o.left_out]
    passed, in_torch = (
        sum(not o.failed for o in taken),
        sum(not o.failed and not o.torch for o in taken),
    )
    on_runtime = sum(not o.failed and not o.runtime for o in taken)
    lines = [
        f"{len(found)} cases: {passed} of {len(taken)} taken pass, {in_torch} of them through the torch module and {on_runtime} on "
        f"onnxruntime; {len(found) - len(taken)} left out. Every case of these {len(whole)} operators passes, "
        "from file to file and in torch:",
        "",
        ", ".join(f"{name} {len(whole[name])}" for name in sorted(whole)) + ".",
        "",
        "| operator | cases | pass | in torch | left out, or not in torch, because |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(set(rows) - set(whole)):
        many = rows[name]
        why = Counter(_reason(o.left_out or o.torch) for o in many if o.left_out or o.torch)
        reasons = "; ".join(f"{reason} ({n})" for reason, n in sorted(why.items()))
        good = [o for o in many if not o.left_out and not o.failed]
        lines.append(
            f"| {name} | {len(many)} | {len(good)} | {sum(not o.torch for o in good)} | {reasons} |"
        )
    return "\n".join(lines) + "\n"


_LEFT = {
    "String": "text",
    "RegexFullMatch": "text",
    "TfIdfVectorizer": "text",
    "ImageDecoder": "image files",
    "ai.onnx.ml::": "classical machine learning",
    "ai.onnx.preview.training::": "training",
}


def _reason(why: str) -> str:
    """What the operators that have no entry are for; torch's own words without the names of types
    and kernels."""
    for operator in (
        why.removeprefix("no entry for ").split(", ") if why.startswith("no entry for ") else ()
    ):
        for start, kind in _LEFT.items():
            if operator.startswith(start):
                return kind
    if "not implemented for 'UInt" in why:
        return "torch computes nothing in large unsigned integers"
    return "the extreme of nothing" if "non-zero size" in why else why


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", type=Path, help="write the table there")
    options = parser.parse_args(arguments)
    found = outcomes()
    text = table(found)
    if options.write is not None:
        write_table(options.write, text)
    else:
        print(text, end="")
    failed = [(name, o.failed) for name, o in found if o.failed]
    for name, why in failed:
        print(f"{name}: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
