"""What a prune can be told: every option is declared here, once, with its type, default, help,
check, pass and flags. To add one is to add its declaration, and the field of the pass that it is.

The three classes say which call takes which options; ``Options`` is what they become, checked and
completed at the door."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack, cast

from irprune.analysis.widths import PREFER
from irprune.api.option import Flag, Option, declared
from irprune.choice.budget import wanted
from irprune.choice.scopes import SCOPES
from irprune.criteria import Importance, criteria
from irprune.criteria.normalise import NORMALISERS
from irprune.criteria.places import REDUCTIONS
from irprune.errors import IrpruneError
from irprune.latency.table import Table
from irprune.passes.choose import Choose
from irprune.passes.repairs import repair_of, repairs
from irprune.passes.score import Score

if TYPE_CHECKING:
    import torch

__all__ = [
    "OPTIONS",
    "REPLAY",
    "STEP",
    "Options",
    "PruneOptions",
    "ReplayOptions",
    "StepOptions",
    "device_of",
]

DEVICES = ("auto", "cpu", "cuda")


# -- kinds of values (what is in range the passes and criteria say) -------------------------------


def _number(x: Any) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool)


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _bool(x: Any) -> bool:
    return isinstance(x, bool)


def _text(x: Any) -> bool:
    return isinstance(x, str)


def _texts(x: Any) -> bool:
    return isinstance(x, str) or (
        isinstance(x, Iterable)
        and not isinstance(x, Mapping)
        and all(isinstance(p, str) for p in x)
    )


def _shares(x: Any) -> bool:
    return isinstance(x, Mapping) and all(isinstance(k, str) and _number(v) for k, v in x.items())


def _budget(x: Any) -> bool:
    return isinstance(x, Mapping) and _shares(
        {k: v for k, v in x.items() if k != "latency" or not isinstance(v, str)}
    )


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: x is None or fits(x)


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)


# -- defaults that depend on other options ---------------------------------------------------------


def _listed(data: Any, settled: Mapping[str, Any]) -> Any:
    """Data that can be read once alone are held: the criterion reads them, and the repair again."""
    return list(data) if isinstance(data, Iterator) else data


def _repair(chosen: Any, settled: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the repairs to run, in order."""
    if chosen is None:
        chosen = settled["calibration"] is not None
    if isinstance(chosen, bool):
        return ("least_squares",) * chosen
    names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    for name in names:
        repair_of(name)  # raises for a name that there is not
    return names


def _importance(chosen: Any, settled: Mapping[str, Any]) -> Any:
    if chosen is None:
        return "magnitude" if settled["calibration"] is None else "osscar"
    return chosen


def _scope(chosen: Any, settled: Mapping[str, Any]) -> Any:
    if chosen is None:
        data, budget = settled["calibration"], settled["budget"]
        return "local" if data is None or budget is None else "knapsack"
    return chosen


def _normalise(chosen: Any, settled: Mapping[str, Any]) -> Any:
    if chosen is None:
        data, scope = settled["calibration"], settled["scope"]
        return "measured" if data is not None and scope == "knapsack" else "mean"
    return chosen


def _patterns(chosen: Any, settled: Mapping[str, Any]) -> tuple[str, ...]:
    return (chosen,) if isinstance(chosen, str) else tuple(chosen)


# -- what the command line gives -------------------------------------------------------------------


def _multiple_of(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise IrpruneError(
            f"--round-to {text!r} is no number", "", "a whole number from 1 on, or auto"
        ) from None


def _ratios_of(pairs: Sequence[str]) -> dict[str, float]:
    out = {}
    for pair in pairs:
        pattern, _, ratio = pair.rpartition("=")
        try:
            out[pattern] = float(ratio)
        except ValueError:
            raise IrpruneError(
                f"--ratio-of {pair!r} has no number behind the =", "", "write 'layer1*=0.25'"
            ) from None
    return out


def _repairs_of(names: Sequence[str]) -> Sequence[str] | bool:
    return False if tuple(names) == ("none",) else names


# -- the declarations ------------------------------------------------------------------------------


class ReplayOptions(TypedDict, total=False):
    """The options that choose nothing: all that ``apply_plan`` takes."""

    proof: Annotated[
        bool,
        Option(
            True,
            "False leaves the proof out.",
            fits=_bool,
            takes="True or False",
            flags=(Flag("--no-proof", constant=False, help="Leave the proof out."),),
        ),
    ]
    strict: Annotated[
        bool,
        Option(
            False,
            "Refuse a model with an operator that no rule covers.",
            fits=_bool,
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
    dynamic_shapes: Annotated[Any, Option(None, "As in ``torch.export.export``.")]
    calibration: Annotated[
        Any,
        Option(
            None,
            "A few hundred inputs for criteria and repairs that read data.",
            "An iterable, a tensor, or a folder of .npy, .npz or image files "
            "(``irprune.run.calibration``).",
            settle=_listed,
            to="score",
            flags=(
                Flag(
                    "--calibration",
                    metavar="FOLDER",
                    help="Folder of .npy, .npz or image files: data for criteria and repairs that "
                    "read it.",
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
            fits=_or_none(lambda x: _bool(x) or _texts(x)),
            takes='names of repairs, as in ["least_squares"]',
            settle=_repair,
            flags=(
                Flag(
                    "--repair",
                    metavar="METHOD",
                    multiple=True,
                    read=_repairs_of,
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
            fits=_or_none(lambda x: isinstance(x, (str, Importance))),
            takes="the name of a criterion, or an object with scores(graph, groups, blocks)",
            settle=_importance,
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
            fits=_or_none(_text),
            takes=_one_of(SCOPES),
            settle=_scope,
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
            fits=_texts,
            takes='patterns over weights, groups and modules, as in ["head*"]',
            settle=_patterns,
            to="choose",
            flags=(Flag("--keep", metavar="PATTERN", multiple=True),),
        ),
    ]
    ratios: Annotated[
        Mapping[str, float],
        Option(
            MappingProxyType({}),
            "Pattern to ratio, for groups to be cut by a ratio of their own.",
            fits=_shares,
            takes='ratios by pattern, as in {"layer1*": 0.25}',
            to="choose",
            flags=(
                Flag(
                    "--ratio-of",
                    metavar="PATTERN=RATIO",
                    multiple=True,
                    read=_ratios_of,
                    help="A ratio of their own for what PATTERN matches.",
                ),
            ),
        ),
    ]
    round_to: Annotated[
        int | str | None,
        Option(
            None,
            "Widths become multiples of this; auto: of what onnxruntime likes here, as measured.",
            "For example 16 for convolutions on AVX-512 and 8 on AVX2; for matrix products the same or 1.",
            otherwise="1; auto with a budget on latency",
            fits=_or_none(lambda x: _whole(x) or _text(x)),
            takes="a whole number from 1 on, or auto",
            to="choose",
            flags=(Flag("--round-to", metavar="N|auto", read=_multiple_of),),
        ),
    ]
    min_channels: Annotated[
        int,
        Option(
            1,
            "No group gets narrower than this.",
            fits=_whole,
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
            fits=_number,
            takes="a share from 0 to 1",
            to="choose",
            flags=(Flag("--max-ratio", float),),
        ),
    ]
    prefer: Annotated[
        str,
        Option(
            "heads",
            "Which factor of a product of widths carries its ratio.",
            f"One of {', '.join(PREFER)}.",
            fits=_text,
            takes=_one_of(PREFER),
            to="choose",
            flags=(Flag("--prefer", PREFER),),
        ),
    ]
    per_block: Annotated[
        bool,
        Option(
            True,
            "Let every head or group keep inner indices of its own, where that is legal.",
            fits=_bool,
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
    reduce: Annotated[
        str | None,
        Option(
            None,
            f"How importance is joined over the places of a group: {', '.join(REDUCTIONS)}.",
            otherwise="the criterion's own",
            fits=_or_none(_text),
            takes=_one_of(REDUCTIONS),
            to="score",
            flags=(Flag("--reduce", tuple(REDUCTIONS)),),
        ),
    ]
    normalise: Annotated[
        str | None,
        Option(
            None,
            "How importance is made comparable between groups: "
            f"{', '.join((*NORMALISERS, 'measured'))}.",
            "Measured: by what the outputs lose on the calibration data.",
            otherwise="mean; measured for a knapsack with calibration data",
            fits=_or_none(_text),
            takes=_one_of((*NORMALISERS, "measured")),
            settle=_normalise,
            to="score",
            flags=(Flag("--normalise", (*NORMALISERS, "measured")),),
        ),
    ]
    seed: Annotated[
        int | None,
        Option(
            None,
            "Seed of a criterion that draws.",
            fits=_or_none(_whole),
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
            fits=_or_none(callable),
            takes="a function of outputs and batch that gives a number",
            to="score",
        ),
    ]
    threads: Annotated[
        int,
        Option(
            0,
            "Threads of onnxruntime for a budget on latency; 0 leaves its default.",
            fits=lambda x: _whole(x) and x >= 0,
            takes="a whole number; 0 leaves it to onnxruntime",
            flags=(Flag("--threads", int),),
        ),
    ]
    progress: Annotated[
        Callable[[str], None] | None,
        Option(
            None,
            "Called with a line of text where measuring takes its time.",
            fits=_or_none(callable),
            takes="a function of a line of text",
        ),
    ]


class PruneOptions(StepOptions, total=False):
    """All options of ``prune``."""

    ratio: Annotated[
        float,
        Option(
            0.5,
            "Share of every width that is dropped, 0 to 1.",
            fits=_number,
            takes="a number from 0 to 1: the share of every width that is dropped",
            to="choose",
            flags=(Flag("--ratio", float),),
        ),
    ]
    budget: Annotated[
        Mapping[str, float | str] | None,
        Option(
            None,
            "What may be left, found in place of ``ratio``: macs, params, bytes, activation (peak "
            "bytes) or latency.",
            'Shares up to 1 or amounts, as in {"macs": 0.5}; several hold together. {"latency": '
            '0.5} or {"latency": "3ms"} on onnxruntime is predicted from times of its operators, '
            "which are measured once and kept in the user's cache, then measured on the cut "
            "(``irprune.latency``).",
            fits=_or_none(_budget),
            takes='what to keep, as in {"macs": 0.5}',
            to="choose",
            flags=(
                Flag(
                    "--macs",
                    float,
                    key="macs",
                    help="Budget instead of a ratio: share (up to 1) or number of "
                    "multiply-accumulates to keep.",
                ),
                Flag(
                    "--params",
                    float,
                    key="params",
                    help="Budget: share or number of parameters to keep.",
                ),
                Flag(
                    "--bytes",
                    float,
                    key="bytes",
                    help="Budget: share or number of stored bytes to keep.",
                ),
                Flag(
                    "--activation",
                    float,
                    key="activation",
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


def _own_first(cls: type, base: Mapping[str, Option]) -> dict[str, Option]:
    """The options of ``cls``, its own before those of its base."""
    found = declared(cls)
    return {**{k: o for k, o in found.items() if k not in base}, **base}


REPLAY = declared(ReplayOptions)
STEP = _own_first(StepOptions, REPLAY)
OPTIONS = _own_first(PruneOptions, STEP)
_SETTLED = tuple({**REPLAY, **OPTIONS})  # the order in which defaults are found


class Options:
    """The options of one prune: checked, and each with its value.

    ``values`` holds them by name; each is an attribute as well.

    Args:
        **options: Those of ``prune``.

    Raises:
        IrpruneError: For a name or a value that there is not.
    """

    values: PruneOptions

    def __init__(self, **options: Unpack[PruneOptions]) -> None:
        given = cast("dict[str, Any]", options)
        for name in given:
            if name not in OPTIONS:
                raise IrpruneError(f"no option {name!r}", "", _one_of(OPTIONS))
        values = {name: given.get(name, option.default) for name, option in OPTIONS.items()}
        for name, option in OPTIONS.items():
            option.check(values[name])
        for name in _SETTLED:
            values[name] = OPTIONS[name].settle(values[name], values)
        self.values = cast("PruneOptions", values)
        self.choose()  # its own checks
        self.score()

    @classmethod
    def of(cls, **settings: Any) -> Options:
        """``Options(**settings)``, as it was called up to 0.1."""
        warnings.warn("Options.of is Options", DeprecationWarning, stacklevel=2)
        return cls(**settings)

    def __getattr__(self, name: str) -> Any:
        if name not in OPTIONS:
            raise AttributeError(f"'Options' has no option {name!r}")
        return self.values[name]  # type: ignore[literal-required]

    def __repr__(self) -> str:
        told = ", ".join(
            f"{name}={value!r}"
            for name, value in self.values.items()
            if value is not OPTIONS[name].default
        )
        return f"Options({told})"

    def score(self) -> Score:
        """The pass that scores."""
        return Score(**self._of("score"))

    def choose(self) -> Choose:
        """The pass that chooses; of a latency in seconds the share comes later, when the original
        was measured."""
        budget: Any = self.values["budget"]
        times = None
        if budget is not None and "latency" in budget:
            share, seconds = wanted(budget["latency"])
            budget = {**budget, "latency": 1.0 if seconds else share}
        if self.values["round_to"] == "auto" or "latency" in (budget or {}):
            times = Table.here(self.values["device"].split(":")[0], self.values["threads"])
        return Choose(**{**self._of("choose"), "budget": budget, "times": times})

    def _of(self, to: str) -> dict[str, Any]:
        """The values of the options that the pass ``to`` takes."""
        return {
            name: self.values[name]  # type: ignore[literal-required]
            for name, option in OPTIONS.items()
            if option.to == to
        }


def device_of(name: str) -> torch.device:
    """The torch device that a name (``auto``, ``cpu``, ``cuda:1``) means here. Raises IrpruneError
    where there is no such device."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise IrpruneError("there is no CUDA device here", "", "say device='cpu' or 'auto'")
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())  # as tensors name theirs
    return torch.device(name)
