"""Run what a page of the documentation shows, in the order in which it stands there.

A fenced block says by its language what becomes of it:

    python                  is executed; all blocks of a page share one namespace
    python title="net.py"   is saved under that name in the working folder, as the text tells
    console                 lines behind ``$ `` are commands; what stands below is their output
    text                    is in the output of the Python block before it

Everything that is expected of an output is a line of it, in that order; spaces count as one and
``...`` stands for lines that are not shown. A command ends with exit code 0 unless
``# exit code 1`` stands behind it. ``python tests/pages.py PAGE FOLDER`` runs a page in a folder;
a test does so in a process of its own, because a page may register passes and criteria."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Block", "blocks", "run_page"]

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title ("" where it has none), its text and its line."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of ``page``, a page's text, in order."""
    for found in _FENCE.finditer(page):
        title = re.search(r'title="([^"]+)"', found[2])
        line = page[: found.start()].count("\n") + 1
        yield Block(found[1], title[1] if title else "", found[3], line)


def run_page(path: Path) -> int:
    """Run the blocks of ``path`` in the working folder; returns how many did something. Raises
    AssertionError, with the line of the page, for a command or an output that is not as shown."""
    space: dict[str, Any] = {"__name__": "page"}
    printed, count = "", 0
    for block in blocks(path.read_text()):
        at = f"{path.name}:{block.line}"
        if block.language == "python" and block.title:
            Path(block.title).write_text(block.text)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, at, "exec", dont_inherit=True), space)
            printed = out.getvalue()
        elif block.language == "console":
            _console(block, at)
        elif block.language == "text":
            _expect(block.text.splitlines(), printed, at)
        count += block.language in ("python", "console", "text")
    return count


def _console(block: Block, at: str) -> None:
    for piece in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        first, *expected = piece.splitlines()
        command, _, comment = first.partition("  # ")
        wanted = re.search(r"exit code (\d)", comment)
        code, output = _called(command)
        assert code == int(wanted[1] if wanted else 0), f"{at}: {command}: {code}\n{output}"
        _expect(expected, output, at)


def _called(command: str) -> tuple[int, str]:
    """The exit code and the output of a command line of irprune, or of torchrun."""
    from irprune.cli import run

    program, *words = shlex.split(command)
    if program == "torchrun":
        made = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words], capture_output=True, text=True
        )
        return made.returncode, made.stdout + made.stderr
    assert program == "irprune", f"a page runs irprune and torchrun alone, not {program}"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = run(words)
    return code, out.getvalue()


def _expect(lines: list[str], output: str, at: str) -> None:
    """Check that ``lines`` are lines of ``output`` in that order."""
    left = iter([" ".join(line.split()) for line in output.splitlines()])
    for line in lines:
        wanted = " ".join(line.split())
        if wanted not in ("", "..."):
            assert wanted in left, f"{at}: {line!r} is not in the output:\n{output}"


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), "."]
    os.environ["COLUMNS"] = "140"  # as wide as a page shows it
    print(run_page(Path(sys.argv[1])))
