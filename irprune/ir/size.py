"""Sizes of dimensions: a plain ``int``, or a ``Sym`` where the size is known only at run time.

A ``Sym`` is an expression tree over named symbols. It is evaluated by walking the tree with a value
for each symbol, and it prints as Python (emitted code holds that text) which ``parse_size`` reads
back to the same tree; text is never run.

Each tree carries its *probe*: its value with a large number in place of each symbol. Two sizes are
taken as equal when their probes are, so that ``s0*s1`` and ``s1*s0`` agree without a computer
algebra system."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

__all__ = [
    "Size",
    "Sym",
    "UnboundSymbol",
    "apply",
    "evaluate",
    "identical",
    "is_static",
    "linear",
    "number",
    "operation",
    "parse_size",
    "probe_of",
    "product",
    "same",
    "symbol",
    "symbols",
]

_LEAST = 1009  # the smallest probe, in grains
# divisible by 1..12, and by 2 ten times: `n // 7 * 7` of a probe is the probe again, after five
# halvings too, as it is for the sizes that a model accepts
_GRAIN = 2**10 * 3**2 * 5**2 * 7 * 11

_INFIX: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "/": operator.truediv,
    "**": operator.pow,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "float": float,
    "round": round,
    "math.trunc": math.trunc,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
}
_NEGATION = "neg"
_REAL = ("/", "float")  # operations whose result need not be a whole number
_ARITHMETIC = ("+", "-", "*", "**", _NEGATION, "min", "max", "abs")  # real where an operand is


class UnboundSymbol(LookupError):
    """A size was evaluated without a value for one of its symbols."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Sym:
    """A size known at run time.

    Args:
        op: ``symbol``; an infix operator (``+ - * // % / **``); ``neg``; or a function (``min``,
            ``max``, ``abs``, ``float``, ``round``, ``math.trunc``, ``math.floor``, ``math.ceil``).
        args: the operands of ``op``, in order; the name, for a symbol.
        probe: the value at the probe point.
        is_whole: whether the value is a whole number, whatever the symbols are.

    ``Sym.of`` makes a node of operands as they are; arithmetic on sizes leaves out what changes
    nothing (``+ 0``, ``* 1``) and gives a number where the symbols cancel.
    """

    op: str
    args: tuple[Sym | int | float | str, ...]
    probe: int
    is_whole: bool = True

    @staticmethod
    def of(op: str, *args: Sym | int | float) -> Sym:
        """The node ``op`` over ``args``. Raises ValueError for an operation that sizes do not
        have, ZeroDivisionError for a division by zero."""
        value = apply(op, [_at_probe(a) for a in args])
        whole = op not in _REAL
        if op in _ARITHMETIC:
            whole = all(a.is_whole if isinstance(a, Sym) else isinstance(a, int) for a in args)
        return Sym(op, args, int(value), whole)

    @property
    def name(self) -> str:
        """The name of a symbol that stands alone; empty for an expression."""
        return str(self.args[0]) if self.op == "symbol" else ""

    def __hash__(self) -> int:
        return hash((self.op, self.probe))

    def __str__(self) -> str:
        if self.op == "symbol":
            return self.name
        if self.op == _NEGATION:
            return f"(-{self.args[0]})"
        if self.op in _INFIX:
            return f"({self.args[0]} {self.op} {self.args[1]})"
        return f"{self.op}({', '.join(map(str, self.args))})"

    def __add__(self, other: Size) -> Sym:
        return self if _is(other, 0) else Sym.of("+", self, other)

    def __radd__(self, other: Size) -> Sym:
        return self if _is(other, 0) else Sym.of("+", other, self)

    def __sub__(self, other: Size) -> Size:
        left = self.probe - probe_of(other)
        if isinstance(other, Sym) and abs(left) < _GRAIN:  # the symbols cancel
            return left
        return self if _is(other, 0) else Sym.of("-", self, other)

    def __rsub__(self, other: Size) -> Size:
        return Sym.of("-", other, self)

    def __mul__(self, other: Size) -> Size:
        return 0 if _is(other, 0) else self if _is(other, 1) else Sym.of("*", self, other)

    def __rmul__(self, other: Size) -> Size:
        return 0 if _is(other, 0) else self if _is(other, 1) else Sym.of("*", other, self)

    def __floordiv__(self, other: Size) -> Size:
        value, rest = divmod(self.probe, probe_of(other))
        if isinstance(other, Sym) and rest == 0 and value < _LEAST:  # the symbols cancel
            return value
        return self if _is(other, 1) else Sym.of("//", self, other)

    def __rfloordiv__(self, other: Size) -> Size:
        return Sym.of("//", other, self)

    def __mod__(self, other: Size) -> Size:
        return Sym.of("%", self, other) if self.probe % probe_of(other) else 0

    def __neg__(self) -> Sym:
        return Sym.of(_NEGATION, self)


Size = int | Sym


def operation(op: str, *args: Sym | int | float) -> Sym | int | float:
    """``op`` over ``args``: a number where no symbol is among them, else the node. Raises as
    ``Sym.of`` does."""
    if any(isinstance(a, Sym) for a in args):
        return Sym.of(op, *args)
    made: int | float = apply(op, list(args))
    return made


def _is(size: Size, number: int) -> bool:
    return not isinstance(size, Sym) and size == number


def apply(op: str, values: Sequence[Any]) -> Any:
    """The number that ``op`` makes of ``values``. Raises ValueError for an operation that sizes do
    not have, and what Python raises for such numbers."""
    if op in _INFIX:
        a, b = values
        return _INFIX[op](a, b)
    if op == _NEGATION:
        return -values[0]
    if op in _CALLS:
        return _CALLS[op](*values)
    raise ValueError(f"a size has no operation {op!r}")


def _at_probe(x: Sym | int | float | str) -> Any:
    if not isinstance(x, Sym):
        return x
    return x.probe if x.is_whole else apply(x.op, [_at_probe(a) for a in x.args])


def symbol(name: str) -> Sym:
    """The symbol ``name``; the same name gives the same probe, different names almost surely
    different ones. Raises ValueError for what is no identifier."""
    if not name.isidentifier():
        raise ValueError(f"{name!r} cannot name a size")
    return Sym("symbol", (name,), _GRAIN * (_LEAST + crc32(name.encode()) % 8_999_993))


def symbols(size: Size) -> Iterator[str]:
    """The names of the symbols in ``size``, from left to right; one that stands twice comes
    twice."""
    if isinstance(size, Sym):
        if size.op == "symbol":
            yield size.name
        else:
            for a in size.args:
                if isinstance(a, Sym):
                    yield from symbols(a)


def evaluate(size: Size, bindings: Mapping[str, int], default: int | None = None) -> int:
    """The value of ``size``.

    Args:
        size: a number, which is its own value, or a tree.
        bindings: the value of each symbol.
        default: the value of symbols that ``bindings`` lacks.

    Raises:
        UnboundSymbol: where a symbol has neither.
        ZeroDivisionError: where these values divide by zero.
    """
    return int(_value(size, bindings, default)) if isinstance(size, Sym) else size


def number(
    x: Sym | int | float, bindings: Mapping[str, int], default: int | None = None
) -> int | float:
    """The value of ``x``, which need not be whole; otherwise as ``evaluate``."""
    found: int | float = _value(x, bindings, default)
    return found


def _value(x: Sym | int | float | str, bindings: Mapping[str, int], default: int | None) -> Any:
    if not isinstance(x, Sym):
        return x
    if x.op != "symbol":
        return apply(x.op, [_value(a, bindings, default) for a in x.args])
    try:
        return bindings[x.name]
    except KeyError:
        if default is None:
            raise UnboundSymbol(x.name) from None
        return default


def linear(size: Size) -> tuple[dict[str, int], int] | None:
    """``size`` as a sum of multiples of symbols and a constant: the factor of each symbol, and the
    constant; None where it is no such sum for all values of the symbols."""
    if not isinstance(size, Sym):
        return {}, size
    if size.op == "symbol":
        return {size.name: 1}, 0
    sides = [linear(a) if isinstance(a, (Sym, int)) else None for a in size.args]
    if any(s is None for s in sides):
        return None
    (left, a), *rest = (s for s in sides if s is not None)
    if size.op == _NEGATION:
        return {k: -v for k, v in left.items()}, -a
    if size.op not in ("+", "-", "*", "//"):
        return None
    right, b = rest[0]
    if size.op in ("+", "-"):
        sign = 1 if size.op == "+" else -1
        return {
            k: left.get(k, 0) + sign * right.get(k, 0) for k in dict.fromkeys((*left, *right))
        }, a + sign * b
    if size.op == "*" and (not left or not right):
        many, factor = (left or right), (b if left else a)
        return {k: v * factor for k, v in many.items()}, a * b
    if size.op == "//" and not right and b > 0 and not any(v % b for v in left.values()):
        return {k: v // b for k, v in left.items()}, a // b
    return None


def parse_size(text: str) -> Size:
    """The size that ``text`` prints: an integer, or an expression of symbols and the operations of
    ``Sym``. Raises ValueError for anything else; nothing in ``text`` is run."""
    if re.fullmatch(r"\d+", text):
        return int(text)
    try:
        made = _tree(ast.parse(text.strip(), mode="eval").body)
    except (
        SyntaxError,
        ZeroDivisionError,
        OverflowError,
        RecursionError,
        MemoryError,
        TypeError,
    ) as wrong:
        raise ValueError(f"{text!r} is no size") from wrong
    if isinstance(made, float) or (isinstance(made, Sym) and not made.is_whole):
        raise ValueError(f"{text!r} is no size: it need not be a whole number")
    return made


_SIGNS: dict[type, str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Div: "/",
    ast.Pow: "**",
}


def _tree(e: ast.expr) -> Sym | int | float:
    if isinstance(e, ast.Constant) and type(e.value) in (int, float):
        return e.value  # type: ignore[return-value]
    if isinstance(e, ast.Name):
        return symbol(e.id)
    op, operands = _operation(e)
    args = [_tree(a) for a in operands]
    if op == "**" and not (isinstance(args[1], int) and 0 <= args[1] < 16):
        raise ValueError(f"{ast.unparse(e)!r} is no size")
    return operation(op, *args)


def _operation(e: ast.expr) -> tuple[str, list[ast.expr]]:
    """The operation at the top of ``e``, and its operands."""
    if isinstance(e, ast.BinOp) and type(e.op) in _SIGNS:
        return _SIGNS[type(e.op)], [e.left, e.right]
    if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
        return _NEGATION, [e.operand]
    if isinstance(e, ast.Call) and e.args and not e.keywords:
        name = ast.unparse(e.func)
        if name in _CALLS:
            return name, e.args
    raise ValueError(f"{ast.unparse(e)!r} is no size")


def probe_of(size: Size) -> int:
    """The number that stands for ``size`` in comparisons."""
    return size.probe if isinstance(size, Sym) else size


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are equal for every value of the symbols (up to a coincidence of
    probes)."""
    return a == b or probe_of(a) == probe_of(b)


def identical(a: Size, b: Size) -> bool:
    """As ``same``, but only where the probe decides it: for sums and products. A size that is
    rounded or held below another is the same as one that is not at the probe point, and not at
    others."""
    return a == b or (probe_of(a) == probe_of(b) and _polynomial(a) and _polynomial(b))


def _polynomial(size: Sym | int | float | str) -> bool:
    if not isinstance(size, Sym):
        return isinstance(size, int)
    return size.op == "symbol" or (
        size.op in ("+", "-", "*", _NEGATION) and all(map(_polynomial, size.args))
    )


def is_static(shape: Iterable[Size]) -> bool:
    """Whether no size in ``shape`` is symbolic."""
    return not any(isinstance(s, Sym) for s in shape)


def product(sizes: Iterable[Size]) -> Size:
    """The product of ``sizes``; 1 for none."""
    out: Size = 1
    for size in sizes:
        out = size if out == 1 else out * size
    return out
