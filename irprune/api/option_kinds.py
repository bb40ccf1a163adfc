"""What the declarations of options are made of: the kinds of values that they take, the defaults
that depend on other options, and how the texts of a command line are read.

Whether a value of the right kind is in range, the passes and criteria say that it goes to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from irprune.api.user_code import callable_at
from irprune.base.extension import users_code
from irprune.choice.budget import flat_budget
from irprune.criteria import Importance
from irprune.errors import IrpruneError, gist, option
from irprune.passes.repairs import repair_of, repairs
from irprune.run.images import Folder, Preprocess, combined, read_preprocess

__all__ = [
    "DEAD",
    "FP16",
    "INT8",
    "MASKS",
    "SYNTHETIC",
    "is_bool",
    "is_budget",
    "is_bytes",
    "is_number",
    "is_numbers",
    "is_ranks",
    "is_shares",
    "is_text",
    "is_texts",
    "is_whole",
    "one_of",
    "or_none",
    "read_amount",
    "read_indices",
    "read_multiples",
    "read_numbers",
    "read_pixels",
    "read_ranks",
    "read_ratios",
    "read_repair",
    "read_resize",
    "read_round_to",
    "read_share",
    "settle_budget",
    "settle_calibration",
    "settle_importance",
    "settle_keep",
    "settle_memory",
    "settle_normalise",
    "settle_repair",
    "settle_round_to",
    "settle_scope",
]


SYNTHETIC = "synthetic"  # calibration data made from what the model has stored
INT8, FP16 = "int8", "fp16"  # the numbers of an ONNX file that is written
DEAD, MASKS = "dead", "masks"  # what is cut exactly: what nothing needs, what torch has masked

# -- kinds of values -------------------------------------------------------------------------------


def is_number(x: Any) -> bool:
    """A number, and no truth value."""
    return isinstance(x, Real) and not isinstance(x, bool)


def is_whole(x: Any) -> bool:
    """A whole number, and no truth value."""
    return isinstance(x, int) and not isinstance(x, bool)


def is_bool(x: Any) -> bool:
    """True or False."""
    return isinstance(x, bool)


def is_text(x: Any) -> bool:
    """A text."""
    return isinstance(x, str)


def is_texts(x: Any) -> bool:
    """A text or several."""
    return isinstance(x, str) or (
        isinstance(x, Collection)  # no iterator: it would be read once, here
        and not isinstance(x, Mapping)
        and all(isinstance(p, str) for p in x)
    )


def is_shares(x: Any) -> bool:
    """Numbers by text."""
    return isinstance(x, Mapping) and all(isinstance(k, str) and is_number(v) for k, v in x.items())


def is_ranks(x: Any) -> bool:
    """Whole numbers from 1 on by text."""
    return isinstance(x, Mapping) and all(
        isinstance(k, str) and is_whole(v) and v >= 1 for k, v in x.items()
    )


def is_numbers(x: Any) -> bool:
    """One number or several."""
    several = isinstance(x, Sequence) and not isinstance(x, str)
    return is_number(x) or (several and len(x) > 0 and all(map(is_number, x)))


def is_budget(x: Any) -> bool:
    """Numbers or texts by measure, or by measure and pattern."""
    return isinstance(x, Mapping) and is_shares(
        {k: v for k, v in flat_budget(x).items() if not isinstance(v, str)}
    )


_BYTES = re.compile(r"([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?", re.I)


def is_bytes(x: Any) -> bool:
    """A number of bytes of 1 or more, or a text that says one."""
    if isinstance(x, str):
        found = _BYTES.fullmatch(x.strip())
        return found is not None and float(found[1]) > 0
    return is_whole(x) and x > 0


def or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """None, or what ``fits``."""
    return lambda x: x is None or fits(x)


def one_of(names: Iterable[str]) -> str:
    """A choice in words."""
    return "one of " + ", ".join(names)


# -- numbers as people write them ------------------------------------------------------------------

_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmgt]?)(?:b|macs)?", re.I)


def read_share(text: Any) -> float:
    """A share as a number, or as a text in percent. Raises IrpruneError for what is neither."""
    if is_number(text):
        return float(text)
    shown = str(text).strip()
    try:
        return float(shown[:-1]) / 100 if shown.endswith("%") else float(shown)
    except ValueError:
        raise IrpruneError(f"{shown!r} is no share", "", "write 0.01 or 1%") from None


def read_amount(measure: str, text: Any) -> Any:
    """What a budget says: a share (0.5, 50%) or an amount (28M, 1.5 G, 2e6); of latency a text with
    a unit stays as it is. Of the weights that a pattern matches it is 'layers*=0.8', several with
    commas. Raises IrpruneError for what is neither."""
    if isinstance(text, Mapping):
        return {pattern: read_amount(measure, amount) for pattern, amount in text.items()}
    if not isinstance(text, str):
        return text
    if "=" in text and measure != "latency":
        pairs = [part.rpartition("=") for part in text.split(",")]
        return {pattern.strip(): read_amount(measure, amount) for pattern, _, amount in pairs}
    shown = text.strip()
    if shown.endswith("%"):
        return read_share(shown)
    if measure == "latency":
        return shown
    found = _AMOUNT.fullmatch(shown)
    if found is None:
        raise IrpruneError(
            f"the budget on {measure} is {text!r}",
            "",
            "a share (0.5 or 50%), or an amount (28M, 1.5G, 2e6)",
        )
    return float(found[1]) * _SCALES[found[2].lower()]


# -- defaults that depend on other options ---------------------------------------------------------


def settle_budget(budget: Any, settled: Mapping[str, Any]) -> Any:
    """Amounts that are given as texts, read; bounds on parts as measures of their own."""
    if budget is None:
        return None
    return flat_budget(
        {measure: read_amount(measure, amount) for measure, amount in budget.items()}
    )


def settle_memory(said: Any, settled: Mapping[str, Any]) -> int | None:
    """A number of bytes: GB are powers of 1000, GiB of 1024."""
    if not isinstance(said, str):
        return said  # type: ignore[no-any-return]
    found = _BYTES.fullmatch(said.strip())
    assert found is not None
    power = " kmgt".index(found[2].lower() or " ")
    return max(1, int(float(found[1]) * (1024 if found[3] else 1000) ** power))


def _preprocess(said: Any) -> Preprocess | None:
    """``preprocess``: a name that libraries know, or a function of the user's own."""
    if said is None or isinstance(said, Preprocess):
        return said
    if isinstance(said, str):
        own = said.partition(":")[0].endswith(".py")
        if not own:
            return read_preprocess(said)
        said = callable_at(said)
    return Preprocess(function=said)


def settle_calibration(data: Any, settled: Mapping[str, Any]) -> Any:
    """Data that can be read once alone are held: the criterion reads them, and the repair again;
    False is none. A folder goes with what is said of its pictures."""
    if data is False:
        return None
    prepared = combined(
        _preprocess(settled["preprocess"]),
        mean=settled["mean"],
        std=settled["std"],
        resize=settled["resize"],
        crop=settled["crop"],
        pixels=settled["pixels"],
    )
    if isinstance(data, (str, Path)) and data != SYNTHETIC:
        return Folder(data, prepared)
    if prepared is not None:
        raise IrpruneError(
            "a preprocessing of images without a folder of them", "", "give calibration=FOLDER"
        )
    return list(data) if isinstance(data, Iterator) else data


def settle_repair(chosen: Any, settled: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the repairs to run, in order."""
    if chosen is None:
        chosen = settled["calibration"] is not None
    if isinstance(chosen, bool):
        return ("least_squares",) * chosen
    names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    for name in names:
        repair_of(name)  # raises for a name that there is not
    return names


def settle_importance(chosen: Any, settled: Mapping[str, Any]) -> Any:
    """The criterion: one that reads the data where there are any; the user's own where its place is
    named, as in "file.py:Class"."""
    if chosen is None:
        return "magnitude" if settled["calibration"] is None else "osscar"
    if not isinstance(chosen, str) or ":" not in chosen:
        return chosen
    made = callable_at(chosen)
    with users_code(chosen, f"{made.__name__}()"):
        criterion = made()
    if not isinstance(criterion, Importance):
        raise IrpruneError(
            f"{made.__name__} is no criterion", chosen, "it has scores(graph, groups, blocks)"
        )
    return criterion


def settle_scope(chosen: Any, settled: Mapping[str, Any]) -> Any:
    """A knapsack where there are a budget, and data to tell losses by."""
    if chosen is None:
        bounded = any(settled.get(k) is not None for k in ("budget", "max_drop", "target_metric"))
        adds = settled["calibration"] is not None or settled.get("low_rank") is True
        return "knapsack" if bounded and adds else "local"
    return chosen


def settle_round_to(chosen: Any, settled: Mapping[str, Any]) -> Any:
    """Widths that convolutions like where a budget counts operations and not time."""
    budget = settled["budget"]
    if chosen is None and budget is not None and "latency" not in budget:
        return "aligned"
    return chosen


def settle_normalise(chosen: Any, settled: Mapping[str, Any]) -> Any:
    """Measured losses where a knapsack adds them up."""
    if chosen is None:
        data, scope = settled["calibration"], settled["scope"]
        return "measured" if data is not None and scope == "knapsack" else "mean"
    return chosen


def settle_keep(chosen: Any, settled: Mapping[str, Any]) -> tuple[str, ...]:
    """The patterns, of which one may be given as it is."""
    return (chosen,) if isinstance(chosen, str) else tuple(chosen)


# -- what the command line gives -------------------------------------------------------------------


def read_round_to(text: str) -> int | str:
    """``--round-to``: a whole number, auto or aligned."""
    if text in ("auto", "aligned"):
        return text
    try:
        return int(text)
    except ValueError:
        raise IrpruneError(
            f"{option('round_to')} is {text!r}, no number",
            "",
            "a whole number from 1 on, auto or aligned",
        ) from None


def read_ratios(pairs: Sequence[str]) -> dict[str, float]:
    """``--ratio-of``: pairs of a pattern and a ratio."""
    out = {}
    for pair in pairs:
        pattern, _, ratio = pair.rpartition("=")
        try:
            out[pattern] = float(ratio)
        except ValueError:
            raise IrpruneError(
                f"{option('ratios')} {pair!r} has no number behind the =",
                "",
                "write 'layer1*=0.25'",
            ) from None
    return out


def read_ranks(pairs: Sequence[str]) -> dict[str, int]:
    """``--low-rank-of``: pairs of a pattern and a rank."""
    out = {}
    for pair in pairs:
        pattern, _, rank = pair.rpartition("=")
        if not rank.strip().isdecimal() or not int(rank) or not pattern:
            raise IrpruneError(
                f"{option('low_rank')} {pair!r} is no pattern with a rank", "", "write 'fc*=16'"
            )
        out[pattern] = int(rank)
    return out


def read_multiples(pairs: Sequence[str]) -> dict[str, int]:
    """``--divisible-by``: pairs of a kind of width and a whole number."""
    out = {}
    for pair in pairs:
        kind, _, number = pair.rpartition("=")
        if not number.strip().isdecimal() or not kind:
            raise IrpruneError(
                f"{option('divisible_by')} {pair!r} is no kind with a number",
                "",
                "write heads=4",
            )
        out[kind.strip()] = int(number)
    return out


def read_repair(names: Sequence[str]) -> Sequence[str] | bool:
    """``--repair``: names, ``file.py:Class`` or ``package.module:Class``, or none."""
    return False if tuple(names) == ("none",) else tuple(map(_repair_named, names))


def _repair_named(text: str) -> str:
    """The name of a repair; of a class in the user's own code the name that it joined by."""
    if ":" not in text:
        return text
    made = callable_at(text)
    name = next((n for n, cls in repairs().items() if cls is made), "")
    if not name:
        raise IrpruneError("no repair", text, "decorate the class with @repair(NAME)")
    return name


def read_indices(file: str) -> dict[str, Any]:
    """``--keep-indices``: a JSON object in a file."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as broken:
        raise IrpruneError(
            f"cannot be read: {gist(broken)}", file, "give a file with a JSON object"
        ) from broken
    if not isinstance(found, dict):
        raise IrpruneError("not a JSON object", file, 'as in {"conv1.weight:0": [0, 2, 5]}')
    return found


def read_numbers(text: str) -> tuple[float, ...]:
    """``--mean`` and ``--std``: numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise IrpruneError(f"{text!r} are no numbers", "", "as in 0.485,0.456,0.406") from None


def read_pixels(text: str) -> tuple[float, float]:
    """``--pixels``: what black and white become."""
    low, dots, high = text.partition("..")
    try:
        if dots:
            return float(low), float(high)
    except ValueError:
        pass
    raise IrpruneError(f"--pixels {text!r} is no range", "", "as in 0..1, 0..255 or -1..1")


def read_resize(text: str) -> int | tuple[int, int]:
    """``--resize``: the shorter side, or height x width."""
    parts = text.split("x")
    if len(parts) in (1, 2) and all(part.isdecimal() and int(part) for part in parts):
        return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
    raise IrpruneError(f"--resize {text!r} is no size", "", "as in 256, or 256x320")
