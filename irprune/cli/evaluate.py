"""``irprune evaluate``: how good a language model is, beside the one that it was made from."""

from __future__ import annotations

import click

from irprune.api.evaluate import LENGTH
from irprune.api.evaluate import evaluate as measure
from irprune.cli.options import common, device, load, model, show_json, shown
from irprune.errors import CheckFailed, IrpruneError

__all__ = ["evaluate"]


@click.command()
@model()
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    metavar="FILE|FOLDER",
    help="A text, .txt, .md or .jsonl, or a folder of them; may be given again.",
)
@click.option("--against", metavar="MODEL", help="The model that MODEL was made from.")
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    help="Where the tokenizer lies.  [default: the folder of MODEL, or of --against]",
)
@click.option(
    "--length",
    type=click.IntRange(min=2),
    default=LENGTH,
    show_default=True,
    help="Tokens of a row.",
)
@click.option("--rows", type=click.IntRange(min=1), help="Rows of each text.  [default: all]")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Let the models go on from TEXT, the likeliest token each time; may be given again.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Tokens that they add to it.",
)
@click.option(
    "--max-rise",
    type=click.FloatRange(min=1),
    metavar="TIMES",
    help="Exit with 1 where the perplexity on a text is above TIMES that of --against.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Load MODEL even where that runs code which lies in it: a folder of widths by layer, pickles.",
)
@device
@common
def evaluate(
    model: str,
    texts: tuple[str, ...],
    against: str | None,
    tokenizer: str | None,
    length: int,
    rows: int | None,
    prompts: tuple[str, ...],
    tokens: int,
    max_rise: float | None,
    trust: bool,
    device: str,
    json_: bool,
) -> None:
    """Measure the language model MODEL on texts: perplexity, and beside --against how often both
    find the same next token the likeliest, how far their distributions are apart, and what each
    says after a prompt."""
    if max_rise is not None and against is None:
        raise IrpruneError("--max-rise without a model to compare with", "", "give --against MODEL")
    own, other = (
        load(spec, (), False, trust) if spec is not None else None for spec in (model, against)
    )
    for one in (own, other):
        if one is not None and one.kind != "module":
            raise IrpruneError(
                f"an {one.kind} file", one.name, "give hf:FOLDER, a folder of irprune, or a module"
            )
    assert own is not None
    found = measure(
        own.model,
        texts,
        against=None if other is None else other.model,
        tokenizer=tokenizer,
        length=length,
        rows=rows,
        prompts=prompts,
        tokens=tokens,
        device=device,
    )
    worse = [
        f
        for f in found.texts
        if max_rise is not None and f.before is not None and f.perplexity > max_rise * f.before
    ]
    if json_:
        show_json({"model": model, "against": against, **found.as_dict(), "passed": not worse})
    else:
        shown(str(found))
    if worse:
        first = worse[0]
        raise CheckFailed(
            f"perplexity on {first.text} is {first.perplexity / (first.before or 1):.3f} times that "
            f"before, {max_rise:g} times is allowed",
            model,
        )
