"""A cut model that stops where the original runs: a proof that fails, whatever the error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from irprune.errors import OtherOutcome, gist

__all__ = ["REFUSED", "Stopped", "stopping"]

REFUSED = (RuntimeError, ValueError)
"""What torch raises for a type or a number that an operator does not take."""


class Stopped(Exception):
    """What the cut model stops with, in one line."""


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Raises Stopped for what is raised within, which runs the cut model; a machine that has no
    memory left says nothing about it."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, OtherOutcome, Stopped):
        raise
    except Exception as failed:
        raise Stopped(gist(failed)) from failed
