"""Sizes of dimensions: a plain ``int``, or a ``Sym`` where the size is known only at run time.

A ``Sym`` carries its expression as text (it is printed into emitted code) and a *probe*: the
expression evaluated with a large number in place of each symbol. Two sizes are taken as equal when
their probes are, so that ``s0*s1`` and ``s1*s0`` agree without a computer algebra system."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from zlib import crc32

__all__ = ["Size", "Sym", "is_static", "probe_of", "product", "same", "symbol"]

_LEAST = 1009  # the smallest probe, in grains
# divisible by 1..12: `n // 7 * 7` of a probe is the probe again, as it is for the sizes that a
# model accepts
_GRAIN = 27720


@dataclass(frozen=True, slots=True)
class Sym:
    """A size known at run time: ``expr`` in Python syntax over symbol names, ``probe`` its value at
    the probe point."""

    expr: str
    probe: int = field(compare=True)

    def __str__(self) -> str:
        return self.expr

    def _with(self, other: Size, sign: str, value: int, swap: bool = False) -> Sym:
        left, right = (str(other), self.expr) if swap else (self.expr, str(other))
        return Sym(f"({left} {sign} {right})", value)

    def __add__(self, other: Size) -> Sym:
        return self if other == 0 else self._with(other, "+", self.probe + probe_of(other))

    def __radd__(self, other: Size) -> Sym:
        return (
            self if other == 0 else self._with(other, "+", self.probe + probe_of(other), swap=True)
        )

    def __sub__(self, other: Size) -> Size:
        value = self.probe - probe_of(other)
        if (
            isinstance(other, Sym) and abs(value) < _GRAIN
        ):  # the symbols cancel: what is left is a number
            return value
        return self if other == 0 else self._with(other, "-", value)

    def __rsub__(self, other: Size) -> Size:
        return self._with(other, "-", probe_of(other) - self.probe, swap=True)

    def __mul__(self, other: Size) -> Size:
        return (
            0
            if other == 0
            else self
            if other == 1
            else self._with(other, "*", self.probe * probe_of(other))
        )

    def __rmul__(self, other: Size) -> Size:
        return (
            0
            if other == 0
            else self
            if other == 1
            else self._with(other, "*", self.probe * probe_of(other), swap=True)
        )

    def __floordiv__(self, other: Size) -> Size:
        value, rest = divmod(self.probe, probe_of(other))
        if isinstance(other, Sym) and rest == 0 and value < _LEAST:  # the symbols cancel
            return value
        return self if other == 1 else self._with(other, "//", value)

    def __rfloordiv__(self, other: Size) -> Size:
        return self._with(other, "//", probe_of(other) // self.probe, swap=True)

    def __mod__(self, other: Size) -> Size:
        value = self.probe % probe_of(other)
        return value if value == 0 else self._with(other, "%", value)

    def __neg__(self) -> Sym:
        return Sym(f"(-{self.expr})", -self.probe)


Size = int | Sym


def symbol(name: str) -> Sym:
    """The symbol ``name``; the same name gives the same probe, different names almost surely
    different ones."""
    return Sym(name, _GRAIN * (_LEAST + crc32(name.encode()) % 8_999_993))


def probe_of(size: Size) -> int:
    """The number that stands for ``size`` in comparisons."""
    return size.probe if isinstance(size, Sym) else size


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are equal for every value of the symbols (up to a coincidence of
    probes)."""
    return a == b or probe_of(a) == probe_of(b)


def is_static(shape: Iterable[Size]) -> bool:
    """Whether no size in ``shape`` is symbolic."""
    return not any(isinstance(s, Sym) for s in shape)


def product(sizes: Iterable[Size]) -> Size:
    """The product of ``sizes``; 1 for none."""
    out: Size = 1
    for size in sizes:
        out = size if out == 1 else out * size
    return out
