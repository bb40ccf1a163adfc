"""``irprune validate``: the same inputs through two models, every output compared."""

from __future__ import annotations

import click

from irprune.api.runner import runner
from irprune.base.tolerance import PARITY
from irprune.cli.options import as_json, device, inputs, load, model, show_json, shown
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
@device
@as_json
def validate(
    a: str,
    b: str,
    inputs: tuple[str, ...],
    pretrained: bool,
    trust: bool,
    samples: int,
    tolerance: float | None,
    device: str,
    json_: bool,
) -> None:
    """Run the same inputs through A and B and compare every output; exit code 1 where one differs.

    Each of A and B is a MODEL: two ONNX files, a PyTorch model and its export, a folder that
    irprune wrote and its ONNX file."""
    bound = PARITY if tolerance is None else tolerance
    first, second = (
        runner(load(spec, inputs, pretrained, trust), device, exact=True) for spec in (a, b)
    )
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
