"""``irprune explain``: the chain of operators behind a coupling or a freeze."""

from __future__ import annotations

import click

from irprune import api
from irprune.analysis.explain import explain as explanations
from irprune.cli.options import common, dynamic, extensions, inputs, load, model, show_json, shown

__all__ = ["explain"]


@click.command()
@model()
@click.argument("name")
@inputs
@dynamic
@extensions
@common
def explain(
    model: str,
    name: str,
    inputs: tuple[str, ...],
    pretrained: bool,
    trust: bool,
    dynamic: str,
    files: tuple[str, ...],
    json_: bool,
) -> None:
    """Show what couples NAME to its group, or froze it, with the lines of the model's code.

    NAME is a weight (layer1.0.conv1.weight), one of its dimensions (layer1.0.conv1.weight:0), or a
    value of the graph."""
    loaded = load(model, inputs, pretrained, trust, files)
    graph = api.analyse(loaded.capture(dynamic))
    found = explanations(graph, name)
    if json_:
        show_json({"name": name, "dimensions": [x.as_dict() for x in found]})
    else:
        shown(
            "\n".join(map(str, found))
            if found
            else f"{name}: every dimension has size 1 and broadcasts"
        )
