"""What a captured call fixes about sizes: those that ``forward`` holds to one number, and the
relations between sizes that the path it took depends on.

A graph is right for every call that meets its guards and for no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne

from irprune.ir.size import Size, Sym, number, symbols

__all__ = ["NEGATED", "RELATIONS", "Fixed", "Guard"]

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "==": eq,
    "!=": ne,
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
}
NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True, slots=True)
class Fixed:
    """Dimension ``dim`` of input ``input`` (a position) has size ``size`` alone.

    ``where`` is the user's ``file:line`` that fixed it, or what else did."""

    input: int
    dim: int
    size: int
    where: str


@dataclass(frozen=True, slots=True)
class Guard:
    """``left relation right`` holds, because the line ``where`` of forward took the branch that it
    takes then. The sides are sizes, or real numbers computed from sizes."""

    left: Size | float
    relation: str
    right: Size | float
    where: str = ""

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names of the sizes in it, each once."""
        found = (
            n for side in (self.left, self.right) if isinstance(side, Sym) for n in symbols(side)
        )
        return tuple(dict.fromkeys(found))

    def holds(self, bindings: Mapping[str, int]) -> bool:
        """Whether the relation holds for these sizes."""
        left, right = (number(side, bindings) for side in (self.left, self.right))
        return RELATIONS[self.relation](left, right)

    def __str__(self) -> str:
        return f"{_bare(self.left)} {self.relation} {_bare(self.right)}"


def _bare(side: Size | float) -> str:
    """A side without the parentheses around it."""
    text = str(side)
    infix = isinstance(side, Sym) and text.startswith("(")
    return text[1:-1] if infix else text
