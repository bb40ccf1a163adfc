"""Where the time of ``irprune.prune`` goes: seconds of the processor by stage, the proof in forward
passes, and peak memory.

Each model in a process of its own on one processor with one thread, medians; the first round warms
up. ``passes`` counts the forward passes of the proof, and its time is given in those of the
original's ``forward`` on the same input. The last row is a LLaMA-2-7B-shaped model on the meta
device, captured and analysed in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from bench_against import Row, built, medians, resident_mb, timed  # noqa: E402 - found beside this file

__all__ = ["HEAD", "MODELS", "line", "llama_7b", "measured"]

MODELS = ("resnet50", "convnext_t", "vit_b16", "densenet121")
STAGES = ("capture", "analyse", "score", "choose", "slice", "report", "emit")
HEAD = (
    "model",
    *(f"{s}, ms" for s in STAGES),
    "after capture, ms",
    "proof, ms",
    "forward, ms",
    "proof in forwards",
    "passes",
    "peak memory, MB",
)


def measured(name: str, rounds: int) -> Row:
    """The medians of a model, from a process of its own."""
    return apart(["measure", name, str(rounds)])


def llama_7b() -> Row:
    """Seconds and peak memory of capturing and analysing a 7B model on the meta device."""
    return apart(["llama"])


def apart(task: Sequence[str], script: str = "bench_stages.py") -> Row:
    """What ``script`` of this folder prints for ``task`` in a process on one processor. Raises
    RuntimeError with its last line where it fails."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, str(HERE / script), *task]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE.parent,
        env=os.environ | limits,
    )
    os.sched_setaffinity(running.pid, sorted(os.sched_getaffinity(0))[:1])
    out, said = running.communicate()
    if running.returncode:
        raise RuntimeError((said.strip().splitlines() or ["no output"])[-1])
    row: Row = json.loads(out.strip().splitlines()[-1])
    return row


def _measure(name: str, rounds: int) -> Row:
    import torch

    import irprune
    from irprune.api.finish import Clock

    model, args, kwargs = built(name)
    held = resident_mb()
    Clock.now = time.process_time
    rows = []
    for _ in range(rounds + 1):
        pruned, row = timed(
            lambda: irprune.prune(model, args, kwargs, ratio=0.5, calibration=False)
        )
        with torch.no_grad():
            _, forward = timed(lambda: model(*args, **kwargs))
        proof = pruned.report.proof
        passes = {"passes": proof.passes}
        rows.append(row | passes | {"stages": pruned.report.seconds, "forward": forward["cpu"]})
    return medians(rows[1:]) | {"model": name, "memory": resident_mb() - held}


def _llama() -> Row:
    import torch

    import irprune
    from models import llama

    with torch.device("meta"):
        model = llama.build(size="7b")
        args, kwargs = llama.example_inputs()

    def analysed() -> tuple[Any, Any]:
        graph = irprune.capture(model, args, kwargs)
        return graph, irprune.groups(graph)

    (graph, found), row = timed(analysed)
    return row | {
        "model": "LLaMA-2-7B on meta",
        "nodes": len(graph.nodes),
        "groups": len(found),
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_gb": resident_mb() / 1024,
    }


def line(row: Row) -> tuple[str, ...]:
    """The cells of a row."""
    if "stages" not in row:
        note = f"{row['nodes']} nodes, {row['groups']} groups"
        return (
            row["model"],
            f"{1e3 * row['cpu']:.0f} with analyse",
            *[""] * 9,
            note,
            "",
            f"{1024 * row['peak_gb']:.0f} in all",
        )
    stages = row["stages"]
    later = sum(stages[s] for s in STAGES[1:])
    return (
        row["model"],
        *(f"{1e3 * stages[s]:.1f}" for s in STAGES),
        f"{1e3 * later:.0f}",
        f"{1e3 * stages['proof']:.0f}",
        f"{1e3 * row['forward']:.0f}",
        f"{stages['proof'] / row['forward']:.1f}",
        f"{row['passes']:.0f}",
        f"{row['memory']:.0f}",
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(
        json.dumps(_llama() if sys.argv[1] == "llama" else _measure(sys.argv[2], int(sys.argv[3])))
    )
