"""Measure irprune: on every case of models/, beside others, and its memory.

    python tools/bench.py                          every case, full size, at 0.3, 0.5 and 0.7
    python tools/bench.py --small --case llama     one case, small
    python tools/bench.py --against torch-pruning  time beside Torch-Pruning, stage by stage
    python tools/bench.py --against onnxsim        ONNX files beside onnxsim's pruner
    python tools/bench.py --files                  time and memory of ONNX files, one over 2 GB
    python tools/bench.py --stages                 time by stage, the proof in forward passes,
                                                   memory; a 7B model on the meta device
    python tools/bench.py --calibrated             calibrated pruning in forward passes

Each case runs in a process of its own with a time limit. Rows are kept in a JSON file as they come,
so that a run that was stopped goes on where it was; ``--again`` starts over. What must hold: the
parameters that fall are at least 0.8 of what the ratio implies for the weights in reach
(``bench_case.implied``), the oracle's error is at most 1e-4 in float32 and 1e-9 in float64 and its
proof eight forward passes (four, and four with random weights), ONNX parity at most 1e-4, the
module trains one step, and the same call gives the same bytes. Exit code 1 where a row fails."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from tables import write_table  # noqa: E402

TALK = Console(stderr=True, width=None if sys.stderr.isatty() else 180)
RATIOS = (0.3, 0.5, 0.7)
SPEED_MODELS = ("resnet50", "convnext_t")
Row = dict[str, Any]


# -- the cases -------------------------------------------------------------------------------------


def run_case(name: str, ratio: float, small: bool, onnx: bool, limit: float) -> Row:
    """One row from a process of its own; what went wrong as ``failed``."""
    flags = [flag for flag, on in (("--small", small), ("--no-onnx", not onnx)) if on]
    command = [sys.executable, str(HERE / "bench_case.py"), name, str(ratio), *flags]
    row: Row = {"case": name, "ratio": ratio, "small": small}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, cwd=HERE.parent
        )
    except subprocess.TimeoutExpired:
        return row | {"failed": f"no end within {limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return row | {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    found: Row = json.loads(lines[-1])
    return found


def measured(
    names: Sequence[str],
    ratios: Sequence[float],
    small: bool,
    onnx: bool,
    limit: float,
    store: Path,
    again: bool,
) -> list[Row]:
    """The rows of all cases, from ``store`` where they are there; failures are tried again."""
    rows: list[Row] = [] if again or not store.exists() else json.loads(store.read_text())
    known = {(r["case"], r["ratio"], r["small"]): r for r in rows if "failed" not in r}
    todo = [(n, r) for n in names for r in ratios if (n, r, small) not in known]
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=TALK) as progress:
        task = progress.add_task("cases", total=len(todo))
        for name, ratio in todo:
            progress.update(task, description=f"{name} at {ratio}")
            known[name, ratio, small] = run_case(name, ratio, small, onnx, limit)
            store.write_text(
                json.dumps(
                    sorted(known.values(), key=lambda r: (r["case"], r["ratio"], r["small"])),
                    indent=1,
                )
                + "\n"
            )
            progress.advance(task)
    return [known[n, r, small] for n in names for r in ratios if (n, r, small) in known]


def holds(row: Row) -> bool:
    """Whether the row meets what must hold."""
    from bench_case import passes

    return "failed" not in row and passes(row)


HEAD = (
    "case",
    "parameters",
    "left",
    "of implied",
    "f32",
    "f64",
    "passes",
    "ONNX",
    "trains",
    "same",
    "seconds",
    "holds",
)


def lines_of(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """One line per case: what is left at each ratio, and the worst of the ratios for the rest."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return [_line(name, many) for name, many in cases.items()]


def _line(name: str, rows: list[Row]) -> tuple[str, ...]:
    from irprune.base.format import human

    fine = "yes" if all(map(holds, rows)) else "NO"
    if any("failed" in r for r in rows):
        why = next(r["failed"] for r in rows if "failed" in r)
        return (name, "", why.replace("|", "/")[:60], *[""] * 8, fine)
    if any("refused" in r for r in rows):
        return (name, "", "refused, as it must be" if fine == "yes" else "refused", *[""] * 8, fine)
    left = " / ".join(f"{r['after'] / r['before']:.0%}" for r in rows)
    worst = [f"{max(r[k] for r in rows):.0e}" for k in ("float32", "float64")]
    parity = f"{max(r['parity'] for r in rows):.0e}" if all("parity" in r for r in rows) else ""
    flags = ["yes" if all(r[k] for r in rows) else "NO" for k in ("trains", "same")]
    seconds = f"{max(r['seconds'] for r in rows):.1f}"
    worst.append(str(max(r["passes"] for r in rows)))
    return (
        name,
        human(rows[0]["before"]),
        left,
        f"{min(r['met'] for r in rows):.2f}",
        *worst,
        parity,
        *flags,
        seconds,
        fine,
    )


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """The lines as a Markdown table."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)) + "\n"


def show(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """The lines as a table for people."""
    table = Table(title=title)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right")
    for cells in lines:
        table.add_row(*cells)
    TALK.print(table)


# -- speed and memory ------------------------------------------------------------------------------


def stages(names: Sequence[str], rounds: int) -> list[Row]:
    """The stages of ``irprune.prune`` on each model, and the 7B model."""
    from bench_stages import llama_7b, measured

    return [*(measured(name, rounds) for name in names), llama_7b()]


@click.command(help=__doc__)
@click.option("--case", "cases", multiple=True, help="only these cases")
@click.option("--ratio", "ratios", multiple=True, type=float, help="only these ratios")
@click.option("--small", is_flag=True, help="the small builds")
@click.option("--no-onnx", is_flag=True, help="leave ONNX out")
@click.option("--limit", default=900.0, help="seconds for one case at one ratio")
@click.option("--again", is_flag=True, help="measure anew what is in the store")
@click.option(
    "--store",
    default=HERE / "bench.json",
    type=click.Path(path_type=Path),
    help="where rows are kept",
)
@click.option("--markdown", "to", type=click.Path(path_type=Path), help="write the table there too")
@click.option("--against", help="another pruner, from tools/bench_against.py")
@click.option(
    "--stages",
    "by_stage",
    is_flag=True,
    help="time by stage, the proof in forward passes, memory; and a 7B model",
)
@click.option(
    "--calibrated", is_flag=True, help="calibrated pruning in forward passes over its data"
)
@click.option(
    "--files",
    "files_only",
    is_flag=True,
    help="time and memory of ONNX files, one of them over 2 GB",
)
@click.option(
    "--model", "speed_models", multiple=True, help="models for --against torch-pruning and --stages"
)
@click.option("--rounds", default=9, help="rounds for --against torch-pruning and --stages")
@click.option(
    "--threads", default=1, help="threads and processors of each side, for --against torch-pruning"
)
def main(
    cases: tuple[str, ...],
    ratios: tuple[float, ...],
    small: bool,
    no_onnx: bool,
    limit: float,
    again: bool,
    store: Path,
    to: Path | None,
    against: str | None,
    by_stage: bool,
    calibrated: bool,
    files_only: bool,
    speed_models: tuple[str, ...],
    rounds: int,
    threads: int,
) -> None:
    import bench_against

    head: Sequence[str]
    if by_stage:
        import bench_stages

        rows = stages(speed_models or bench_stages.MODELS, rounds)
        head, lines = bench_stages.HEAD, [bench_stages.line(r) for r in rows]
        show("irprune.prune at ratio 0.5, by stage", head, lines)
    elif calibrated:
        import bench_calibrated

        rows = [bench_calibrated.measured(name) for name in speed_models or bench_calibrated.MODELS]
        head, lines = bench_calibrated.HEAD, [bench_calibrated.line(r) for r in rows]
        show("calibrated pruning to half of the MACs", head, lines)
    elif files_only:
        import bench_files

        rows = bench_files.files()
        head, lines = bench_files.HEAD, [bench_files.line(r) for r in rows]
        show("irprune prune, whole process", head, lines)
    elif against is not None:
        if against not in (*bench_against.RIVALS, "onnxsim"):
            raise click.UsageError(
                f"no rival {against!r}; there are: {', '.join((*bench_against.RIVALS, 'onnxsim'))}"
            )
        if against == "onnxsim":
            import bench_onnx

            kept_rows = HERE / "onnxsim.json"
            if again:
                kept_rows.unlink(missing_ok=True)
            rows = bench_onnx.beside_onnxsim(cases or bench_onnx.CASES, kept_rows)
            head, lines = bench_onnx.HEAD, [bench_onnx.line(r) for r in rows]
        else:
            rows = bench_against.beside(against, speed_models or SPEED_MODELS, rounds, threads)
            head, lines = bench_against.HEAD, [bench_against.line(r) for r in rows]
        show(f"irprune beside {against}, ratio 0.5", head, lines)
    else:
        import models

        names = list(cases) or models.names()
        if unknown := [n for n in names if n not in models.names()]:
            raise click.UsageError(
                f"no case {unknown[0]!r}; there are: {', '.join(models.names())}"
            )
        rows = measured(names, ratios or RATIOS, small, not no_onnx, limit, store, again)
        head, lines = HEAD, lines_of(rows)
        show(
            f"models/ at {', '.join(map(str, ratios or RATIOS))}{', small' if small else ''}",
            head,
            lines,
        )
    if to is not None:
        how = (
            f", processor time, medians of {rounds} rounds"
            if by_stage or against in bench_against.RIVALS
            else ""
        )
        write_table(
            to,
            f"Measured {datetime.date.today().isoformat()}{how}.\n\n{markdown(head, lines)}",
        )
    print(json.dumps(rows))
    checked = holds
    if files_only:
        from bench_files import holds as checked
    elif calibrated:
        from bench_calibrated import holds as checked
    elif against == "onnxsim":
        from bench_onnx import holds as checked
    if not by_stage and against in (None, "onnxsim") and not all(map(checked, rows)):
        sys.exit(1)


if __name__ == "__main__":
    main()
