"""Names in a module's state for the weights of a file, which may be called anything.

``torch`` splits a name at its dots into modules and holds each part as an attribute. So no part may
be empty or one of ``nn.Module``'s own attributes, and a weight cannot hang below another one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

__all__ = ["StateNames"]


@cache
def _reserved() -> frozenset[str]:
    from torch import nn

    return frozenset(dir(nn.Module())) | {"__metadata__"}  # the last is safetensors' own


def _part(text: str) -> str:
    return f"{text}_" if not text or text in _reserved() else text


class StateNames:
    """The names that are given already."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: dict[str, None] = {}
        self._above: dict[str, int] = {}  # how many names lie below each place
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Take ``name`` itself."""
        if name not in self._names:
            self._names[name] = None
            for place in _places(name):
                self._above[place] = self._above.get(place, 0) + 1

    def remove(self, name: str) -> None:
        """Give ``name`` back, if it is taken."""
        if name in self._names:
            del self._names[name]
            for place in _places(name):
                self._above[place] -= 1

    def free(self, name: str) -> str:
        """``name``, or one like it, that a module can hold beside those that are taken, be it as a
        module or as a weight."""
        plain = ".".join(map(_part, name.split(".")))
        found, k = plain, 1
        while (
            found in self._names
            or self._above.get(found)
            or any(place in self._names for place in _places(found))
        ):
            k += 1
            found = f"{plain}_{k}"
            if any(place in self._names for place in _places(plain)):  # a weight stands above it
                found = f"{plain.replace('.', '_')}_{k}"
        return found


def _places(name: str) -> list[str]:
    """The modules that ``name`` hangs in."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
