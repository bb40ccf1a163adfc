"""``irprune prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from irprune import api
from irprune.base.atomic_write import aside, check_folder, check_place
from irprune.choice.scopes import SCOPES
from irprune.cli.options import as_json, device, inputs, load, model, say, show_json, shown
from irprune.errors import CheckFailed, IrpruneError

__all__ = ["prune"]

_OUT = """Where to write: a path that ends in .onnx gives the ONNX file, in .pt2 the exported program, in .json the plan, anything else a
folder with all of them and readable source."""


@click.command()
@model()
@click.option("-o", "--output", "output", type=click.Path(path_type=Path), help=_OUT)
@inputs
@click.option(
    "--ratio",
    type=float,
    default=None,
    help="Share of every width to drop, 0 to 1.  [default: 0.5]",
)
@click.option(
    "--macs",
    type=float,
    help="Budget instead of a ratio: share (up to 1) or number of multiply-accumulates to keep.",
)
@click.option("--params", type=float, help="Budget: share or number of parameters to keep.")
@click.option(
    "--bytes", "bytes_", type=float, help="Budget: share or number of stored bytes to keep."
)
@click.option(
    "--activation", type=float, help="Budget: share or number of peak activation bytes to keep."
)
@click.option(
    "--latency",
    metavar="SHARE|TIME",
    help="Budget on onnxruntime: share of the original's time, or a time such as 3ms.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Threads of onnxruntime for --latency; 0 leaves its default.",
)
@click.option(
    "--importance",
    default=None,
    help="The criterion that ranks channels.  [default: magnitude; osscar with --calibration]",
)
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default=None,
    help="Rank within each width, over all, over groups of the same structure, or meet a budget at the least loss.  "
    "[default: local; knapsack for a budget with --calibration]",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Weights, groups (weight:dim) or modules that stay whole.",
)
@click.option(
    "--ratio-of",
    "ratios",
    multiple=True,
    metavar="PATTERN=RATIO",
    help="A ratio of their own for what PATTERN matches.",
)
@click.option(
    "--round-to",
    metavar="N|auto",
    default=None,
    help="Widths become multiples of this; auto: of what onnxruntime likes here, as measured.  [default: 1; auto with --latency]",
)
@click.option(
    "--min-channels",
    type=int,
    default=1,
    show_default=True,
    help="No group gets narrower than this.",
)
@click.option(
    "--max-ratio",
    type=float,
    default=1.0,
    show_default=True,
    help="No group loses a larger share than this.",
)
@click.option(
    "--prefer",
    type=click.Choice(["heads", "head_dim", "both", "groups"]),
    default="heads",
    show_default=True,
    help="Which factor of a product of widths carries its ratio.",
)
@click.option(
    "--calibration",
    type=click.Path(),
    help="Folder of .npy, .npz or image files: data for criteria and repairs that read it.",
)
@click.option(
    "--repair",
    multiple=True,
    metavar="METHOD",
    help="Refit what is left to the original, after the proof: least_squares (default with --calibration), batch_norm, bias, "
    "affine, fold or none.",
)
@click.option(
    "--reduce",
    type=click.Choice(["sum", "mean", "max", "prod"]),
    help="How importance is joined over a group.  [default: the criterion's]",
)
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    help="Replay the choice in this plan instead of making one.",
)
@click.option("--seed", type=int, default=None, help="Seed of a criterion that draws.")
@click.option("--no-proof", is_flag=True, help="Leave the proof out.")
@click.option("--strict", is_flag=True, help="Refuse a model with an operator that no rule covers.")
@device
@as_json
def prune(**given: Any) -> None:
    """Prune MODEL, prove the result and write it."""
    output: Path | None = given["output"]
    _check_output(output)
    settings = _settings(given)
    options = api.Options.of(**settings)  # refused before a model is loaded
    loaded = load(given["model"], given["inputs"], given["pretrained"])
    say(f"pruning {loaded.name or given['model']} ...")
    more = {**settings, "dynamic_shapes": loaded.dynamic_shapes}
    if given["plan"] is not None:
        replayed = {
            k: more[k] for k in ("proof", "device", "dynamic_shapes", "calibration", "repair")
        }
        pruned = api.apply_plan(loaded.model, given["plan"], loaded.args, loaded.kwargs, **replayed)
    else:
        pruned = api.prune(loaded.model, loaded.args, loaded.kwargs, **more)
    if loaded.name:
        pruned.report.name = loaded.name
    _write(pruned, output, options)
    if given["json_"]:
        show_json(
            {
                **pruned.report.as_dict(timings=True),
                "output": str(output) if output is not None else None,
            }
        )
    else:
        shown(str(pruned.report))
    if output is not None:
        say(f"wrote {output}")


_PASSED = (
    "importance",
    "calibration",
    "scope",
    "keep",
    "round_to",
    "min_channels",
    "max_ratio",
    "prefer",
    "reduce",
    "seed",
    "strict",
    "device",
    "threads",
)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The options of ``irprune.prune`` that the command line gives."""
    budget = {
        k: given[k if k != "bytes" else "bytes_"]
        for k in ("macs", "params", "bytes", "activation", "latency")
    }
    budget = {k: v for k, v in budget.items() if v is not None}
    if budget and given["ratio"] is not None:
        raise IrpruneError(
            f"--ratio and --{next(iter(budget))} are both given",
            "",
            "a budget finds the ratio: give one of them",
        )
    settings = {k: given[k] for k in _PASSED}
    if given["ratio"] is not None:
        settings["ratio"] = given["ratio"]
    settings["repair"] = False if given["repair"] == ("none",) else given["repair"] or None
    if given["round_to"] is not None and given["round_to"] != "auto":
        settings["round_to"] = _number(given["round_to"])
    settings["progress"] = say
    return {
        **settings,
        "budget": budget or None,
        "ratios": _ratios(given["ratios"]),
        "proof": not given["no_proof"],
    }


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise IrpruneError(
            f"--round-to {text!r} is no number", "", "a whole number from 1 on, or auto"
        ) from None


def _ratios(pairs: tuple[str, ...]) -> dict[str, float]:
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


def _check_output(output: Path | None) -> None:
    """Refuse a place that cannot be written before anything is computed."""
    if output is None:
        return
    if output.suffix in (".onnx", ".pt2", ".json") and output.is_dir():
        raise IrpruneError("the output is a folder", str(output), "name a file in it")
    if output.suffix not in (".onnx", ".pt2", ".json"):
        check_folder(output)
    check_place(output)


def _write(pruned: Any, output: Path | None, options: Any) -> None:
    if output is None:
        return
    if output.suffix == ".onnx":
        try:
            pruned.onnx(output)
        except CheckFailed:
            output.unlink(missing_ok=True)
            raise
    elif output.suffix == ".pt2":
        from irprune.emit.torch.saved import save_program

        with aside(output) as draft:
            save_program(pruned.module, pruned.graph.structure, draft / output.name)
    elif output.suffix == ".json":
        pruned.plan.save(output)
    else:
        pruned.save(output)
