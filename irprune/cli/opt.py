"""``irprune opt``: run passes on a model and print the graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from irprune.api.calls import made_by
from irprune.base.atomic_write import write_text
from irprune.cli.completion import complete_file
from irprune.cli.options import as_json, dynamic, inputs, load, model, say, show_json, shown
from irprune.cli.output import Output
from irprune.driver.instruments import Dump, PrintAfterAll, PrintDiff, Time, Verify, describe
from irprune.driver.registry import standard
from irprune.driver.run import run
from irprune.errors import IrpruneError
from irprune.ir.parse import from_text

if TYPE_CHECKING:
    from irprune.api.pruned import Pruned
    from irprune.driver.instruments import Instrument
    from irprune.ir.graph import Graph

__all__ = ["opt", "read_graph"]

MODELS = (".onnx", ".pt2")  # what is written as a model, not as text


@click.command()
@model()
@click.option(
    "-p",
    "--pipeline",
    default="",
    metavar="PASSES",
    help='What to run, as "infer-axes,score,choose{ratio=0.3},slice".',
)
@inputs
@dynamic
@click.option(
    "--load",
    "files",
    multiple=True,
    metavar="FILE.py",
    help="Take in the passes of a Python file; may be given again.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=complete_file,
    help="Write the graph here instead of printing it: a file that ends in .onnx or .pt2 is the "
    "model, proven; anything else the text.",
)
@click.option("--no-proof", is_flag=True, help="Write a model that is not proven.")
@click.option(
    "--print-after-all", is_flag=True, help="Print the graph after every pass (on stderr)."
)
@click.option("--print-diff", is_flag=True, help="Print what every pass changed (on stderr).")
@click.option(
    "--dump",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the graph after every pass to numbered files.",
)
@click.option("--time", "timed", is_flag=True, help="Print how long every pass took (on stderr).")
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Check the graph, and what passes say of it, after every pass.",
)
@click.option("--deep", is_flag=True, help="Compare every type with torch's as well.")
@click.option("--quiet", is_flag=True, help="Do not print the graph.")
@as_json
def opt(
    model: str,
    pipeline: str,
    inputs: tuple[str, ...],
    pretrained: bool,
    trust: bool,
    dynamic: str,
    files: tuple[str, ...],
    output: str | None,
    no_proof: bool,
    print_after_all: bool,
    print_diff: bool,
    dump: Path | None,
    timed: bool,
    verify: bool,
    deep: bool,
    quiet: bool,
    json_: bool,
) -> None:
    """Run passes on MODEL, and print the graph as text or write the model that they make.

    MODEL may also be such a text, in a file that ends in .irp.

    \b
    irprune opt net.py:build -p prune --print-diff --quiet
    irprune opt net.onnx -p "infer-axes,my-pass{k=3}" --load my_pass.py --time
    irprune opt net.onnx -p prepare,analyse,decide,my-pass,cut -o small.onnx
    """
    passes = standard(files).parse(pipeline) if pipeline.strip() else []
    place = Output(output if output is not None and Path(output).suffix in MODELS else None)
    place.check(model, force=False)
    graph = read_graph(model, inputs, pretrained, trust, dynamic)
    whole = graph.copy() if place.path is not None else None
    clock = Time()
    instruments: list[Instrument] = [
        *([Verify(say, deep)] if verify or deep else []),
        *([PrintAfterAll(say)] if print_after_all else []),
        *([PrintDiff(say)] if print_diff else []),
        *([Dump(dump)] if dump is not None else []),
        clock,
    ]
    result = run(graph, passes, instruments)
    for note in (*graph.notes, *result.notes):
        say(f"note: {note}")
    if timed:
        say(clock.table())
    text = str(graph)
    made: Pruned | None = None
    if whole is not None:
        made = made_by(whole, passes, proof=not no_proof)
        place.write(made)
        say(f"wrote {output}: {made.report.proof or 'not proven'}")
    elif output is not None:
        write_text(Path(output), text)
    if json_:
        show_json(
            {
                "model": model,
                "changed": result.changed,
                "passes": describe(clock.rows),
                "nodes": len(graph.nodes),
                "weights": len(graph.weights),
                "notes": [*graph.notes, *result.notes],
                "report": None if made is None else made.report.as_dict(),
                "text": None if quiet or output is not None else text,
            }
        )
    elif not quiet and output is None:
        shown(text.rstrip(), whole=True)


def read_graph(
    spec: str,
    given: tuple[str, ...] = (),
    pretrained: bool = False,
    trust: bool = False,
    dynamic: str = "all",
) -> Graph:
    """The graph of MODEL, or the one that a text file describes. Raises IrpruneError for what is
    neither."""
    path = Path(spec)
    if path.suffix != ".irp":
        loaded = load(spec, given, pretrained, trust)
        graph = loaded.capture(dynamic)
        graph.name = loaded.name or graph.name
        return graph
    try:
        return from_text(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError as missing:
        raise IrpruneError("no such file", spec, "check the path") from missing
    except (OSError, UnicodeDecodeError) as broken:
        raise IrpruneError(
            f"cannot be read: {broken}", spec, "give a text that irprune printed"
        ) from broken
