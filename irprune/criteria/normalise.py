"""Normalisers: what makes the scores of different groups comparable under one threshold, from the
scores alone.

(``measured``, which runs the model, has a file of its own.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irprune.base.near import meant
from irprune.criteria import Scores
from irprune.errors import IrpruneError

__all__ = ["NORMALISERS", "lamp", "normalised"]


def _mean(s: Scores) -> Scores:
    return s / m if (m := np.abs(s).mean()) > 0 else s


def _max(s: Scores) -> Scores:
    return s / m if (m := np.abs(s).max()) > 0 else s


def _standardisation(s: Scores) -> Scores:
    """Zero mean and unit deviation; zeros where all are equal."""
    d = s.std()
    return (s - s.mean()) / d if d > 1e-12 * max(1.0, float(np.abs(s).max())) else np.zeros_like(s)


def lamp(s: Scores) -> Scores:
    """``s**2`` over the sum of all squares at least as large (Lee et al., ICLR 2021)."""
    flat = s.reshape(-1)
    order = np.argsort(flat, kind="stable")
    squares = np.square(flat[order])
    above = np.cumsum(squares[::-1])[::-1]
    out = np.empty_like(flat)
    out[order] = np.divide(squares, above, out=np.zeros_like(squares), where=above > 0)
    return out.reshape(s.shape)


NORMALISERS: dict[str, Callable[[Scores], Scores]] = {
    "none": lambda s: s,
    "mean": _mean,
    "max": _max,
    "standardisation": _standardisation,
    "lamp": lamp,
}


def normalised(scores: Scores, how: str) -> Scores:
    """``scores`` of one group (any shape) normalised over all of them. Raises IrpruneError for an
    unknown normaliser."""
    if how not in NORMALISERS:
        raise IrpruneError(
            f"no normaliser is called {how!r}",
            "score",
            meant(
                how,
                (*NORMALISERS, "measured"),
                "one of " + ", ".join((*NORMALISERS, "measured")),
            ),
        )
    return NORMALISERS[how](scores)
