"""Fuzzed inputs: files and plans that are damaged, hostile or absurd, each made from a seed, and
what the command line says to them.

Each input runs in a process of its own with bounds on time and memory. It must end with a result
that was checked, or with one line and exit code 2 (1 where a check failed or nothing was cut): no
traceback, and no line of another library's own."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from irprune.testing.fuzz_inputs import INPUTS, Made

Run = Callable[[Sequence[str]], int]

__all__ = ["SECONDS", "Verdict", "fuzzed", "judged", "planned", "run_one"]

SECONDS = 60
MEMORY = 2 << 30  # bytes beyond what the process holds when it starts


@dataclass(frozen=True)
class Verdict:
    """How an input ended: ``kind`` of input and ``seed``, exit ``code`` (-1: killed), ``seconds``,
    what was written to stderr, and what is ``wrong`` with that, "" where nothing is."""

    kind: str
    seed: int
    code: int
    seconds: float
    said: str
    wrong: str


def fuzzed(
    run: Run, count: int, folder: Path, seed: int = 0, kinds: Sequence[str] = ()
) -> Iterator[Verdict]:
    """Give ``run``, the command line, ``count`` inputs, made in ``folder`` and removed again."""
    for kind, own in planned(count, seed, kinds):
        yield run_one(run, kind, own, folder)


def planned(count: int, seed: int = 0, kinds: Sequence[str] = ()) -> list[tuple[str, int]]:
    """The kind and the seed of each of ``count`` inputs, which take the kinds in turn."""
    names = list(kinds or INPUTS)
    return [(names[i % len(names)], seed + i // len(names)) for i in range(count)]


def run_one(run: Run, kind: str, seed: int, folder: Path) -> Verdict:
    """Make input ``seed`` of ``kind`` in ``folder`` and run the command line on it."""
    place = folder / f"{kind.replace(' ', '_')}_{seed}"
    place.mkdir(parents=True)
    made = INPUTS[kind](random.Random(f"{kind} {seed}"), place)
    began = time.monotonic()
    code, said = _apart(run, made, place)
    seconds = time.monotonic() - began
    wrong = judged(code, said, made)
    for p in sorted(place.rglob("*"), reverse=True):
        p.chmod(0o700) if p.is_dir() and not p.is_symlink() else None
        p.rmdir() if p.is_dir() and not p.is_symlink() else p.unlink()
    place.rmdir()
    return Verdict(kind, seed, code, seconds, said, wrong)


def judged(code: int, said: str, made: Made) -> str:
    """What is wrong with exit ``code`` and stderr ``said``; "" where nothing is."""
    lines = [line for line in said.splitlines() if line.strip()]
    own = ("irprune", "pruning ", "wrote ", "repairing ", "scoring ", "latency", "Usage", "Try ")
    if code == -signal.SIGALRM:
        return f"takes more than {SECONDS} s"
    if code < 0:
        return f"killed by signal {-code}"
    if "Traceback (most recent call last)" in said:
        return "a traceback"
    foreign = [line for line in lines if not line.startswith(own)]
    if foreign:
        return f"a line that is not ours: {foreign[0][:200]}"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    complaints = [line for line in lines if line.startswith("irprune")]
    if code in (1, 2) and len(complaints) != 1:
        return f"exit code {code} with {len(complaints)} lines"
    if code == 0 and made.output is not None:
        return _unsound(made.output)
    return ""


def _unsound(output: Path) -> str:
    if output.suffix != ".onnx":
        return "" if output.exists() else "no output"
    try:
        onnx.checker.check_model(str(output))
    except Exception as refused:
        return f"onnx.checker refuses the output: {str(refused).splitlines()[0][:150]}"
    return ""


def _apart(run: Run, made: Made, place: Path) -> tuple[int, str]:
    """Run the command line in a process of its own; the negative signal where it was killed."""
    log = place / "stderr.log"
    child = os.fork()
    if child == 0:
        _child(run, made.argv, log)
    _, status = os.waitpid(child, 0)
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status), said
    return os.WEXITSTATUS(status), said


def _child(run: Run, argv: Sequence[str], log: Path) -> None:
    """The child's part; it never returns."""
    code = 70
    try:
        out, null = (
            os.open(log, os.O_WRONLY | os.O_CREAT),
            os.open(os.devnull, os.O_WRONLY),
        )
        os.dup2(null, 1)
        os.dup2(out, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the child ends with it
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        signal.alarm(SECONDS)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        code = run(list(argv))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
