"""The command line. Numbers go to stdout, talk to stderr; exit code 1 when a check fails, 2 for bad
input.

A command's module is imported when it is called, so that starting costs little.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from irprune.base.near import meant
from irprune.cli.config import defaults
from irprune.errors import CheckFailed, IrpruneError, first_line, printable
from irprune.run.ranks import launched, launched_group, speaks

__all__ = ["COMMANDS", "SCHEMA", "Call", "cli", "main", "run"]

# How torch says that memory is short
_NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
SCHEMA = 1  # of what --json prints; it rises when a key changes its meaning or goes

COMMANDS = {  # name -> where it is, and what it does in a line
    "prune": ("irprune.cli.prune:prune", "Prune MODEL, prove the result and write it."),
    "inspect": (
        "irprune.cli.inspect:inspect",
        "Show the groups of MODEL, and what is frozen and why.",
    ),
    "explain": ("irprune.cli.explain:explain", "Show what couples NAME to its group, or froze it."),
    "opt": ("irprune.cli.opt:opt", "Run passes over MODEL and print the graph."),
    "validate": (
        "irprune.cli.validate:validate",
        "Run the same inputs through A and B and compare every output.",
    ),
    "evaluate": (
        "irprune.cli.evaluate:evaluate",
        "Measure a language model on texts, beside the one that it was made from.",
    ),
    "bench": ("irprune.cli.bench:bench", "Measure latency, size, MACs, parameters and memory."),
    "sweep": ("irprune.cli.sweep:sweep", "Prune by several strategies at once and judge each."),
    "report": ("irprune.cli.report:report", "Make the page of what was pruned again."),
    "diff": ("irprune.cli.report:diff", "Compare two plans or reports."),
    "ops": ("irprune.cli.tables:ops_command", "List the operators that have a rule."),
    "passes": ("irprune.cli.tables:passes_command", "List the passes and their options."),
    "new": ("irprune.cli.new:new", "Write a pass, criterion or operator to begin with."),
    "demo": ("irprune.cli.demo:demo", "Train, prune, prove and export a small net on digits."),
    "completion": ("irprune.cli.completion:completion", "Print what makes a shell complete."),
}


@dataclass
class Call:
    """One call of the command line: its words, and whether its JSON was printed."""

    words: Sequence[str]
    answered: bool = False


class _Lazy(click.Group):
    """Commands by name, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        place, _, own = COMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(place), own)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            hint = meant(name, COMMANDS, "`irprune` lists the commands")
            raise click.UsageError(f"No such command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_Lazy,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="irprune", message="%(version)s")
@click.option(
    "--config",
    "config",
    metavar="FILE.toml",
    help="Options of the commands from a TOML file, in place of [tool.irprune] in pyproject.toml.",
)
@click.pass_context
def cli(ctx: click.Context, config: str | None) -> None:
    """Make neural networks smaller: structured pruning of PyTorch and ONNX models, with a proof.

    MODEL is file.onnx, file.pt2, file.py:callable, package.module:callable, timm:NAME,
    torchvision:NAME, hf:FOLDER, a folder that irprune wrote, or - for an ONNX file on standard
    input.

    \b
    irprune inspect net.onnx
    irprune prune net.onnx -o small.onnx --macs 50% --calibration images/
    irprune prune net.onnx -o small.onnx --eval score.py:accuracy --max-drop 1%"""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        return
    if ctx.invoked_subcommand in COMMANDS:
        assert isinstance(ctx.command, click.Group)
        ctx.default_map = defaults(ctx.command, ctx.invoked_subcommand, config)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line on stderr, and an object
    on stdout as well where ``--json`` is given. Of processes that torchrun started the first alone
    speaks."""
    call = Call(list(argv) if argv is not None else sys.argv[1:])
    with contextlib.ExitStack() as held:
        held.enter_context(launched_group())
        if not speaks():
            nowhere = held.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            held.enter_context(contextlib.redirect_stdout(nowhere))
            held.enter_context(contextlib.redirect_stderr(nowhere))
        return _run(call)


def _run(call: Call) -> int:
    try:
        result = cli.main(
            _config_first(call.words), prog_name="irprune", standalone_mode=False, obj=call
        )
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as wrong:
        named = isinstance(wrong, click.UsageError) and wrong.ctx is not None and wrong.ctx.parent
        assert not named or isinstance(wrong, click.UsageError)
        where = f"irprune {wrong.ctx.info_name}" if named and wrong.ctx else "irprune"  # type: ignore[attr-defined]
        return _failed(
            f"{where}: {wrong.format_message()}", wrong.format_message(), call, BAD_INPUT
        )
    except IrpruneError as bad:
        text = bad.spelled(_flag)
        code = FAILED if isinstance(bad, CheckFailed) else BAD_INPUT
        return _failed(f"irprune: {text}", text, call, code)
    except MemoryError as large:
        text = f"this takes more memory than there is: {first_line(large)}"
        return _failed(f"irprune: {text}", text, call, BAD_INPUT)
    except RecursionError:
        text = "the model is nested too deeply"
        return _failed(f"irprune: {text}", text, call, BAD_INPUT)
    except (KeyboardInterrupt, click.Abort):
        return _failed("irprune: interrupted", "interrupted", call, INTERRUPTED)
    except BrokenPipeError:  # whoever read the output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (OSError, RuntimeError) as refused:
        # click.Abort and what torch raises of its own are RuntimeErrors too
        if isinstance(refused, RuntimeError) and not any(t in str(refused) for t in _NO_MEMORY):
            raise
        text = _refusal(refused)
        return _failed(f"irprune: {text}", text, call, BAD_INPUT)


def _config_first(words: Sequence[str]) -> list[str]:
    """``words`` with ``--config FILE`` before the command, which all commands share, wherever it
    stands."""
    end = words.index("--") if "--" in words else len(words)
    for i, word in enumerate(words[:end]):
        wide = 2 if word == "--config" and i + 1 < end else 1 if word.startswith("--config=") else 0
        if wide:
            return [*words[i : i + wide], *words[:i], *words[i + wide :]]
    return list(words)


def _refusal(error: OSError | RuntimeError) -> str:
    """What to say of an error of the system, or of one of torch that says that memory is short."""
    if isinstance(error, RuntimeError):
        return f"this takes more memory than there is: {first_line(error)}"
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or first_line(error)}{where}"


def _flag(name: str, value: str) -> str:
    """How the command line spells an option that an error names."""
    from irprune.cli.spelling import spell

    return spell(name, value)


def _failed(line: str, text: str, call: Call, code: int) -> int:
    print(printable(" ".join(line.split()), 4000), file=sys.stderr, flush=True)
    if "--json" in call.words and not call.answered:
        told = {"message": printable(" ".join(text.split()), 4000), "exit_code": code}
        print(json.dumps({"schema": SCHEMA, "error": told}, indent=1))
    return code


def main() -> None:
    """The entry point of the ``irprune`` command."""
    if not launched():  # torchrun ends ranks that wait for others, where no handler is reached
        signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run())


def _terminated(number: int, frame: FrameType | None) -> None:
    """End as on an error: temporary files, which may be larger than the model, do not stay."""
    raise SystemExit(128 + number)
