"""How far a long stage is: told by whoever loops, heard by whoever called.

Loops deep in a prune know nothing of its options. They ``tell`` a listener that the call has put up
for its own thread of control (a context variable), and say nothing where there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from irprune.base.moved import renamed

__all__ = ["ProgressLine", "listening", "tell"]

__getattr__ = renamed(__name__, {"Step": "ProgressLine", "heard": "listening"})

T = TypeVar("T")


class ProgressLine(str):
    """A line of text about a stage that is under way.

    Attributes:
        stage: What is done.
        share: How much of it is done, from 0 to 1.
        left: Seconds that the rest of it takes, if it goes on as it went.
    """

    stage: str
    share: float
    left: float

    def __new__(cls, stage: str, share: float, left: float) -> ProgressLine:
        made = super().__new__(cls, f"{stage}: {share:.0%}, {left:.0f} s left")
        made.stage, made.share, made.left = stage, share, left
        return made


_SHARE, _SECONDS = 0.05, 0.2  # of a stage, and between two steps: no more is told


class _Clock:
    """When a stage began, and what was told of it last."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        self.hear, self.stage, self.began, self.told, self.at = hear, "", 0.0, 0.0, 0.0

    def tell(self, stage: str, share: float) -> None:
        now = time.monotonic()
        if stage != self.stage or share < self.told:
            self.stage, self.began, self.told, self.at = stage, now, 0.0, now
        soon = share - self.told < _SHARE or now - self.at < _SECONDS
        if soon and not (share >= 1 and self.told < 1 and self.told > 0):
            return
        self.told, self.at = share, now
        self.hear(ProgressLine(stage, share, (now - self.began) * (1 - share) / max(share, 1e-9)))


_HEARD: ContextVar[_Clock | None] = ContextVar("irprune_progress", default=None)


@contextlib.contextmanager
def listening(hear: Callable[[str], None] | None) -> Iterator[None]:
    """Let ``hear`` have every step that is told inside, a few a second at most; None is nobody."""
    token = _HEARD.set(None if hear is None else _Clock(hear))
    try:
        yield
    finally:
        _HEARD.reset(token)


def tell(stage: str, done: float, total: float) -> None:
    """Say that ``done`` of ``total`` of a stage is done."""
    clock = _HEARD.get()
    if clock is not None and total > 0:
        clock.tell(stage, min(done / total, 1.0))
