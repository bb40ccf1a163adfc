"""The backend tests of the onnx package, counted by operator: ``python tools/onnx_backend.py [--write tools/results/onnx-backend.md]``.

A case passes when the file that comes out is the one that came in, onnxruntime gives the same for both, and the torch module gives
what is expected. What is left out is listed with its reason.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from irprune.validate.onnx_backend import Outcome, cases, check

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")


def outcomes() -> list[tuple[str, Outcome]]:
    """Every case with what happened to it."""
    return [(case.name, check(case)) for kind in KINDS for case in cases(kind)]


def table(found: list[tuple[str, Outcome]]) -> str:
    """Markdown: by operator the cases, those that pass through files, those that pass through torch, and why others were left out."""
    rows: dict[str, list[Outcome]] = {}
    for _, o in found:
        rows.setdefault(o.operators[0] if len(o.operators) == 1 else "several operators", []).append(o)
    taken = [o for _, o in found if not o.left_out]
    passed, in_torch = sum(not o.failed for o in taken), sum(not o.failed and not o.torch for o in taken)
    on_runtime = sum(not o.failed and not o.runtime for o in taken)
    lines = [
        f"{len(found)} cases: {passed} of {len(taken)} taken pass, {in_torch} of them through the torch module and {on_runtime} on "
        f"onnxruntime; {len(found) - len(taken)} left out.",
        "",
        "| operator | cases | taken | pass | in torch | left out because |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(rows):
        many = rows[name]
        ours = [o for o in many if not o.left_out]
        why = Counter(o.left_out or o.torch for o in many if o.left_out or o.torch)
        reasons = "; ".join(f"{reason} ({n})" if n > 1 else reason for reason, n in sorted(why.items())[:4])
        good, torch_too = sum(not o.failed for o in ours), sum(not o.failed and not o.torch for o in ours)
        lines.append(f"| {name} | {len(many)} | {len(ours)} | {good} | {torch_too} | {reasons} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", type=Path, help="write the table there")
    options = parser.parse_args(arguments)
    found = outcomes()
    text = table(found)
    if options.write is not None:
        options.write.write_text(text)
    else:
        print(text, end="")
    failed = [(name, o.failed) for name, o in found if o.failed]
    for name, why in failed:
        print(f"{name}: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
