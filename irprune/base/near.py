"""What a mistyped name was meant to be: the one place that makes suggestions of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["meant", "near"]

_CUTOFF = 0.6  # of difflib's ratio: two of five letters wrong in a row are no slip any more
_LEAD = 0.15  # what is further behind the best match than this was not meant either


def near(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The names of ``known`` that ``name`` may have been meant to be, the likeliest first; none
    where it is far from all. Case, and whether words are joined by _ or -, tell nothing apart.

    Args:
        name: What was written.
        known: The names that there are.
        most: How many at the most.
    """
    plain: dict[str, str] = {}
    for one in known:
        plain.setdefault(_plain(one), one)
    wanted = _plain(name)
    found = difflib.get_close_matches(wanted, plain, n=most, cutoff=_CUTOFF)
    ratios = [difflib.SequenceMatcher(None, one, wanted).ratio() for one in found]
    return [
        plain[one] for one, ratio in zip(found, ratios, strict=True) if ratio >= ratios[0] - _LEAD
    ]


def meant(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The hint of an error about a name that is none of ``known``: what was meant, where something
    is near, and then ``otherwise``, which says what there is."""
    found = near(name, known)
    return " ".join(filter(None, (f"did you mean {' or '.join(found)}?" * bool(found), otherwise)))


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-")
