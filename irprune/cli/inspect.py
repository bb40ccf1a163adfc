"""``irprune inspect``: the coupled groups of a model, and what is frozen and why."""

from __future__ import annotations

import click

from irprune import api
from irprune.analysis.outline import outline
from irprune.cli.options import common, dynamic, extensions, inputs, load, model, show_json, shown

__all__ = ["inspect"]


@click.command()
@model()
@inputs
@dynamic
@click.option(
    "--all", "every", is_flag=True, help="One line for each group, not for each repeated block."
)
@extensions
@common
def inspect(
    model: str,
    inputs: tuple[str, ...],
    pretrained: bool,
    trust: bool,
    dynamic: str,
    every: bool,
    files: tuple[str, ...],
    json_: bool,
) -> None:
    """Show the groups of MODEL: size, kind, cost of one channel, members; and what is frozen and
    why."""
    loaded = load(model, inputs, pretrained, trust, files)
    graph = api.analyse(loaded.capture(dynamic))
    found = outline(graph, fold=not every)
    if json_:
        show_json({"name": loaded.name, **found.as_dict()})
    else:
        shown(str(found))
