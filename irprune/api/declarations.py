"""The options of the public calls, each declared once: with its type, default, help, check, pass
and flags. To add one is to add its declaration, and the field of the pass that it is.

The classes say which call takes which options: here all that ``prune`` takes, in
``declared_replay``, ``declared_step`` and ``declared_metric`` those that others take too."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

from irprune.api.declared_metric import MetricOptions
from irprune.api.declared_replay import ReplayOptions
from irprune.api.declared_step import StepOptions
from irprune.api.option import Flag, Option, declared
from irprune.api.option_kinds import (
    DEAD,
    MASKS,
    is_bool,
    is_budget,
    is_number,
    is_ranks,
    or_none,
    read_amount,
    read_indices,
    read_ranks,
    read_share,
    settle_budget,
)

__all__ = ["METRIC", "OPTIONS", "REPLAY", "STEP", "PruneOptions", "ReplayOptions", "StepOptions"]


class PruneOptions(StepOptions, MetricOptions, total=False):
    """All options of ``prune``."""

    ratio: Annotated[
        float,
        Option(
            0.5,
            "Share of every width that is dropped, 0 to 1.",
            fits=is_number,
            takes="a number from 0 to 1: the share of every width that is dropped",
            to="choose",
            flags=(Flag("--ratio", metavar="SHARE", read=read_share),),
        ),
    ]
    budget: Annotated[
        Mapping[str, float | str] | None,
        Option(
            None,
            "What may be left, found in place of ``ratio``: macs, params, bytes, activation (peak "
            "bytes) or latency.",
            'Shares up to 1 or amounts, as in {"macs": 0.5}; several hold together. Parameters and '
            'bytes also of the weights that a pattern matches: {"params": {"model.layers*": 0.8}}. '
            '{"latency": '
            '0.5} or {"latency": "3ms"} on onnxruntime is predicted from times of its operators, '
            "which are measured once and kept in the user's cache, then measured on the cut "
            "(``irprune.latency``).",
            fits=or_none(is_budget),
            takes='what to keep, as in {"macs": 0.5}',
            against=("ratio",),
            settle=settle_budget,
            to="choose",
            flags=(
                Flag(
                    "--macs",
                    metavar="SHARE|AMOUNT",
                    key="macs",
                    read=partial(read_amount, "macs"),
                    help="Budget instead of a ratio: share (0.5, 50%) or number (28M) of "
                    "multiply-accumulates to keep.",
                ),
                Flag(
                    "--params",
                    metavar="SHARE|AMOUNT",
                    key="params",
                    read=partial(read_amount, "params"),
                    help="Budget: share or number of parameters to keep, or of those of some "
                    "weights: 'model.layers*=0.8'.",
                ),
                Flag(
                    "--bytes",
                    metavar="SHARE|AMOUNT",
                    key="bytes",
                    read=partial(read_amount, "bytes"),
                    help="Budget: share or number of stored bytes to keep, or of some weights'.",
                ),
                Flag(
                    "--activation",
                    metavar="SHARE|AMOUNT",
                    key="activation",
                    read=partial(read_amount, "activation"),
                    help="Budget: share or number of peak activation bytes to keep.",
                ),
                Flag(
                    "--latency",
                    metavar="SHARE|TIME",
                    key="latency",
                    help="Budget on onnxruntime: share of the original's time, or a time such as "
                    "3ms.",
                ),
            ),
        ),
    ]
    low_rank: Annotated[
        bool | Mapping[str, int],
        Option(
            False,
            "Let layers become two thinner ones, where that loses less than narrower layers do.",
            "True: ranks compete with widths for the budget. A mapping gives ranks by pattern over "
            'weights, as in {"fc*": 16}, beside whatever is cut. The product of the two is the '
            "nearest to the weight on the calibration data, or to the weight itself.",
            fits=lambda x: isinstance(x, bool) or is_ranks(x),
            takes='True, False, or ranks by pattern, as in {"fc*": 16}',
            flags=(
                Flag(
                    "--low-rank",
                    constant=True,
                    help="Let layers become two thinner ones where that loses the least for the "
                    "budget.",
                ),
                Flag(
                    "--low-rank-of",
                    metavar="PATTERN=RANK",
                    multiple=True,
                    read=read_ranks,
                    help="Let the layers that PATTERN matches become two of this rank.",
                ),
            ),
        ),
    ]
    rotate: Annotated[
        bool,
        Option(
            False,
            "Put residual streams that norms read into the basis of their principal components on "
            "the calibration data, before anything is chosen.",
            "The model computes the same in that basis, which is checked; what is cut of the width "
            "are then the directions of least energy. Tied embeddings become two.",
            fits=is_bool,
            takes="True or False",
            flags=(
                Flag(
                    "--rotate",
                    constant=True,
                    help="Put residual streams into the basis of their principal components first, "
                    "so that directions of least energy go.",
                ),
            ),
        ),
    ]
    keep_indices: Annotated[
        Mapping[str, Sequence[int]] | str | None,
        Option(
            None,
            "Cut exactly this: weight:dimension to the indices that are kept; all else stays whole.",
            'As in {"layer1.0.conv1.weight:0": [0, 2, 5]}. "masks" drops the channels that '
            '``torch.nn.utils.prune`` has masked as a whole; "dead" only those that are zeros '
            "whatever comes in, or that nothing reads, so that the outputs are the original's.",
            fits=or_none(lambda x: isinstance(x, Mapping) or x in (MASKS, DEAD)),
            takes='indices by weight:dimension, "masks" or "dead"',
            against=("ratio", "budget", "max_drop", "target_metric"),
            flags=(
                Flag(
                    "--keep-indices",
                    metavar="FILE.json",
                    read=read_indices,
                    help="Cut exactly this: a JSON object from weight:dimension to the indices that "
                    "are kept.",
                ),
                Flag("--masks", constant=MASKS, help="Cut what torch.nn.utils.prune has masked."),
                Flag(
                    "--dead",
                    constant=DEAD,
                    help="Cut only what is dead: the outputs stay exactly the original's.",
                ),
            ),
        ),
    ]


def _own_first(cls: type, base: Mapping[str, Option]) -> dict[str, Option]:
    """The options of ``cls``, its own before those of its base."""
    found = declared(cls)
    return {**{k: o for k, o in found.items() if k not in base}, **base}


REPLAY = declared(ReplayOptions)
STEP = _own_first(StepOptions, REPLAY)
METRIC = declared(MetricOptions)
OPTIONS = _own_first(PruneOptions, {**METRIC, **STEP})
