"""Steps reach whoever listens, a few a second, and nobody else."""

from __future__ import annotations

import pytest

from irprune.base import progress
from irprune.base.progress import ProgressLine, listening, tell


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_steps_have_a_share_and_the_time_left(clock: list[float]) -> None:
    said: list[str] = []
    with listening(said.append):
        tell("measuring", 0, 4)
        clock[0] = 1.0
        tell("measuring", 1, 4)
    (step,) = said
    assert isinstance(step, ProgressLine) and (step.stage, step.share, step.left) == (
        "measuring",
        0.25,
        3,
    )
    assert step == "measuring: 25%, 3 s left"
    tell("measuring", 2, 4)
    assert len(said) == 1  # nobody listens any more


def test_few_steps_are_told(clock: list[float]) -> None:
    said: list[str] = []
    with listening(said.append):
        for k in range(1000):
            clock[0] = k * 0.01
            tell("reading", k + 1, 1000)
    assert 5 <= len(said) <= 20
    shares = [s.share for s in said if isinstance(s, ProgressLine)]
    assert shares == sorted(shares) and shares[-1] > 0.9


def test_listeners_do_not_mix(clock: list[float]) -> None:
    outer: list[str] = []
    inner: list[str] = []
    with listening(outer.append):
        with listening(inner.append):
            tell("a", 0, 1)
            clock[0] = 1.0
            tell("a", 0.5, 1)
        with listening(None):
            clock[0] = 2.0
            tell("a", 0.9, 1)
    assert not outer and len(inner) == 1
