"""The progress bar of a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from irprune.base.progress import ProgressLine
from irprune.cli.options import is_quiet, say

__all__ = ["Bar"]


class Bar:
    """Hears what a call says of its progress: lines are printed on stderr, and how far a stage is
    becomes a bar there with the time that is left. Where stderr is no terminal there is no bar.

    A context: the bar is gone when it ends, however that is."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def __call__(self, line: str) -> None:
        """A line, or a step of a stage."""
        if not isinstance(line, ProgressLine):
            self._end()
            say(line)
        elif sys.stderr.isatty() and not is_quiet():
            self._step(line)

    def _step(self, step: ProgressLine) -> None:
        if self._shown is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._shown = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]:.0f} s left"),
                console=Console(stderr=True),
                transient=True,
            )
            self._shown.start()
            self._task = self._shown.add_task(step.stage, total=1.0, left=step.left)
        self._shown.update(self._task, description=step.stage, completed=step.share, left=step.left)

    def _end(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = self._task = None
