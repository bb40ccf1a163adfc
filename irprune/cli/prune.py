"""``irprune prune``. The flags that say options of ``irprune.prune`` follow from their declarations
(``irprune.api.declarations``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from irprune import api
from irprune.api.declarations import OPTIONS, REPLAY
from irprune.api.option import Flag, Option
from irprune.base.atomic_write import atomic_write, check_folder, check_place
from irprune.cli.options import F, as_json, inputs, load, model, say, show_json, shown
from irprune.errors import CheckFailed, IrpruneError
from irprune.run.ranks import Ranks, together

__all__ = ["prune"]

_OUT = """Where to write: a path that ends in .onnx gives the ONNX file, in .pt2 the exported program, in .json the plan, anything else a
folder with all of them and readable source."""


def _flags(command: F) -> F:
    """Every flag that an option of ``irprune.prune`` declares."""
    every = [(option, flag) for option in OPTIONS.values() for flag in option.flags]
    for option, flag in reversed(every):
        switch = flag.constant is not None
        kind = click.Choice(flag.type) if isinstance(flag.type, tuple) else flag.type
        command = click.option(
            flag.name,
            _place(flag),
            help=_help(option, flag),
            default=None if not switch else False,
            **({"is_flag": True} if switch else {"type": kind, "metavar": flag.metavar}),
            multiple=flag.multiple,
        )(command)
    return command


def _place(flag: Flag) -> str:
    """The name under which click hands a flag's value over."""
    return f"flag_{flag.name.strip('-').replace('-', '_')}"


def _help(option: Option, flag: Flag) -> str:
    text = (flag.help or option.help).replace("``", "")
    default = option.default_text.strip('"')
    whole = not flag.key and flag.constant is None
    return f"{text}  [default: {default}]" if whole and default else text


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``irprune.prune`` that the command line gives, read as they declare. Raises
    IrpruneError for what cannot be read."""
    out: dict[str, Any] = {}
    for option in OPTIONS.values():
        for flag in option.flags:
            value = given[_place(flag)]
            if value is None or value is False or value == ():
                continue
            value = flag.read(value) if flag.constant is None else flag.constant
            if not flag.key:
                out[option.name] = value
                continue
            out.setdefault(option.name, {})[flag.key] = value
    return out


@click.command()
@model()
@click.option("-o", "--output", "output", type=click.Path(path_type=Path), help=_OUT)
@click.option(
    "--format",
    "format_",
    type=click.Choice(api.FORMATS),
    default="irprune",
    help="Of a folder: irprune, or hf: what from_pretrained of transformers loads.",
)
@inputs
@_flags
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    help="Replay the choice in this plan instead of making one.",
)
@as_json
def prune(**given: Any) -> int:
    """Prune MODEL, prove the result and write it. Exit code 1 where nothing was cut that should
    be."""
    settings = {**_settings(given), "progress": say}
    asked = settings.get("ranks")
    with together(asked if isinstance(asked, int) and asked > 0 else None) as ranks:
        return _prune(given, settings, ranks)


def _prune(given: dict[str, Any], settings: dict[str, Any], ranks: Ranks) -> int:
    """On every rank; the first writes and prints."""
    output: Path | None = given["output"]
    if ranks.leads:
        _check_output(output)
    pretrained = given["format_"] == "hf"
    _check_format(output, pretrained)
    if pretrained:
        settings.setdefault("uniform", True)
    api.Options(**settings)  # refused before a model is loaded
    loaded = load(given["model"], given["inputs"], given["pretrained"], given["trust"])
    say(f"pruning {loaded.name or given['model']} ...")
    settings["dynamic_shapes"] = loaded.dynamic_shapes
    if loaded.trust:
        settings["trust"] = True
    if given["plan"] is not None:
        replayed = {name: value for name, value in settings.items() if name in REPLAY}
        pruned = api.apply_plan(loaded.model, given["plan"], loaded.args, loaded.kwargs, **replayed)
    else:
        pruned = api.prune(loaded.model, loaded.args, loaded.kwargs, **settings)
    if loaded.name:
        pruned.report.name = loaded.name
    if ranks.leads:
        _write(pruned, output, given["format_"], settings.get("uniform") is False)
    ranks.end()  # an error of the writer is one of all
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
    asked = given["plan"] is None and "budget" not in settings and settings.get("ratio", 0.5) != 0
    if pruned.trials is not None and pruned.report.cuts_nothing:
        say("irprune: warning: nothing was cut: no smaller model keeps the metric")
        return 1
    if pruned.report.cuts_nothing and asked and pruned.trials is None:
        say(f"irprune: warning: {pruned.report.notes[0]}")
        return 1
    return 0


def _check_output(output: Path | None) -> None:
    """Refuse a place that cannot be written before anything is computed."""
    if output is None:
        return
    if output.suffix in (".onnx", ".pt2", ".json") and output.is_dir():
        raise IrpruneError("the output is a folder", str(output), "name a file in it")
    if output.suffix not in (".onnx", ".pt2", ".json"):
        check_folder(output)
    check_place(output)


def _check_format(output: Path | None, pretrained: bool) -> None:
    """Refuse a file where a folder for transformers is asked for."""
    if pretrained and (output is None or output.suffix in (".onnx", ".pt2", ".json")):
        raise IrpruneError(
            "--format hf writes a folder", str(output or ""), "name a folder: -o small/ --format hf"
        )


def _write(pruned: Any, output: Path | None, format: str, per_layer: bool) -> None:
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
        from irprune.frontend.torch.source import torch_source

        with atomic_write(output) as draft:
            save_program(
                pruned.module, torch_source(pruned.graph), draft / output.name, pruned.graph
            )
    elif output.suffix == ".json":
        pruned.plan.save(output)
    else:
        pruned.save(output, format, per_layer=per_layer)
