"""What a capture raises where it does not cover a model, so that another is tried."""

from __future__ import annotations

__all__ = ["Declined", "SizesOfValues"]


class SizesOfValues(Exception):
    """A size depends on values, and others are open."""


class Declined(Exception):
    """The model does something that this capture does not cover; the text says what."""
