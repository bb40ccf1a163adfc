"""The options of the public calls, each declared here, once: with its type, default, help, check,
pass and flags. To add one is to add its declaration, and the field of the pass that it is.

The three classes say which call takes which options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypedDict

from irprune.analysis.widths import PREFER
from irprune.api.declared_metric import MetricOptions
from irprune.api.option import Flag, Option, declared
from irprune.api.option_kinds import (
    DEAD,
    FP16,
    INT8,
    MASKS,
    is_bool,
    is_budget,
    is_bytes,
    is_number,
    is_numbers,
    is_ranks,
    is_shares,
    is_text,
    is_texts,
    is_whole,
    one_of,
    or_none,
    read_amount,
    read_indices,
    read_multiples,
    read_numbers,
    read_pixels,
    read_ranks,
    read_ratios,
    read_repair,
    read_resize,
    read_round_to,
    read_share,
    settle_budget,
    settle_calibration,
    settle_importance,
    settle_keep,
    settle_memory,
    settle_normalise,
    settle_repair,
    settle_round_to,
    settle_scope,
)
from irprune.choice.scopes import SCOPES
from irprune.criteria import Importance, criteria
from irprune.criteria.normalise import NORMALISERS
from irprune.criteria.places import REDUCTIONS
from irprune.passes.repairs import repairs

__all__ = ["METRIC", "OPTIONS", "REPLAY", "STEP", "PruneOptions", "ReplayOptions", "StepOptions"]

DEVICES = ("auto", "cpu", "cuda")
NORMALISED = (*NORMALISERS, "measured")


class ReplayOptions(TypedDict, total=False):
    """The options that choose nothing: all that ``apply_plan`` takes."""

    proof: Annotated[
        bool | str,
        Option(
            True,
            'False leaves the proof out, "gradients" proves the gradients of a module as well.',
            "Those are part of the proof where they take no more than about a second.",
            fits=lambda x: is_bool(x) or x == "gradients",
            takes='True, False or "gradients"',
            flags=(
                Flag("--no-proof", constant=False, help="Leave the proof out."),
                Flag(
                    "--proof-gradients",
                    constant="gradients",
                    help="Prove the gradients of a module as well, however long that takes.",
                ),
            ),
        ),
    ]
    strict: Annotated[
        bool,
        Option(
            False,
            "Refuse a model with an operator that no rule covers.",
            fits=is_bool,
            takes="True or False",
            flags=(Flag("--strict", constant=True),),
        ),
    ]
    device: Annotated[
        str,
        Option(
            "auto",
            "Where the proof, the comparison and the timing run; auto takes CUDA where there is a "
            "GPU.",
            '"auto", "cpu", "cuda", or one GPU as "cuda:1".',
            fits=lambda x: isinstance(x, str) and (x in DEVICES or x.startswith("cuda:")),
            takes=f"one of {', '.join(DEVICES)}, or cuda:0, cuda:1, ...",
            flags=(Flag("--device", DEVICES),),
        ),
    ]
    dynamic: Annotated[
        str,
        Option(
            "all",
            "Which sizes of the inputs of a torch model stay open in what comes out.",
            'All of them, unless forward fixes them; "batch", "none", or dimensions by the name of '
            'the input, "x:0,2".',
            fits=is_text,
            takes="none, batch, all, or dimensions of inputs as 'x:0,2'",
            flags=(Flag("--dynamic", metavar="SIZES"),),
        ),
    ]
    dynamic_shapes: Annotated[
        Any, Option(None, "As in ``torch.export.export``, in place of ``dynamic``.")
    ]
    trust: Annotated[
        bool,
        Option(
            False,
            "Load a file even where that may run code which lies in it (docs/security.md).",
            fits=is_bool,
            takes="True or False",
        ),
    ]
    ranks: Annotated[
        int | None,
        Option(
            None,
            "How many ranks of an initialised process group work together, each on its share of the "
            "calibration data; 1 is this process alone.",
            "All of them must make the same call; the result is the same on any number.",
            otherwise="as many as there are",
            fits=or_none(lambda x: is_whole(x) and x >= 1),
            takes="a whole number from 1 on",
            flags=(
                Flag(
                    "--ranks",
                    int,
                    metavar="N",
                    help="Refuse another number of ranks than N (torchrun starts them).",
                ),
            ),
        ),
    ]
    memory: Annotated[
        int | str | None,
        Option(
            None,
            "Bytes of memory for weights, activations and sums over them, as in 8GB: a folder of "
            "transformers that takes more is read weight by weight, activations wait on the disk.",
            "One layer at a time is held in any case, with the matrices that its repair solves.",
            otherwise="1 GiB",
            fits=or_none(is_bytes),
            takes="a number of bytes, or a text such as 8GB or 512MB",
            settle=settle_memory,
            flags=(Flag("--memory", metavar="BYTES"),),
        ),
    ]
    bench: Annotated[
        bool,
        Option(
            False,
            "Time each ONNX file that is written beside the original on onnxruntime, for a second.",
            "A warning says where it is not faster, or where the machine is too noisy to tell. The "
            "command line does so by default.",
            fits=is_bool,
            takes="True or False",
            flags=(
                Flag(
                    "--no-bench",
                    constant=False,
                    help="Do not time an ONNX file that is written beside the original.",
                ),
            ),
        ),
    ]
    quantize: Annotated[
        str | None,
        Option(
            None,
            'Numbers of each ONNX file that is written: "int8" by onnxruntime\'s static quantisation '
            'on the calibration data, or "fp16".',
            "The proof is of the model before; the report says how well the file agrees with it.",
            fits=lambda x: x in (None, INT8, FP16),
            takes='"int8" or "fp16"',
            flags=(
                Flag(
                    "--quantize",
                    (INT8, FP16),
                    help="Numbers of the ONNX file that is written: int8 by onnxruntime's static "
                    "quantisation on the calibration data, or 16-bit floats.",
                ),
                Flag("--fp16", constant=FP16, help="The same as --quantize fp16."),
            ),
        ),
    ]
    preprocess: Annotated[
        str | Callable[[Any], Any] | None,
        Option(
            None,
            "What becomes of the images of a calibration folder: imagenet, timm:NAME, hf:FOLDER or "
            "file.py:function.",
            "Or a function from a PIL image to a tensor. Without it, and without mean, std, resize, "
            "crop or pixels, images are refused unless the model's first layers say what they take.",
            fits=or_none(lambda x: is_text(x) or callable(x)),
            takes="a text such as imagenet, or a function of a PIL image",
            flags=(Flag("--preprocess", metavar="NAME"),),
        ),
    ]
    mean: Annotated[
        float | Sequence[float] | None,
        Option(
            None,
            "Subtracted from the pixels of images, one number or one for each channel.",
            fits=or_none(is_numbers),
            takes="numbers, one for each channel",
            flags=(Flag("--mean", metavar="NUMBERS", read=read_numbers),),
        ),
    ]
    std: Annotated[
        float | Sequence[float] | None,
        Option(
            None,
            "What the pixels of images are divided by after that.",
            fits=or_none(is_numbers),
            takes="numbers, one for each channel",
            flags=(Flag("--std", metavar="NUMBERS", read=read_numbers),),
        ),
    ]
    resize: Annotated[
        int | tuple[int, int] | None,
        Option(
            None,
            "Shorter side, or height and width, that images get before what the model sees is cut "
            "out of their middle.",
            otherwise="the size that the model takes",
            fits=or_none(lambda x: is_whole(x) or is_numbers(x)),
            takes="a whole number, or two",
            flags=(Flag("--resize", metavar="SIZE", read=read_resize),),
        ),
    ]
    crop: Annotated[
        float | None,
        Option(
            None,
            "Instead of resize: the share of the resized image that the model sees, as in 0.875.",
            fits=or_none(lambda x: is_number(x) and 0 < x <= 1),
            takes="a number above 0 and up to 1",
            flags=(Flag("--crop", float),),
        ),
    ]
    pixels: Annotated[
        tuple[float, float] | None,
        Option(
            None,
            "What black and white become before mean and std, as in (0, 1) or (-1, 1).",
            otherwise="0 and 1",
            fits=or_none(lambda x: is_numbers(x) and not is_number(x) and len(x) == 2),
            takes="two numbers",
            flags=(Flag("--pixels", metavar="LOW..HIGH", read=read_pixels),),
        ),
    ]
    calibration: Annotated[
        Any,
        Option(
            None,
            "A few hundred inputs for criteria and repairs that read data.",
            "An iterable, a tensor, or a folder of .npy, .npz or image files, or of texts for a "
            "language model "
            '(``irprune.run.calibration``). "synthetic" makes inputs from what the model has '
            "stored (``irprune.run.synthetic``); False goes without.",
            otherwise="synthetic for a model with trained batch norms where no criterion is named",
            settle=settle_calibration,
            to="score",
            flags=(
                Flag(
                    "--calibration",
                    metavar="FOLDER|synthetic",
                    help="Folder of .npy, .npz or image files, or texts for a language model: data "
                    "for criteria and repairs that read it; synthetic makes inputs from what the "
                    "model has stored.",
                ),
                Flag(
                    "--no-calibration",
                    constant=False,
                    help="Go without data, also where inputs could be made.",
                ),
            ),
        ),
    ]
    repair: Annotated[
        str | bool | Sequence[str] | None,
        Option(
            None,
            "Refit what is left to the original, after the proof: "
            f"{', '.join(repairs())}, or several.",
            "On ``calibration``, or on noise where there is none (``irprune.api.repair``). True is "
            "least_squares, False none.",
            otherwise="least_squares with calibration data, else none",
            fits=or_none(lambda x: is_bool(x) or is_texts(x)),
            takes='names of repairs, as in ["least_squares"]',
            settle=settle_repair,
            flags=(
                Flag(
                    "--repair",
                    metavar="METHOD",
                    multiple=True,
                    read=read_repair,
                    help="Refit what is left to the original, after the proof: "
                    f"{', '.join(repairs())} or none.",
                ),
            ),
        ),
    ]


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
            "How far a stage is comes as a ``irprune.base.progress.Step``, a text with its share "
            "and the seconds left; a few a second at most.",
            fits=or_none(callable),
            takes="a function of a line of text",
        ),
    ]


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
