"""Arguments and options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from irprune.api.declarations import OPTIONS
from irprune.api.extensions import load_extensions
from irprune.api.load import load_model
from irprune.api.option_kinds import settle_calibration
from irprune.base.format import finite
from irprune.cli import SCHEMA, Call
from irprune.cli.completion import complete_model
from irprune.cli.one_of import OneOf
from irprune.errors import printable

if TYPE_CHECKING:
    from irprune.api.load import Loaded

__all__ = [
    "as_json",
    "command_line",
    "common",
    "device",
    "dynamic",
    "extensions",
    "images",
    "inputs",
    "is_verbose",
    "load",
    "model",
    "say",
    "show_json",
    "shown",
    "with_images",
]

F = TypeVar("F", bound=Callable[..., Any])
QUIET, VERBOSE = "quietly", "verbosely"
_ABSOLUTE = re.compile(r"(?<![\w.~-])/(?:[^/\s:=]+/)*([^/\s:=]+)")
_DEEPEST = 44  # columns that a continued line is indented by at most


def model(name: str = "model") -> Callable[[F], F]:
    """The MODEL argument."""
    return click.argument(name, metavar=name.upper(), shell_complete=complete_model)


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


def dynamic(command: F) -> F:
    """``--dynamic``, as ``irprune prune`` has it."""
    own = OPTIONS["dynamic"]
    (flag,) = own.flags
    return click.option(
        flag.name,
        "dynamic",
        default=own.default,
        show_default=True,
        metavar=flag.metavar,
        help=own.help,
    )(command)


def device(command: F) -> F:
    """``--device``."""
    return click.option(
        "--device",
        type=OneOf(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where checks run; auto takes CUDA where there is a GPU.",
    )(command)


def extensions(command: F) -> F:
    """``--load``: files with operators, criteria, repairs and passes of the user's own."""
    return click.option(
        "--load",
        "files",
        multiple=True,
        metavar="FILE.py",
        type=click.Path(),
        help="Take in the operators, criteria, repairs and passes of a Python file; may be given "
        "again.",
    )(command)


IMAGES = ("preprocess", "mean", "std", "resize", "crop", "pixels")


def images(command: F) -> F:
    """What becomes of the images of a calibration folder, in the flags of ``irprune prune``."""
    for name in reversed(IMAGES):
        (flag,) = OPTIONS[name].flags
        command = click.option(
            flag.name,
            name,
            type=flag.type,
            metavar=flag.metavar,
            help=OPTIONS[name].help.replace("``", ""),
        )(command)
    return command


def with_images(folder: str | None, said: Mapping[str, Any]) -> Any:
    """``folder`` with what is said of its images. Raises IrpruneError for what cannot be read."""
    given = {
        name: OPTIONS[name].flags[0].read(value)
        for name, value in said.items()
        if value is not None
    }
    for name, value in given.items():
        OPTIONS[name].check(value)
    settled = {name: given.get(name) for name in IMAGES}
    return settle_calibration(folder, settled) if folder is not None or given else None


def as_json(command: F) -> F:
    """``--json``."""
    return click.option(
        "--json", "json_", is_flag=True, help="Print one JSON object instead of text."
    )(command)


def common(command: F) -> F:
    """``--json``, ``-q`` and ``-v``."""
    for names, key, text in (
        (("-v", "--verbose"), VERBOSE, "Say more: the seconds of every stage."),
        (("-q", "--quiet"), QUIET, "Say nothing on the way; errors and results are still printed."),
    ):
        command = click.option(
            *names, key, is_flag=True, expose_value=False, callback=_remember(key), help=text
        )(command)
    return as_json(command)


def _remember(key: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def keep(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        ctx.meta[key] = value

    return keep


def _flag_given(key: str) -> bool:
    ctx = click.get_current_context(silent=True)
    return bool(ctx is not None and ctx.meta.get(key))


def is_quiet() -> bool:
    """Whether ``-q`` was given."""
    return _flag_given(QUIET)


def is_verbose() -> bool:
    """Whether ``-v`` was given."""
    return _flag_given(VERBOSE)


def say(text: str) -> None:
    """Talk, for a person who watches: on stderr, unless ``-q`` was given."""
    if not _flag_given(QUIET):
        print(_lines(text), file=sys.stderr, flush=True)


def shown(text: str, error: bool = False, whole: bool = False) -> None:
    """A result: on stdout (stderr with ``error``), in lines that fit the terminal, or 80 columns
    where there is none; ``whole`` leaves them as they are."""
    if whole:
        click.echo(_lines(text), err=error)
        return
    width = max(40, shutil.get_terminal_size((80, 24)).columns)
    fitted = "\n".join(_fitted(line, width) for line in _lines(text).split("\n"))
    click.echo(fitted, err=error)


def _fitted(line: str, width: int) -> str:
    """A line wrapped to ``width``, its rest below the last column, or below the first where that
    stands far to the right."""
    if len(line) <= width:
        return line
    start = len(line) - len(line.lstrip())
    gap = line.rstrip().rfind("  ", start, width)
    indent = gap + 2 if start < gap + 2 <= _DEEPEST else start + 4
    return "\n".join(
        textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * indent,
            drop_whitespace=True,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _lines(text: str) -> str:
    """``text`` with its lines, and without other control characters: a terminal obeys those."""
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))


def show_json(data: dict[str, Any], error: bool = False) -> None:
    """A result as JSON with the version of its schema, on stdout (stderr with ``error``); what JSON
    has no number for is text."""
    call = click.get_current_context().find_root().obj
    if isinstance(call, Call):
        call.answered = True
    click.echo(json.dumps(finite({"schema": SCHEMA, **data}), indent=1), err=error)


def command_line(words: Sequence[str]) -> str:
    """The words as a shell takes them; of absolute paths the last part alone, which says nothing of
    the machine."""
    return shlex.join(["irprune", *(_ABSOLUTE.sub(r"\1", w) for w in words)])


def load(
    spec: str,
    given: tuple[str, ...],
    pretrained: bool,
    trust: bool,
    files: tuple[str, ...] = (),
) -> Loaded:
    """The model that MODEL names, once the extensions in ``files`` are there; - is an ONNX file on
    standard input."""
    load_extensions(files)
    if spec != "-":
        return load_model(spec, given, pretrained, trust)
    folder = tempfile.TemporaryDirectory(prefix="irprune-")
    ctx = click.get_current_context()
    ctx.call_on_close(folder.cleanup)
    file = Path(folder.name) / "stdin.onnx"
    file.write_bytes(sys.stdin.buffer.read())
    return load_model(str(file), given, pretrained, trust)
