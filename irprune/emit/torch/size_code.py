"""The code of a size, the size that solves another, and how messages say where one was fixed."""

from __future__ import annotations

from collections.abc import Callable

from irprune.emit.torch.code import INFIX, Code, call, infix, literal, quote
from irprune.ir.size import Sym, linear

__all__ = ["line_of", "said_of", "size_code", "solved_for"]


def size_code(size: Sym | int | float, named: Callable[[str], Code]) -> Code:
    """The code of a size; ``named`` gives that of a symbol."""
    if not isinstance(size, Sym):
        return literal(size)
    if size.name:
        return named(size.name)
    args = [size_code(a, named) for a in size.args if not isinstance(a, str)]
    if size.op in INFIX:
        return infix(args[0], size.op, args[1])
    return quote("-_0", args[0]) if size.op == "neg" else call(size.op, args)


def solved_for(size: Sym, symbol: str, known: Code) -> Code | None:
    """The code that gives ``symbol`` where ``size`` is ``known``; None where the size is not
    ``k * symbol + c``."""
    found = linear(size)
    if found is None or (k := found[0].get(symbol, 0)) <= 0:
        return None
    c = found[1]
    moved = infix(known, "-", c) if c > 0 else infix(known, "+", -c) if c < 0 else known
    return infix(moved, "//", k) if k != 1 else moved


def line_of(where: str) -> str:
    """``file:line`` without the folders."""
    return where.replace("\\", "/").rpartition("/")[2] if ":" in where else where


def said_of(where: str) -> str:
    """What the message says of what fixed a size."""
    return f" ({line_of(where)})" if where else ""
