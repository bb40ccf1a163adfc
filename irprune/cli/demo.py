"""``irprune demo``: the whole pipeline on digits, trained in the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from irprune.api.options import Options
from irprune.base.atomic_write import check_folder, check_place
from irprune.cli.options import common, say, show_json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from irprune.demo.run import Demo

__all__ = ["demo"]


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("digits-pruned"),
    show_default=True,
    help="Where to write.",
)
@click.option(
    "--ratio",
    type=float,
    default=0.5,
    show_default=True,
    help="Share of every width to drop, 0 to 1.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Epochs of training.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@common
def demo(output: Path, ratio: float, epochs: int, seed: int, json_: bool) -> None:
    """Train a small residual CNN on real digits, prune it, prove it, repair it, export it and
    compare it on onnxruntime."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from irprune.demo.run import run_demo

    Options(ratio=ratio)  # refused before anything is trained
    check_folder(output)
    check_place(output)
    talk = Console(stderr=True)
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=talk) as bar:
        result = run_demo(output, ratio, epochs, seed, _Bars(bar))
    if json_:
        show_json(result.as_dict())
    else:
        _print(result)
    say(
        f"wrote {output}/: report.html shows every group; `import model; net = model.load()` there needs only torch"
    )


class _Bars:
    """A line of the progress display for each stage."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, step: int, total: int, note: str) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=total, note="")
        self.bar.update(self.tasks[stage], completed=step)
        if note:
            self.bar.update(self.tasks[stage], note=note)


def _print(result: Demo) -> None:
    """The results as a table on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("", "original", "pruned", "", box=box.SIMPLE_HEAD)
    for column in table.columns[1:3]:
        column.justify = "right"
    for row in result.rows():
        table.add_row(*row)
    out: Any = Console(width=100)
    out.print(table)
    for name, claim, measured in result.checks():
        out.print(f"  {name:8}{claim}\n          {measured}", highlight=False)
