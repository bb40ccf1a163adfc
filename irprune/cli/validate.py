"""``irprune validate``: the same inputs through two models, every output compared."""

from __future__ import annotations

from typing import Any

import click

from irprune.api.compare import Compared, compare_by_metric, compare_by_score
from irprune.api.option_kinds import read_share
from irprune.api.runner import runner
from irprune.api.user_code import callable_at
from irprune.base.tolerance import PARITY
from irprune.cli.options import (
    common,
    device,
    images,
    inputs,
    load,
    model,
    show_json,
    shown,
    with_images,
)
from irprune.errors import CheckFailed, IrpruneError
from irprune.validate.parity import compare_arrays
from irprune.validate.proof_result import is_nan

__all__ = ["validate"]


@click.command()
@model("a")
@model("b")
@inputs
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many random calls are compared.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=None,
    help="Largest error, relative to an output's largest magnitude.  [default: 1e-4]",
)
@click.option(
    "--metric",
    metavar="NAME",
    default=None,
    help="Measure how well B agrees with A by this metric, in place of comparing every number; "
    "auto takes what fits the outputs.",
)
@click.option(
    "--calibration",
    metavar="FOLDER",
    help="Folder of .npy, .npz or image files to measure --metric on; without it, --samples random "
    "calls.",
)
@images
@click.option(
    "--eval",
    "function",
    metavar="FILE.py:NAME",
    help="A function of a model that gives its metric, called for A and for B.",
)
@click.option("--lower-is-better", is_flag=True, help="What --eval returns is an error.")
@click.option(
    "--max-drop",
    metavar="SHARE",
    help="Exit with 1 where the metric of B is worse by more than this share of A's, as 1%.",
)
@click.option(
    "--target-metric",
    type=float,
    help="Exit with 1 where the metric of B is worse than this.",
)
@device
@common
def validate(
    a: str,
    b: str,
    inputs: tuple[str, ...],
    pretrained: bool,
    trust: bool,
    samples: int,
    tolerance: float | None,
    metric: str | None,
    calibration: str | None,
    function: str | None,
    lower_is_better: bool,
    max_drop: str | None,
    target_metric: float | None,
    device: str,
    json_: bool,
    **said: Any,
) -> None:
    """Run the same inputs through A and B and compare every output; exit code 1 where one differs.

    Each of A and B is a MODEL: two ONNX files, a PyTorch model and its export, a folder that
    irprune wrote and its ONNX file."""
    bound = PARITY if tolerance is None else tolerance
    data = with_images(calibration, said)
    told = (metric, function, calibration, max_drop, target_metric)
    judged = next((x for x in told if x is not None), None)
    allowed = None if max_drop is None else read_share(max_drop)
    score = None if function is None else callable_at(function)
    loaded = [load(spec, inputs, pretrained, trust) for spec in (a, b)]
    first, second = (runner(one, device, exact=judged is None) for one in loaded)
    if judged is not None:
        if score is not None:
            pairs = ((loaded[0], first), (loaded[1], second))
            found = compare_by_score(score, pairs, device, lower_is_better)
        else:
            name = None if metric == "auto" else metric
            found = compare_by_metric(loaded[0], first, second, name, data, samples)
        _tell(found, a, b, allowed, target_metric, json_)
        return
    worst: dict[str, float] = {}
    for seed in range(samples):
        arrays = first.draw(seed)
        second.check(arrays)
        ours, theirs = first.run(arrays), second.run(arrays)
        if len(ours) != len(theirs):
            raise IrpruneError(
                f"{len(ours)} outputs against {len(theirs)}",
                f"{a} and {b}",
                "compare models with the same outputs",
            )
        if is_nan(theirs.values()):
            raise CheckFailed(
                "the outputs hold nothing but NaN, which says nothing of either",
                f"{a} against {b}",
                "give --input with numbers that the models take",
            )
        for name, error in compare_arrays(
            list(ours.values()), dict(zip(ours, theirs.values(), strict=True))
        ).items():
            worst[name] = max(worst.get(name, 0.0), error)
    largest = max(worst.values(), default=0.0)
    if json_:
        show_json(
            {
                "a": a,
                "b": b,
                "samples": samples,
                "outputs": worst,
                "max_error": largest,
                "tolerance": bound,
                "passed": largest <= bound,
            }
        )
    else:
        wide = max(map(len, worst), default=0)
        shown("\n".join(f"{name:{wide}}  {error:.3e}" for name, error in worst.items()))
    if not largest <= bound:
        name = max(worst, key=lambda n: worst[n])
        raise CheckFailed(
            f"output {name!r} differs by {worst[name]:.1e}, tolerance {bound:.0e}",
            f"{a} against {b}",
            "both were given the same inputs; a looser --tolerance accepts it",
        )


def _tell(
    found: Compared, a: str, b: str, allowed: float | None, target: float | None, json_: bool
) -> None:
    """Show the metric. Raises CheckFailed where it is worse than ``allowed``, a share of A's, or
    than ``target``."""
    if allowed is not None and found.drop is None:
        raise IrpruneError(
            f"{found.metric} of A is {found.a}", "", "give --target-metric in place of --max-drop"
        )
    failed = ""
    if allowed is not None and found.drop is not None and not found.drop <= allowed:
        failed = f"{found.metric} is worse by {found.drop:.2%}, {allowed:.2%} is allowed"
    elif target is not None and not (found.b >= target if found.higher else found.b <= target):
        failed = f"{found.metric} is {found.b:.5g}, the target is {target:.5g}"
    if json_:
        show_json({"models": [a, b], **found.as_dict(), "passed": not failed})
    else:
        shown(str(found))
    if failed:
        raise CheckFailed(failed, f"{a} against {b}")
