"""torch's symbolic sizes as the graph's: sympy expressions become trees."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from zlib import crc32

import sympy
from torch.utils._sympy import functions

from irprune.ir.size import Size, Sym, operation, symbol

__all__ = ["size_of", "tree_of"]

Tree = Sym | int | float

_INFIX: dict[Any, str] = {
    functions.FloorDiv: "//",
    functions.Mod: "%",
    functions.PythonMod: "%",
    functions.IntTrueDiv: "/",
    functions.FloatTrueDiv: "/",
    functions.PowByNatural: "**",
}
_CALLS: dict[Any, str] = {
    functions.Max: "max",
    functions.Min: "min",
    sympy.Max: "max",
    sympy.Min: "min",
    sympy.Abs: "abs",
    functions.ToFloat: "float",
    functions.TruncToInt: "math.trunc",
    functions.CeilToInt: "math.ceil",
    functions.FloorToInt: "math.floor",
    functions.RoundToInt: "round",
}


class _Unread(Exception):
    """An expression with an operation that sizes do not have."""


def size_of(s: Any) -> Size:
    """A torch size as the graph's. An expression with an operation that sizes do not have is a
    symbol of its own, known where a tensor of that size is."""
    return s if isinstance(s, int) else _symbolic(s.node.expr)


@lru_cache(maxsize=4096)
def _symbolic(expr: Any) -> Size:
    try:
        made = tree_of(expr)
    except (_Unread, ZeroDivisionError, OverflowError):
        return symbol(f"size_{crc32(str(expr).encode()):08x}")
    return made if isinstance(made, Sym) else int(made)


def tree_of(expr: Any) -> Tree:
    """A sympy expression as a tree, with the numbers in it folded."""
    if isinstance(expr, sympy.Symbol):
        return symbol(expr.name)
    if isinstance(expr, sympy.Integer):
        return int(expr)
    if isinstance(expr, sympy.Float):
        return float(expr)
    if isinstance(expr, functions.Identity):
        return tree_of(expr.args[0])
    if isinstance(expr, functions.ModularIndexing):
        base, divisor, modulus = expr.args
        return operation("%", operation("//", tree_of(base), tree_of(divisor)), tree_of(modulus))
    if isinstance(expr, (sympy.Add, sympy.Mul, sympy.Rational)):
        above, below = expr.as_numer_denom()
        if below != 1:  # a size is a whole number, so the division leaves no rest
            return operation("//", tree_of(above), tree_of(below))
    if isinstance(expr, sympy.Add):
        return _sum(expr)
    if isinstance(expr, sympy.Mul):
        return _product(expr)
    if isinstance(expr, sympy.Pow):
        base, exponent = expr.args
        if isinstance(exponent, sympy.Integer) and exponent > 0:
            return operation("**", tree_of(base), int(exponent))
    for kind, op in _INFIX.items():
        if isinstance(expr, kind):
            return operation(op, tree_of(expr.args[0]), tree_of(expr.args[1]))
    for kind, op in _CALLS.items():
        if isinstance(expr, kind):
            return operation(op, *(tree_of(a) for a in expr.args))
    raise _Unread(str(expr))


def _sum(expr: Any) -> Tree:
    """The terms with symbols first, in sympy's order, then the number; negative ones are taken
    off."""
    *rest, first = sorted(expr.as_ordered_terms(), key=_is_last, reverse=True)
    out = tree_of(first)
    for term in reversed(rest):
        factor, _ = term.as_coeff_Mul()
        out = (
            operation("-", out, tree_of(-term))
            if factor < 0
            else operation("+", out, tree_of(term))
        )
    return out


def _is_last(term: Any) -> int:
    """Numbers come last, and what is taken off after what it is taken from."""
    return 2 if term.is_number else 1 if term.as_coeff_Mul()[0] < 0 else 0


def _product(expr: Any) -> Tree:
    number, rest = expr.as_coeff_Mul()
    out: Tree | None = None
    for factor in rest.as_ordered_factors():
        made = tree_of(factor)
        out = made if out is None else operation("*", out, made)
    assert out is not None
    if number == 1:
        return out
    if number == -1:
        return operation("neg", out)
    return operation("*", out, tree_of(number))
