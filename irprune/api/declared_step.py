"""The options that a step of a schedule takes too, each declared once; see
``irprune.api.declarations``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from irprune.analysis.widths import PREFER
from irprune.api.declared_replay import ReplayOptions
from irprune.api.option import Flag, Option
from irprune.api.option_kinds import (
    is_bool,
    is_number,
    is_shares,
    is_text,
    is_texts,
    is_whole,
    one_of,
    or_none,
    read_multiples,
    read_ratios,
    read_round_to,
    read_share,
    settle_importance,
    settle_keep,
    settle_normalise,
    settle_round_to,
    settle_scope,
)
from irprune.choice.scopes import SCOPES
from irprune.criteria import Importance, criteria
from irprune.criteria.normalise import NORMALISERS
from irprune.criteria.places import REDUCTIONS

__all__ = ["StepOptions"]

NORMALISED = (*NORMALISERS, "measured")


class StepOptions(ReplayOptions, total=False):
    """What ``schedule`` takes beside its own ``ratio`` and ``budget``."""

    importance: Annotated[
        str | Importance | None,
        Option(
            None,
            f"The criterion that ranks channels: {', '.join(sorted(criteria()))}.",
            "A name of ``irprune.criteria``, or an object with ``scores(graph, groups, blocks)``.",
            otherwise="magnitude; osscar with calibration data",
            fits=or_none(lambda x: isinstance(x, (str, Importance))),
            takes="the name of a criterion, or an object with scores(graph, groups, blocks)",
            settle=settle_importance,
            to="score",
            flags=(Flag("--importance", metavar="NAME"),),
        ),
    ]
    scope: Annotated[
        str | None,
        Option(
            None,
            "Rank within each width (local), over all (global), over groups of the same structure "
            "(isomorphic), or meet a budget at the least loss (knapsack).",
            "A knapsack wants scores that are losses (``normalise='measured'``); sums of "
            "magnitudes are none.",
            otherwise="local; knapsack for a budget with calibration data",
            fits=or_none(is_text),
            takes=one_of(SCOPES),
            settle=settle_scope,
            to="choose",
            flags=(Flag("--scope", SCOPES),),
        ),
    ]
    keep: Annotated[
        str | Sequence[str],
        Option(
            (),
            "Patterns over weights, groups (weight:dim) and modules that stay whole.",
            'As in ["head*"].',
            fits=is_texts,
            takes='patterns over weights, groups and modules, as in ["head*"]',
            settle=settle_keep,
            to="choose",
            flags=(Flag("--keep", metavar="PATTERN", multiple=True),),
        ),
    ]
    ratios: Annotated[
        Mapping[str, float],
        Option(
            MappingProxyType({}),
            "Pattern to ratio, for groups to be cut by a ratio of their own.",
            fits=is_shares,
            takes='ratios by pattern, as in {"layer1*": 0.25}',
            to="choose",
            flags=(
                Flag(
                    "--ratio-of",
                    metavar="PATTERN=RATIO",
                    multiple=True,
                    read=read_ratios,
                    help="A ratio of their own for what PATTERN matches.",
                ),
            ),
        ),
    ]
    divisible_by: Annotated[
        Mapping[str, int],
        Option(
            MappingProxyType({}),
            "Kinds of widths whose counts stay multiples, as ranks divide them among each other: "
            '{"heads": 4} for tensor parallelism over four.',
            "Heads and groups of keys and values both; other kinds are those that ``inspect`` "
            "names, such as 'MLP width'.",
            fits=is_shares,
            takes='whole numbers by kind, as in {"heads": 4}',
            to="choose",
            flags=(Flag("--divisible-by", metavar="KIND=N", multiple=True, read=read_multiples),),
        ),
    ]
    round_to: Annotated[
        int | str | None,
        Option(
            None,
            "Widths become multiples of this; auto: of what onnxruntime likes here, as measured; "
            "aligned: of 8 or 4 for convolutions.",
            "For example 16 for convolutions on AVX-512 and 8 on AVX2; for matrix products the same "
            "or 1.",
            otherwise="aligned with a budget, auto with one on latency, else 1",
            settle=settle_round_to,
            fits=or_none(lambda x: is_whole(x) or is_text(x)),
            takes="a whole number from 1 on, auto or aligned",
            to="choose",
            flags=(Flag("--round-to", metavar="N|auto|aligned", read=read_round_to),),
        ),
    ]
    min_channels: Annotated[
        int,
        Option(
            1,
            "No group gets narrower than this.",
            fits=is_whole,
            takes="a whole number from 1 on",
            to="choose",
            flags=(Flag("--min-channels", int),),
        ),
    ]
    max_ratio: Annotated[
        float,
        Option(
            1.0,
            "No group loses a larger share than this.",
            fits=is_number,
            takes="a share from 0 to 1",
            to="choose",
            flags=(Flag("--max-ratio", metavar="SHARE", read=read_share),),
        ),
    ]
    prefer: Annotated[
        str,
        Option(
            "heads",
            "Which factor of a product of widths carries its ratio.",
            f"One of {', '.join(PREFER)}.",
            fits=is_text,
            takes=one_of(PREFER),
            to="choose",
            flags=(Flag("--prefer", PREFER),),
        ),
    ]
    per_block: Annotated[
        bool,
        Option(
            True,
            "Let every head or group keep inner indices of its own, where that is legal.",
            fits=is_bool,
            takes="True or False",
            to="choose",
            flags=(
                Flag(
                    "--no-per-block",
                    constant=False,
                    help="Keep the same inner indices in every head or group.",
                ),
            ),
        ),
    ]
    drop_blocks: Annotated[
        bool | None,
        Option(
            None,
            "Let whole residual branches (attention or feed-forward parts) go, where that loses the "
            "least for a budget.",
            "Depth then competes with widths in one knapsack of measured losses.",
            otherwise="True for a language model with calibration data and a budget, unless uniform",
            fits=or_none(is_bool),
            takes="True or False",
            to="score",
            flags=(
                Flag("--drop-blocks", constant=True),
                Flag("--no-drop-blocks", constant=False, help="Leave every branch."),
            ),
        ),
    ]
    uniform: Annotated[
        bool | None,
        Option(
            None,
            "Give layers that repeat one width for each kind of it, as the config of a transformers "
            "model can say them.",
            "What the config refuses is then chosen otherwise (``irprune.api.uniform``).",
            otherwise="False; on the command line True with --format hf and for .gguf files",
            fits=or_none(is_bool),
            takes="True or False",
            flags=(
                Flag("--uniform", constant=True),
                Flag(
                    "--per-layer",
                    constant=False,
                    help="With --format hf: widths by layer, and a model file in the folder; in a .gguf file widths by layer.",
                ),
            ),
        ),
    ]
    reduce: Annotated[
        str | None,
        Option(
            None,
            f"How importance is joined over the places of a group: {', '.join(REDUCTIONS)}.",
            otherwise="the criterion's own",
            fits=or_none(is_text),
            takes=one_of(REDUCTIONS),
            to="score",
            flags=(Flag("--reduce", tuple(REDUCTIONS)),),
        ),
    ]
    normalise: Annotated[
        str | None,
        Option(
            None,
            f"How importance is made comparable between groups: {', '.join(NORMALISED)}.",
            "Measured: by what the outputs lose on the calibration data.",
            otherwise="mean; measured for a knapsack with calibration data",
            fits=or_none(is_text),
            takes=one_of(NORMALISED),
            settle=settle_normalise,
            to="score",
            flags=(Flag("--normalise", NORMALISED),),
        ),
    ]
    seed: Annotated[
        int | None,
        Option(
            None,
            "Seed of a criterion that draws.",
            fits=or_none(is_whole),
            takes="a whole number",
            to="score",
            flags=(Flag("--seed", int),),
        ),
    ]
    loss: Annotated[
        Callable[[Any, Any], Any] | None,
        Option(
            None,
            "``loss(outputs, batch)`` for criteria that read gradients.",
            otherwise="labels drawn from the model's own output",
            fits=or_none(callable),
            takes="a function of outputs and batch that gives a number",
            to="score",
        ),
    ]
    threads: Annotated[
        int,
        Option(
            0,
            "Threads of onnxruntime for a budget on latency; 0 leaves its default.",
            fits=lambda x: is_whole(x) and x >= 0,
            takes="a whole number; 0 leaves it to onnxruntime",
            flags=(Flag("--threads", int),),
        ),
    ]
    resume: Annotated[
        str | Path | None,
        Option(
            None,
            "File in which what is measured on calibration data is kept as it goes: the same call, "
            "also with another budget, goes on from there.",
            "It belongs to one model, its data and the criterion; with others it is started over. "
            "Sums, activations and repaired weights lie in a folder beside it (``.d``): a run that "
            "was killed goes on behind the last block that was finished.",
            fits=or_none(lambda x: isinstance(x, (str, Path))),
            takes="the path of a file",
            flags=(Flag("--resume", metavar="FILE"),),
        ),
    ]
    progress: Annotated[
        Callable[[str], None] | None,
        Option(
            None,
            "Called with a line of text where something takes its time.",
            "How far a stage is comes as a ``irprune.base.progress.ProgressLine``, a text with its share "
            "and the seconds left; a few a second at most.",
            fits=or_none(callable),
            takes="a function of a line of text",
        ),
    ]
