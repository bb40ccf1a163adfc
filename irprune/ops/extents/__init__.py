"""Sizes of results as expressions of the sizes of operands: what lets sizes of a call stay open.

One function per kind of operator, by the name of its entry in the operator table: ``f(node,
sizes)`` gives a shape for each result. The types of the node's results are those of the example
call; those of its operands, and its attributes, hold expressions. ``sizes`` does the arithmetic,
and is told what an operator takes to be equal. A size of None is one that the function does not
know."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import cache

from irprune.ir.graph import Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size
from irprune.ops.aten.elementwise import broadcast
from irprune.ops.registry import lookup

__all__ = ["Extents", "extents", "extents_of"]

Shape = Sequence[Size | None]
Extents = Callable[[Node, OpenSizes], Sequence[Shape]]

_EXTENTS: dict[str, Extents] = {}


def extents(*names: str) -> Callable[[Extents], Extents]:
    """Declare the function for the entries ``names``. Raises ValueError where one has its own."""

    def declare(function: Extents) -> Extents:
        for name in names:
            if name in _EXTENTS:
                raise ValueError(f"the sizes of {name!r} are declared twice")
            _EXTENTS[name] = function
        return function

    return declare


@cache
def _loaded() -> dict[str, Extents]:
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        importlib.import_module(f"{__name__}.{info.name}")
    return _EXTENTS


def extents_of(node: Node) -> Extents | None:
    """The function for the operator of ``node``; None where there is none.

    Operators whose axis rule is a signature or broadcasting, and products that are said in letters,
    need none of their own."""
    found = _loaded().get(node.op)
    entry = lookup(node)
    if found is not None or entry is None:
        return found
    if entry.letters is not None:
        return products.by_letters
    if entry.signature is not None:
        return products.by_signature
    return pointwise.elementwise if entry.rule is broadcast else None


from irprune.ops.extents import pointwise, products  # noqa: E402 - they declare to this module
