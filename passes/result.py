"""What every pass returns: whether it changed the graph, what a person should know, and what it
found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["PassResult"]


@dataclass(frozen=True)
class PassResult:
    """What one run of a pass did. A pass holds nothing itself, so that it can run again.

    Args:
        changed: Whether the graph differs from what it was. The driver's ``Verify`` compares.
        notes: Lines for a person: what was left alone, and why.
        data: What the pass found out, by name; its docstring says what is there. Read-only.

    A result is true where the graph changed.
    """

    changed: bool
    notes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.changed, bool):
            raise TypeError(f"changed is {self.changed!r}: a PassResult begins with True or False")
        if not isinstance(self.notes, tuple) or not all(isinstance(n, str) for n in self.notes):
            raise TypeError(f"notes are {self.notes!r}: a PassResult takes a tuple of texts")
        object.__setattr__(self, "data", MappingProxyType(dict(self.data)))

    def __bool__(self) -> bool:
        return self.changed
