"""The options that prune to a metric, each declared once; see ``irprune.api.declarations``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from irprune.analysis.cost import MEASURES
from irprune.api.model_form import form_of
from irprune.api.option import Flag, Option, declared
from irprune.api.option_kinds import (
    is_bool,
    is_number,
    is_text,
    is_whole,
    one_of,
    or_none,
    read_share,
)
from irprune.api.user_code import callable_at
from irprune.errors import IrpruneError, option
from irprune.validate.metrics import METRICS, metric_of

__all__ = ["MEASURED", "MetricOptions", "check_metric", "searched"]

MEASURED = (*MEASURES, "latency")


def _settle_drop(drop: Any, settled: Any) -> float | None:
    if drop is None:
        return None
    share = read_share(drop)
    if not 0 <= share < 1:
        raise IrpruneError(
            f"{option('max_drop')} is {drop!r}",
            "",
            "a share of the original's metric, 0 to below 1",
        )
    return share


class MetricOptions(TypedDict, total=False):
    """The options that have ``prune`` find the smallest model that keeps a metric."""

    max_drop: Annotated[
        float | str | None,
        Option(
            None,
            "Find the smallest model whose metric is worse than the original's by at most this "
            "share of it.",
            '0.01 or "1%", in place of ``ratio`` and ``budget``. The metric is what ``evaluate`` '
            "returns, or else ``metric``.",
            fits=or_none(lambda x: is_number(x) or is_text(x)),
            takes="a share, as 0.01 or 1%",
            settle=_settle_drop,
            against=("ratio", "budget", "target_metric"),
            flags=(Flag("--max-drop", metavar="SHARE"),),
        ),
    ]
    target_metric: Annotated[
        float | None,
        Option(
            None,
            "Find the smallest model whose metric is at least this good.",
            fits=or_none(is_number),
            takes="a number in the unit of the metric",
            against=("ratio", "budget"),
            flags=(Flag("--target-metric", float),),
        ),
    ]
    evaluate: Annotated[
        Callable[[Any], float] | None,
        Option(
            None,
            "``evaluate(model)`` gives the metric of a model, for ``max_drop``.",
            "It gets an onnxruntime session for an ONNX file and else a module in eval mode, or "
            "what the annotation of its parameter says: onnxruntime.InferenceSession, "
            "torch.nn.Module, onnx.ModelProto, or Path for an ONNX file.",
            fits=or_none(callable),
            takes="a function of a model that gives a number",
            flags=(
                Flag(
                    "--eval",
                    metavar="FILE.py:NAME",
                    read=callable_at,
                    help="A function of the model that gives the metric, for --max-drop.",
                ),
            ),
        ),
    ]
    metric: Annotated[
        str | None,
        Option(
            None,
            "Without ``evaluate``: how agreement with the original on the calibration data is "
            f"measured: {', '.join(METRICS)}.",
            otherwise="what fits the outputs",
            fits=or_none(is_text),
            takes=one_of(METRICS),
            flags=(
                Flag(
                    "--metric",
                    metavar="NAME",
                    help="Without --eval: how agreement with the original on the calibration data "
                    f"is measured: {', '.join(METRICS)}.",
                ),
            ),
        ),
    ]
    lower_is_better: Annotated[
        bool,
        Option(
            False,
            "What ``evaluate`` returns is an error: less is better.",
            fits=is_bool,
            takes="True or False",
            flags=(
                Flag(
                    "--lower-is-better",
                    constant=True,
                    help="What --eval returns is an error: less is better.",
                ),
            ),
        ),
    ]
    minimise: Annotated[
        str,
        Option(
            "macs",
            "What is made as small as the metric allows.",
            f"One of {', '.join(MEASURED)}.",
            fits=lambda x: x in MEASURED,
            takes=one_of(MEASURED),
            flags=(Flag("--minimise", MEASURED),),
        ),
    ]
    points: Annotated[
        int,
        Option(
            8,
            "How many cut models are judged at most to find it.",
            fits=lambda x: is_whole(x) and x >= 1,
            takes="a whole number from 1 on",
            flags=(Flag("--points", int, metavar="N"),),
        ),
    ]
    trials: Annotated[
        str | Path | None,
        Option(
            None,
            "A JSON file that keeps the trials, so that the same search goes on from there.",
            fits=or_none(lambda x: isinstance(x, (str, Path))),
            takes="the path of a file",
            flags=(Flag("--trials", metavar="FILE.json"),),
        ),
    ]


def searched(values: Mapping[str, Any]) -> bool:
    """Whether the smallest model that keeps a metric is looked for."""
    return values["max_drop"] is not None or values["target_metric"] is not None


def check_metric(values: Mapping[str, Any], given: set[str]) -> None:
    """Raises IrpruneError where the options of ``MetricOptions`` do not go together; ``given`` are
    those that the call names."""
    if not searched(values):
        for name, own in declared(MetricOptions).items():
            if name in given and values[name] != own.default:
                raise IrpruneError(
                    f"{option(name)} is given without {option('max_drop')}",
                    "",
                    f"say how much worse the metric may become: {option('max_drop', '0.01')}",
                )
        return
    function, metric = values["evaluate"], values["metric"]
    if metric is not None:
        metric_of(metric)  # its own check
    if function is None and values["calibration"] is None:
        raise IrpruneError(
            f"{option('max_drop')} needs a metric",
            "",
            f"give {option('evaluate')}, or {option('calibration')} to measure agreement on",
        )
    if function is not None and metric is not None:
        raise IrpruneError(
            f"{option('evaluate')} and {option('metric')} are both given",
            "",
            "each of them says what is measured: give one",
        )
    if function is not None:
        form_of(function, getattr(function, "__name__", "evaluate"))
