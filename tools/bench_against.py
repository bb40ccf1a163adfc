"""irprune beside another pruner on the same model: ``beside(rival, models)``; each side in a
process of its own, in turns.

A process runs on one processor with as many threads as it is told (one by default), and the other
waits meanwhile. In one process for both, or with more threads than free processors, Torch-Pruning's
many small tensor operations wait for OpenMP workers that do not get to run: 0.2 s become 4 s, which
says nothing about it. Both clocks are read: ``cpu``, the processor time of the process, which on a
quiet machine with one thread is the time that passes, and ``wall``, which a busy machine makes
longer. The first round warms up and is not counted. The copy that Torch-Pruning works on is not
timed."""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

__all__ = [
    "HEAD",
    "RIVALS",
    "Row",
    "Worker",
    "beside",
    "built",
    "line",
    "medians",
    "resident_mb",
    "timed",
]

HEAD = (
    "model",
    "irprune, ms",
    "Torch-Pruning, ms",
    "ratio",
    "after capture, ms",
    "ratio after capture",
    "ratio of wall time",
    "left",
    "left by Torch-Pruning",
    "memory, MB",
    "by Torch-Pruning, MB",
)
Row = dict[str, Any]


# -- one side, in its own process ------------------------------------------------------------------


def timed(call: Callable[[], Any]) -> tuple[Any, Row]:
    """What ``call`` gives, and its ``cpu`` and ``wall`` seconds; garbage of before is taken away
    first."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    made = call()
    return made, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def resident_mb() -> float:
    """The largest amount of memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def built(name: str) -> tuple[Any, Any, Any]:
    """The case's model in eval mode and an example call: of one example, since Torch-Pruning runs
    the model and irprune does not."""
    import torch

    import models

    torch.manual_seed(0)
    case = models.get(name)
    args, kwargs = case.example_inputs()
    return case.build().eval(), tuple(a[:1] for a in args), kwargs


def irprune_side(name: str) -> Callable[[], Row]:
    """One round: ``irprune.prune`` at ratio 0.5 without the proof; the seconds of each stage are of
    the processor."""
    import irprune
    from irprune.api.finish import Clock

    model, args, kwargs = built(name)
    total = sum(p.numel() for p in model.parameters())
    Clock.now = time.process_time

    def once() -> Row:
        pruned, row = timed(
            lambda: irprune.prune(model, args, kwargs, ratio=0.5, proof=False, calibration=False)
        )
        return row | {"stages": pruned.report.seconds, "left": pruned.report.params.after / total}

    return once


def torch_pruning_side(name: str) -> Callable[[], Row]:
    """One round: ``MagnitudePruner``, build and step, at ratio 0.5 with the classifier kept."""
    import copy

    import torch
    import torch_pruning as tp

    model, args, _ = built(name)
    total = sum(p.numel() for p in model.parameters())
    last = [path for path, m in model.named_modules() if isinstance(m, torch.nn.Linear)][-1]

    def once() -> Row:
        twin = copy.deepcopy(model)

        def prune() -> None:
            pruner = tp.pruner.MagnitudePruner(
                twin,
                args,
                importance=tp.importance.MagnitudeImportance(p=2),
                pruning_ratio=0.5,
                ignored_layers=[twin.get_submodule(last)],
            )
            pruner.step()

        _, row = timed(prune)
        return row | {"left": sum(p.numel() for p in twin.parameters()) / total}

    return once


SIDES = {"irprune": irprune_side, "torch-pruning": torch_pruning_side}
RIVALS = tuple(side for side in SIDES if side != "irprune")


def _serve(side: str, name: str) -> None:
    """Answer every line of stdin with a row; what libraries print goes to stderr."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    once = SIDES[side](name)
    held = resident_mb()
    for _ in sys.stdin:
        row = once()
        print(json.dumps(row | {"memory": resident_mb() - held}), file=answers)


class Worker:
    """A side in a process of its own, on the first ``threads`` of the processors there are."""

    def __init__(self, side: str, name: str, threads: int) -> None:
        limits = {
            k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        places = sorted(os.sched_getaffinity(0))[:threads]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), side, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE.parent,
            env=os.environ | limits,
        )
        os.sched_setaffinity(self.process.pid, places)

    def round(self) -> Row:
        """One round. Raises RuntimeError with the last line that the process said where it
        fails."""
        assert (
            self.process.stdin is not None
            and self.process.stdout is not None
            and self.process.stderr is not None
        )
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            said = self.process.stderr.read().strip().splitlines()
            raise RuntimeError(said[-1] if said else f"ended with {self.process.wait()}")
        row: Row = json.loads(answer)
        return row

    def close(self) -> None:
        """End the process, which ends by itself when nothing more is asked."""
        self.process.communicate()


# -- both sides ------------------------------------------------------------------------------------


def medians(rows: Sequence[Row]) -> Row:
    """The median of every number, by name, and of the stages by theirs."""
    out: Row = {k: statistics.median(r[k] for r in rows) for k in rows[0] if k != "stages"}
    if "stages" in rows[0]:
        out["stages"] = {
            k: statistics.median(r["stages"].get(k, 0.0) for r in rows) for k in rows[0]["stages"]
        }
    return out


def beside(rival: str, names: Sequence[str], rounds: int = 9, threads: int = 1) -> list[Row]:
    """One row per model: the medians of both sides over ``rounds`` rounds in turns."""
    rows = []
    for name in names:
        pair = {side: Worker(side, name, threads) for side in ("irprune", rival)}
        try:
            found: dict[str, list[Row]] = {side: [] for side in pair}
            for _ in range(rounds + 1):
                for side, worker in pair.items():
                    found[side].append(worker.round())
        finally:
            for worker in pair.values():
                worker.close()
        ours, theirs = (medians(many[1:]) for many in found.values())
        ours["memory"], theirs["memory"] = (many[-1]["memory"] for many in found.values())
        rows.append({"model": name, "ours": ours, "theirs": theirs})
    return rows


def line(row: Row) -> tuple[str, ...]:
    """The cells of a row."""
    ours, theirs = row["ours"], row["theirs"]
    later = sum(seconds for stage, seconds in ours["stages"].items() if stage != "capture")
    times = (
        f"{1e3 * ours['cpu']:.0f}",
        f"{1e3 * theirs['cpu']:.0f}",
        f"{ours['cpu'] / theirs['cpu']:.2f}",
    )
    after = (
        f"{1e3 * later:.0f}",
        f"{later / theirs['cpu']:.2f}",
        f"{ours['wall'] / theirs['wall']:.2f}",
    )
    left = (
        f"{ours['left']:.0%}",
        f"{theirs['left']:.0%}",
        f"{ours['memory']:.0f}",
        f"{theirs['memory']:.0f}",
    )
    return (row["model"], *times, *after, *left)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
