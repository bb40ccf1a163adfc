"""A word of a command line that is one out of a few."""

from __future__ import annotations

from typing import Any

import click

from irprune.base.near import meant

__all__ = ["OneOf"]


class OneOf(click.Choice):  # type: ignore[type-arg]  # no generic before click 8.2
    """One out of a few words; of another the error says which may have been meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word. Raises click.BadParameter for one that is none of them."""
        words = [str(one) for one in self.choices]
        if str(value) not in words:
            hint = meant(str(value), words)
            self.fail(f"{value!r} is not {_of(words)}{hint and '; '}{hint}", param, ctx)
        return super().convert(value, param, ctx)


def _of(words: list[str]) -> str:
    return f"one of {', '.join(map(repr, words))}" if len(words) > 1 else repr(words[0])
