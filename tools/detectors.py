"""Ultralytics' models by name through the command line, and what their files do at other sizes.

    pip install 'irprune[zoo]'
    python tools/detectors.py [--only yolov9] [--kept tools/detectors.jsonl]

Each is pruned by half as ``irprune prune ultralytics:NAME.yaml -o NAME.onnx`` does, with random
weights, the proof and the parity of the file. The file then runs on onnxruntime at 640 and 320
pixels, with batches of 1 and 4, each compared with the shape that the head gives. That the pruned
model trains a step by the library's own loss and is fused is a test (``tests/api/test_libraries``).
The table goes to ``docs/results/detectors.md``; exit code 1 where one fails."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from kept_rows import add_row, kept_rows
from tables import RESULTS, write_table

from irprune.run.session import session

NAMES = (
    "yolo11n",
    "yolov8n",
    "yolov8n-seg",
    "yolov8n-pose",
    "yolov10n",
    "yolo12n",
    "yolov5n",
    "yolov9t",
)
CALLS = [(side, batch) for side in (640, 320) for batch in (1, 4)]
HEAD = ("model", "parameters", "MACs", "proof", "file", "runs at")


def row(name: str, folder: Path) -> dict[str, Any]:
    """What came of one model."""
    out = folder / f"{name}.onnx"
    command = [sys.executable, "-m", "irprune", "prune", f"ultralytics:{name}.yaml", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    made: dict[str, Any] = {"model": name, "rc": done.returncode, "said": done.stdout}
    if done.returncode:
        return made | {"said": done.stderr[-300:]}
    running = session(out, "cpu")
    (entry,) = running.get_inputs()
    for side, batch in CALLS:
        try:
            found = running.run(
                None, {entry.name: np.random.rand(batch, 3, side, side).astype("f4")}
            )
            made[f"{side}x{batch}"] = str(found[0].shape)
        except Exception as refused:  # whatever onnxruntime raises is what the table says
            made[f"{side}x{batch}"] = f"FAIL {str(refused).splitlines()[0][:100]}"
    return made


def _line(found: dict[str, Any]) -> str:
    said = {}
    for line in found["said"].splitlines():
        key, _, rest = line.strip().partition(" ")
        said.setdefault(key, rest.strip())
    if found["rc"]:
        return f"| {found['model']} | | | no: {found['said']} | | |"
    at = [f"{s} px, batch {b}" for s, b in CALLS if not found[f"{s}x{b}"].startswith("FAIL")]
    proof = said["proof"].partition(",")[0]
    parity = said["parity"].partition(" over")[0]
    every = "640 and 320 px, batches of 1 and 4" if len(at) == len(CALLS) else "; ".join(at)
    cells = (found["model"], said["parameters"], said["MACs"], proof, parity, every)
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--only", multiple=True, help="Models whose names hold this.")
@click.option("--kept", type=Path, help="Rows of earlier runs, and where new ones go.")
def main(only: tuple[str, ...], kept: Path | None) -> None:
    """Measure and write the table."""
    rows = {r["model"]: r for r in kept_rows(kept)}
    for name in NAMES:
        if name in rows or (only and not any(part in name for part in only)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row(name, Path(folder))
        add_row(kept, rows[name])
    done = [rows[name] for name in NAMES if name in rows]
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *map(_line, done)]
    write_table(RESULTS / "detectors.md", "\n".join(lines))
    bad = [r for r in done if r["rc"] or any("FAIL" in r[f"{s}x{b}"] for s, b in CALLS)]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
