"""The command line. Numbers go to stdout, talk to stderr; exit code 1 when a check fails, 2 for bad
input.

A command's module is imported when it is called, so that starting costs little.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from irprune.errors import CheckFailed, IrpruneError, printable
from irprune.run.ranks import launched_group, speaks

__all__ = ["cli", "main", "run"]

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

_COMMANDS = {  # name -> where it is, and what it does in a line
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
    "bench": ("irprune.cli.bench:bench", "Measure latency, size, MACs, parameters and memory."),
    "ops": ("irprune.cli.tables:ops_command", "List the operators that have a rule."),
    "passes": ("irprune.cli.tables:passes_command", "List the passes and their options."),
    "demo": ("irprune.cli.demo:demo", "Train, prune, prove and export a small net on digits."),
}


class _Lazy(click.Group):
    """Commands by name, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        place, _, own = _COMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(place), own)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(package_name="irprune", message="%(version)s")
def cli() -> None:
    """Make neural networks smaller: structured pruning of PyTorch and ONNX models, with a proof.

    MODEL is file.onnx, file.pt2, file.py:callable, package.module:callable, timm:NAME,
    torchvision:NAME, hf:FOLDER, or a folder that irprune wrote."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line on stderr, of the first
    rank where torchrun started several."""
    with launched_group():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        result = cli.main(
            list(argv) if argv is not None else None, prog_name="irprune", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as wrong:
        where = (
            f"irprune {wrong.ctx.info_name}"
            if isinstance(wrong, click.UsageError) and wrong.ctx is not None
            else "irprune"
        )
        _complain(f"{where}: {wrong.format_message()}")
        return BAD_INPUT
    except IrpruneError as bad:
        _complain(f"irprune: {bad.spelled(_flag)}")
        return FAILED if isinstance(bad, CheckFailed) else BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        _complain("irprune: interrupted")
        return INTERRUPTED


def _flag(name: str, value: str) -> str:
    """How the command line spells an option that an error names."""
    from irprune.cli.spelling import spell

    return spell(name, value)


def _complain(text: str) -> None:
    if speaks():
        print(printable(" ".join(text.split()), 4000), file=sys.stderr, flush=True)


def main() -> None:
    """The entry point of the ``irprune`` command."""
    sys.exit(run())
