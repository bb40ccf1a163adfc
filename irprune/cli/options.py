"""Arguments and options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from irprune.api.load import load_model
from irprune.base.format import finite
from irprune.errors import printable
from irprune.run.ranks import speaks

if TYPE_CHECKING:
    from irprune.api.load import Loaded

__all__ = ["as_json", "device", "inputs", "model", "say", "show_json", "shown"]

F = TypeVar("F", bound=Callable[..., Any])


def model(name: str = "model") -> Callable[[F], F]:
    """The MODEL argument."""
    return click.argument(name, metavar=name.upper())


def inputs(command: F) -> F:
    """``--input``, once for each input of the model, ``--pretrained`` and ``--trust``."""
    command = click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="[NAME=]SHAPE[:TYPE]|[NAME=]FILE.npy",
        help="An example input: 1x3x224x224, ids=1x16:i64, or a .npy file; once for each input.",
    )(command)
    command = click.option(
        "--trust",
        is_flag=True,
        help="Load MODEL even where that runs code which lies in it: pickles, model.py, remote code.",
    )(command)
    return click.option(
        "--pretrained",
        is_flag=True,
        help="Trained weights for timm: and torchvision: models (downloads them).",
    )(command)


def device(command: F) -> F:
    """``--device``."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where checks run; auto takes CUDA where there is a GPU.",
    )(command)


def as_json(command: F) -> F:
    """``--json``."""
    return click.option(
        "--json", "json_", is_flag=True, help="Print one JSON object instead of text."
    )(command)


def say(text: str) -> None:
    """Talk, for a person who watches: on stderr, of the first rank alone."""
    if speaks():
        print(_lines(text), file=sys.stderr, flush=True)


def shown(text: str) -> None:
    """A result: on stdout, of the first rank alone."""
    if speaks():
        click.echo(_lines(text))


def _lines(text: str) -> str:
    """``text`` with its lines, and without other control characters: a terminal obeys those."""
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))


def show_json(data: Any) -> None:
    """A result as JSON; what JSON has no number for is text."""
    if speaks():
        click.echo(json.dumps(finite(data), indent=1))


def load(spec: str, given: tuple[str, ...], pretrained: bool, trust: bool) -> Loaded:
    """The model that MODEL names."""
    return load_model(spec, given, pretrained, trust)
