"""``irprune completion``: what makes a shell complete commands, options, files and criteria."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from irprune.cli import cli
from irprune.cli.one_of import OneOf
from irprune.criteria import criteria
from irprune.errors import IrpruneError

__all__ = ["complete_criterion", "complete_file", "complete_model", "completion"]

_SHELLS = ("bash", "zsh", "fish")
_LIBRARIES = ("timm:", "torchvision:", "hf:")


@click.command()
@click.argument("shell", type=OneOf(_SHELLS))
def completion(shell: str) -> None:
    """Print what makes SHELL complete the words of irprune.

    \b
    bash:  echo 'eval "$(irprune completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(irprune completion zsh)"' >> ~/.zshrc
    fish:  irprune completion fish > ~/.config/fish/completions/irprune.fish"""
    made = get_completion_class(shell)
    if made is None:
        raise IrpruneError(f"no completion for {shell}", "", "one of " + ", ".join(_SHELLS))
    click.echo(made(cli, {}, "irprune", "_IRPRUNE_COMPLETE").source())


def complete_model(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Files, and the libraries of models."""
    found = [CompletionItem(x) for x in _LIBRARIES if x.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def complete_file(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Files."""
    return [CompletionItem(incomplete, type="file")]


def complete_criterion(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names of criteria."""
    return [CompletionItem(x) for x in sorted(criteria()) if x.startswith(incomplete)]
