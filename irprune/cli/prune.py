"""``irprune prune``. The flags that say options of ``irprune.prune`` follow from their declarations
(``irprune.api.declarations``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from irprune import api
from irprune.api.declarations import OPTIONS, REPLAY
from irprune.api.extensions import load_extensions
from irprune.api.option import Flag, Option
from irprune.base.memory import within_memory
from irprune.cli import Call
from irprune.cli.bar import Bar
from irprune.cli.completion import complete_criterion, complete_file
from irprune.cli.one_of import OneOf
from irprune.cli.options import (
    F,
    command_line,
    common,
    extensions,
    inputs,
    is_verbose,
    load,
    model,
    say,
    show_json,
    shown,
)
from irprune.cli.output import HELP, Output
from irprune.errors import IrpruneError, option
from irprune.run.ranks import Ranks, together

__all__ = ["prune"]

_COMPLETED = {
    "--importance": complete_criterion,
    "--calibration": complete_file,
    "--eval": complete_file,
    "--trials": complete_file,
}


def _flags(command: F) -> F:
    """Every flag that an option of ``irprune.prune`` declares."""
    every = [(own, flag) for own in OPTIONS.values() for flag in own.flags]
    for own, flag in reversed(every):
        switch = flag.constant is not None
        kind = OneOf(flag.type) if isinstance(flag.type, tuple) else flag.type
        command = click.option(
            flag.name,
            _place(flag),
            help=_help(own, flag),
            default=None if not switch else False,
            **({"is_flag": True} if switch else {"type": kind, "metavar": flag.metavar}),
            multiple=flag.multiple,
            shell_complete=_COMPLETED.get(flag.name),
        )(command)
    return command


def _place(flag: Flag) -> str:
    """The name under which click hands a flag's value over."""
    return f"flag_{flag.name.strip('-').replace('-', '_')}"


def _help(own: Option, flag: Flag) -> str:
    text = (flag.help or own.help).replace("``", "")
    default = "" if own.default is False else own.default_text.strip('"')
    whole = not flag.key and flag.constant is None
    return f"{text}  [default: {default}]" if whole and default else text


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``irprune.prune`` that the command line gives, read as they declare. Raises
    IrpruneError for what cannot be read."""
    out: dict[str, Any] = {}
    for own in OPTIONS.values():
        for flag in own.flags:
            value = given[_place(flag)]
            if value is None or value is False or value == ():
                continue
            value = flag.read(value) if flag.constant is None else flag.constant
            if not flag.key:
                out[own.name] = value
                continue
            out.setdefault(own.name, {})[flag.key] = value
    return out


def _chosen(ctx: click.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` without what a file of options says against the command line."""
    source = {place: ctx.get_parameter_source(place) for place in given}
    filed = {p for p, s in source.items() if s is ParameterSource.DEFAULT_MAP}
    typed = {p for p, s in source.items() if s is ParameterSource.COMMANDLINE}
    places = {name: {_place(f) for f in own.flags} for name, own in OPTIONS.items()}
    out = dict(given)
    for name, own in OPTIONS.items():
        for other in own.against:
            for mine, theirs in ((name, other), (other, name)):
                if places[theirs] & typed:
                    out |= dict.fromkeys(places[mine] & filed)
    return out


@click.command()
@model()
@click.option("-o", "--output", "output", metavar="PATH", shell_complete=complete_file, help=HELP)
@click.option(
    "--format",
    "format_",
    type=OneOf(api.FORMATS),
    default="irprune",
    help="Of a folder: irprune, hf: what from_pretrained of transformers loads, genai: what "
    "onnxruntime-genai loads, openvino: the files of OpenVINO, or tensorrt: the ONNX file and a "
    "script that builds an engine.",
)
@click.option(
    "--profile",
    multiple=True,
    metavar="NAME=MIN:OPT:MAX",
    help="With --format tensorrt: the shapes of an input that the engine is built for, as in "
    "x=1x3x224x224:8x3x224x224:32x3x224x224.",
)
@inputs
@_flags
@click.option(
    "--plan",
    metavar="FILE.json",
    shell_complete=complete_file,
    help="Replay the choice in this plan instead of making one.",
)
@click.option(
    "--cache",
    is_flag=True,
    help="With -o FILE.onnx, of a decoder of transformers: its cache of keys and values as inputs "
    "and outputs.",
)
@click.option("--force", is_flag=True, help="Write over MODEL itself where -o names it.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Choose and report, without proof, repair and writing.",
)
@extensions
@common
@click.pass_context
def prune(ctx: click.Context, /, **given: Any) -> int:
    """Prune MODEL, prove the result and write it. Exit code 1 where nothing was cut that should
    be."""
    load_extensions(given["files"])
    output = Output(given["output"], given["format_"], given["cache"], given["profile"])
    output.check(given["model"], given["force"])
    settings: dict[str, Any] = {"bench": True, **_settings(_chosen(ctx, given))}
    asked = settings.get("ranks")
    with (
        together(asked if isinstance(asked, int) and asked > 0 else None) as ranks,
        Bar() as bar,
    ):
        return _prune(ctx, given, {**settings, "progress": bar}, output, ranks)


def _prune(
    ctx: click.Context,
    given: Mapping[str, Any],
    settings: dict[str, Any],
    output: Output,
    ranks: Ranks,
) -> int:
    """On every rank; the first writes and reports."""
    if output.one_width:
        if settings.get("low_rank"):
            raise output.no_low_rank(settings["low_rank"])
        settings.setdefault("uniform", True)
    if given["dry_run"]:
        settings |= {"proof": False, "repair": False}
    chosen = api.Options(**settings)  # refused before a model is loaded
    if given["plan"] is not None:
        _check_replay(settings)
    with within_memory(chosen.memory):
        loaded = load(given["model"], given["inputs"], given["pretrained"], given["trust"])
    output.check_kind(loaded)
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
    pruned.report.command = command_line(_words(ctx))
    if given["dry_run"]:
        pruned.report.notes.append("dry run: neither proven nor repaired nor written")
    elif ranks.leads:
        output.write(pruned, settings.get("uniform") is False)
    ranks.end()  # an error of the writer is one of all
    written = given["output"] if not given["dry_run"] else None
    if given["json_"]:
        data = {**pruned.report.as_dict(timings=True), "output": written}
        show_json(data, error=output.standard)
    else:
        shown(pruned.report.text(seconds=is_verbose()), error=output.standard)
    if written is not None and not output.standard:
        say(f"wrote {written}")
    if pruned.report.proof is not None and pruned.report.proof.undecided:
        say(f"irprune: warning: {pruned.report.proof}")
    nothing = pruned.report.cuts_nothing  # which cannot be faster
    if not nothing and pruned.report.speed is not None and pruned.report.speed.warning:
        say(f"irprune: warning: {pruned.report.speed.warning}")
    told = given["plan"] is not None or {"budget", "keep_indices"} & settings.keys()
    asked = not told and settings.get("ratio", 0.5) != 0
    if nothing and asked:
        why = "no smaller model keeps the metric" if pruned.trials is not None else ""
        say(f"irprune: warning: {pruned.report.notes[0] if not why else f'nothing was cut: {why}'}")
        return 1
    return 0


def _words(ctx: click.Context) -> Sequence[str]:
    call = ctx.find_root().obj
    return call.words if isinstance(call, Call) else ()


def _check_replay(settings: Mapping[str, Any]) -> None:
    """Refuse options that choose beside a plan, which has chosen."""
    for name, value in settings.items():
        if name not in REPLAY and name != "progress":
            raise IrpruneError(
                f"{option('plan')} and {option(name, repr(value))} are both given",
                "",
                "a plan says what is cut: leave the other out",
            )
