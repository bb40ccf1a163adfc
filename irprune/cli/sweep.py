"""``irprune sweep``: several strategies at once, judged beside each other."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from irprune.api.declarations import OPTIONS
from irprune.api.extensions import load_extensions
from irprune.api.load import load_model
from irprune.api.option_kinds import read_share
from irprune.api.sweep import sweep as sweep_
from irprune.api.sweep_result import figure_for
from irprune.base.atomic_write import check_place
from irprune.cli.options import common, extensions, inputs, model, say, show_json, shown
from irprune.errors import IrpruneError
from irprune.run.ranks import speaks

__all__ = ["sweep"]


def _call(spec: str, given: tuple[str, ...], pretrained: bool, trust: bool) -> Any:
    loaded = load_model(spec, given, pretrained, trust)
    return loaded.model, loaded.args, loaded.kwargs


def _budgets(texts: tuple[str, ...]) -> dict[str, list[float]]:
    """``macs=0.8,70%`` as shares by measure. Raises IrpruneError for anything else."""
    out: dict[str, list[float]] = {}
    for text in texts:
        measure, equals, shares = text.partition("=")
        if not equals:
            raise IrpruneError(f"{text!r} is no budget", "", "write macs=0.8,0.7")
        out.setdefault(measure, []).extend(read_share(x) for x in shares.split(","))
    return out


@click.command()
@model()
@inputs
@click.option("--importance", default="default", show_default=True, metavar="A,B", help="Criteria.")
@click.option(
    "--scope",
    default="default",
    show_default=True,
    metavar="A,B",
    help="Scopes: local, global, knapsack.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    required=True,
    metavar="MEASURE=A,B",
    help="Shares that may be left, as macs=0.8,0.7; again for another measure.",
)
@click.option(
    "--eval",
    "function",
    metavar="FILE.py:NAME",
    help="A function of a model that gives its metric; without it agreement with the "
    "original on --calibration is measured.",
)
@click.option("--lower-is-better", is_flag=True, help="What --eval returns is an error.")
@click.option("--metric", help="Without --eval: how agreement is measured.")
@click.option("--calibration", metavar="FOLDER", help="Folder of .npy, .npz or image files.")
@click.option("--samples", type=click.IntRange(min=1), help="How many of them are used at most.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many processes judge models at the same time; results are the same for any number.",
)
@click.option(
    "--engine",
    default="processes",
    show_default=True,
    metavar="NAME",
    help="What runs them: processes, or ray (on its cluster). Under torchrun its ranks judge.",
)
@click.option(
    "--storage",
    metavar="FILE",
    help="A journal of Optuna that keeps the trials: an interrupted sweep goes on, "
    "optuna-dashboard shows it.",
)
@click.option("--plot", metavar="FILE.svg", help="Draw the metric over the MACs that are left.")
@click.option(
    "--plans",
    metavar="FOLDER",
    help="Write the plan of each trial that no other beats, for `irprune prune --plan`.",
)
@extensions
@common
def sweep(
    model: str,
    inputs: tuple[str, ...],
    pretrained: bool,
    trust: bool,
    importance: str,
    scope: str,
    budgets: tuple[str, ...],
    function: str | None,
    lower_is_better: bool,
    metric: str | None,
    calibration: str | None,
    samples: int | None,
    workers: int,
    engine: str,
    storage: str | None,
    plot: str | None,
    plans: str | None,
    files: tuple[str, ...],
    json_: bool,
) -> None:
    """Prune MODEL by every combination of criteria, scopes and budgets, and judge each.

    Statistics are gathered once for each criterion. Nothing is proven here: `irprune prune --plan`
    makes, proves and writes the model of a plan."""
    load_extensions(files)
    if plot is not None:  # and not behind hours of judging
        figure_for(Path(plot))
    if plans is not None:
        check_place(Path(plans))
    given = {
        "calibration": calibration,
        "samples": samples,
        "trust": trust or None,
    }
    settings: Any = {k: v for k, v in given.items() if v is not None and k in OPTIONS}
    settings["progress"] = say
    found = sweep_(
        None,
        importance=importance.split(","),
        scope=scope.split(","),
        budget=_budgets(budgets),
        evaluate=function,
        metric=metric,
        lower_is_better=lower_is_better,
        workers=workers,
        engine=engine,
        storage=storage,
        load=partial(_call, model, inputs, pretrained, trust),
        options=settings,
    )
    if plot is not None and speaks():
        found.plot(plot)
    if plans is not None and speaks():
        Path(plans).mkdir(parents=True, exist_ok=True)
        for row in found.pareto:
            if row.importance:
                row.plan.save(
                    Path(plans) / f"{row.importance}-{row.scope}-{row.measure}-{row.share:g}.json"
                )
    if json_:
        show_json(found.as_dict())
    else:
        shown(found.table(), whole=True)
