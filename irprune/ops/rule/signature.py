"""Axis rules said as strings, in the manner of einops: ``"n (g i) *s , (g o) i *k , (g o)? -> n (g
o) *t"``.

Operands are separated by commas and may be optional (``?`` after the operand's last token, or on
its own for one of any rank). A letter is a dimension, ``(a b)`` a product from outer to inner, ``(a
+ b)`` a sum, ``*s`` any number of dimensions, ``1`` a dimension of size 1, ``_`` a dimension that
freezes. A letter in operands but not in the results is contracted. A dimension of size 1 that meets
a larger letter broadcasts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from irprune.ir.axis import Axes, Axis, find
from irprune.ir.graph import Node, Value
from irprune.ir.size import Size, probe_of, product

__all__ = ["Signature", "Unsupported"]


class Unsupported(Exception):
    """Raised by a rule that meets a use it does not cover; the node's axes freeze with this text as
    the reason."""


_TOKEN = re.compile(r"\(([\w\s+]+)\)|(\*?\w+)|(\?)")


@dataclass(frozen=True)
class _Dim:
    """One token: letters, joined as a product or a sum; ``star`` stands for any number of
    dimensions."""

    letters: tuple[str, ...]
    kind: str = "product"
    star: bool = False


@dataclass(frozen=True)
class _Operand:
    dims: tuple[_Dim, ...]
    optional: bool

    def spread(self, rank: int) -> list[_Dim]:
        """The tokens with ``*s`` replaced by letters ``s0 s1 ...`` to make ``rank`` dimensions."""
        stars = [d for d in self.dims if d.star]
        if not stars:
            return list(self.dims)
        extra = rank - (len(self.dims) - 1)
        out: list[_Dim] = []
        for d in self.dims:
            out += [_Dim((f"{d.letters[0]}{k}",)) for k in range(extra)] if d.star else [d]
        return out


def _parse_side(text: str) -> tuple[_Operand, ...]:
    operands = []
    for part in text.split(","):
        dims: list[_Dim] = []
        optional = False
        for inside, word, mark in _TOKEN.findall(part):
            if mark:
                optional = True
            elif word:
                dims.append(_Dim((word.lstrip("*"),), star=word.startswith("*")))
            else:
                kind = "sum" if "+" in inside else "product"
                dims.append(_Dim(tuple(inside.replace("+", " ").split()), kind))
        rest = _TOKEN.sub("", part).strip()
        if rest:
            raise ValueError(f"{rest!r} in {part.strip()!r} says nothing about a dimension")
        operands.append(_Operand(tuple(dims), optional))
    return tuple(operands)


def _size(d: _Dim, size: Mapping[str, Size]) -> Size | None:
    """The size of a dimension whose letters have these sizes; None where one is not known."""
    if "_" in d.letters or any(x not in size for x in d.letters):
        return None
    parts = [size[x] for x in d.letters]
    return sum(parts[1:], parts[0]) if d.kind == "sum" else product(parts)


@dataclass(frozen=True)
class Signature:
    """A parsed signature; ``rule`` and ``macs`` are what an ``Op`` needs of it.

    ``fixed`` letters freeze (a name without star covers the letters it spreads to), ``sizes`` binds
    a letter to an integer attribute of the node, ``roles`` marks letters. Raises ValueError for a
    text that is no signature, and for letters that it does not have."""

    text: str
    fixed: tuple[str, ...] = ()
    sizes: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        has = {x for side in self.sides for o in side for d in o.dims for x in d.letters}
        told = {"fixed": self.fixed, "sizes": self.sizes, "roles": self.roles}
        for name, letters in told.items():
            strange = [x for x in letters if x not in has and x.rstrip("0123456789") not in has]
            if strange:
                raise ValueError(
                    f"{name} names {', '.join(strange)}, which {self.text!r} does not have"
                )

    @cached_property
    def sides(self) -> tuple[tuple[_Operand, ...], tuple[_Operand, ...]]:
        left, arrow, right = self.text.partition("->")
        if not arrow or "->" in right:
            raise ValueError(f"{self.text!r} is no signature: operands -> results")
        return _parse_side(left), _parse_side(right)

    @cached_property
    def counts(self) -> bool:
        """Whether the letters say how often is multiplied. They do not where the result has
        dimensions of its own and an operand ones that it shares with nothing, as a window has."""
        left, right = (
            [{x for d in o.dims for x in d.letters} for o in side] for side in self.sides
        )
        met = [x for operand in left for x in operand if x not in ("_", "1")]
        made = {x for result in right for x in result if x not in ("_", "1")}
        gone = [x for x in met if x not in made]
        once = [x for x in gone if met.count(x) == 1]
        return made <= set(met) or not once or len(once) == len(gone)

    def _is_fixed(self, letter: str) -> bool:
        return letter in self.fixed or letter.rstrip("0123456789") in self.fixed

    def contracted(self, node: Node) -> dict[int, list[tuple[int, str]]]:
        """For each operand position, the dimensions (index, letter) that are summed away."""
        left, right = self.sides
        made = {
            x
            for o, v in zip(right, node.outputs, strict=False)
            for d in o.spread(v.rank)
            for x in d.letters
        }
        out: dict[int, list[tuple[int, str]]] = {}
        for i, (operand, value) in enumerate(zip(left, node.inputs, strict=False)):
            if value is None:
                continue
            for k, d in enumerate(operand.spread(value.rank)):
                if any(x not in made and x != "_" for x in d.letters):
                    out.setdefault(i, []).append((k, d.letters[-1]))
        return out

    def _bind(
        self, axes: Axes, node: Node
    ) -> tuple[dict[str, Axis], list[tuple[Axis, _Dim, Value]]]:
        """Give each letter an axis: sizes from attributes, then whole dimensions, then products
        with one unknown."""
        left, _ = self.sides
        size: dict[str, Size] = {x: node.attrs[a] for x, a in self.sizes.items()}
        pairs: list[tuple[Axis, _Dim, Value]] = []
        for operand, value in zip(left, node.inputs, strict=False):
            if value is None:
                continue
            dims = operand.spread(value.rank)
            if len(dims) != value.rank:
                raise Unsupported(f"{node.op} over an operand of shape {value.type}")
            pairs += [(a, d, value) for a, d in zip(axes.of(value), dims, strict=True)]
        for a, d, _v in pairs:
            if len(d.letters) == 1 and probe_of(a.size) > probe_of(size.get(d.letters[0], 1)):
                size[d.letters[0]] = a.size
            elif len(d.letters) == 1:
                size.setdefault(d.letters[0], a.size)
        for a, d, _v in pairs:
            unknown = [x for x in d.letters if x not in size]
            if len(unknown) == 1 and d.kind == "product":
                size[unknown[0]] = a.size // product(size[x] for x in d.letters if x != unknown[0])
            elif len(unknown) == 1:
                size[unknown[0]] = a.size - sum(size[x] for x in d.letters if x != unknown[0])
        letters: dict[str, Axis] = {}
        for a, d, _v in pairs:
            if len(d.letters) == 1 and d.letters[0] != "_" and find(a).size == size[d.letters[0]]:
                letters.setdefault(d.letters[0], a)
        for x, s in size.items():
            if x not in letters and x != "_":
                letters[x] = axes.leaf(s)
        return letters, pairs

    def rule(self, axes: Axes, node: Node) -> None:
        """State the relations of ``node`` and set the axes of its results."""
        letters, pairs = self._bind(axes, node)
        for x, role in self.roles.items():
            inside = [
                y
                for _, d, _ in pairs
                if x in d.letters
                for y in d.letters
                if y != x and letters[y] is not axes.one
            ]
            # Groups of one channel each are channels
            if x in letters and letters[x] is not axes.one and inside:
                letters[x].role = letters[x].role or role
        for a, d, _value in pairs:
            if "_" in d.letters:
                axes.freeze(a, f"a dimension that {node.op} does not share")
                continue
            whole = self._join(axes, letters, d)
            if a.size != 1 or whole.size == 1:
                axes.unify(a, whole)
        for x, a in letters.items():
            if self._is_fixed(x):
                axes.freeze(
                    a, f"{'kernel size' if x.startswith('k') else 'positions'} of {node.op}"
                )
        _, right = self.sides
        for operand, value in zip(right, node.outputs, strict=False):
            out = []
            for d, s in zip(operand.spread(value.rank), value.shape, strict=True):
                if all(x in letters for x in d.letters):
                    out.append(self._join(axes, letters, d))
                else:
                    out.append(axes.frozen(s, f"positions of {node.op}"))
            value.axes = tuple(out)

    def shapes(
        self, node: Node, meet: Callable[[Size, Size], Size]
    ) -> list[tuple[Size | None, ...]]:
        """The shape of each result, from the sizes of the operands.

        Args:
            node: A use of the operator; the ranks of its results are known.
            meet: The size of a letter that stands at two sizes.

        Returns:
            A shape for each result, with None for sizes that the letters do not say; nothing where
            an operand does not fit.
        """
        left, right = self.sides
        size: dict[str, Size] = {x: node.attrs[a] for x, a in self.sizes.items()}
        pairs: list[tuple[Size, _Dim]] = []
        for operand, value in zip(left, node.inputs, strict=False):
            dims = operand.spread(value.rank) if value is not None else []
            if value is not None and len(dims) != value.rank:
                return []
            pairs += zip(value.shape if value is not None else (), dims, strict=True)
        for s, d in pairs:
            if len(d.letters) == 1:
                x = d.letters[0]
                size[x] = meet(size[x], s) if x in size else s
        for s, d in pairs:
            unknown = [x for x in d.letters if x not in size]
            known = [size[x] for x in d.letters if x in size]
            if len(unknown) == 1:
                whole = s // product(known) if d.kind == "product" else s - sum(known)
                size[unknown[0]] = whole
        return [
            tuple(_size(d, size) for d in operand.spread(value.rank))
            for operand, value in zip(right, node.outputs, strict=False)
        ]

    def _join(self, axes: Axes, letters: Mapping[str, Axis], d: _Dim) -> Axis:
        if len(d.letters) == 1:
            return letters[d.letters[0]]
        made = [letters[x] for x in d.letters]
        return axes.sum(made) if d.kind == "sum" else axes.product(made)

    def macs(self, node: Node) -> tuple[tuple[Axis, ...], ...]:
        """The product that counts the multiply-accumulates: the result's dimensions and what is
        summed away; none without a contraction."""
        left, right = self.sides
        if node.out.axes is None:
            return ()
        made = {
            x
            for o, v in zip(right, node.outputs, strict=False)
            for d in o.spread(v.rank)
            for x in d.letters
        }
        seen: dict[str, list[Axis]] = {}
        for operand, value in zip(left, node.inputs, strict=False):
            for d, a in (
                zip(operand.spread(value.rank), value.axes or (), strict=False)
                if value is not None
                else ()
            ):
                if len(d.letters) == 1 and d.letters[0] not in made:
                    seen.setdefault(d.letters[0], []).append(a)
        summed = [axes[0] for axes in seen.values() if len(axes) > 1]
        return ((*node.out.axes, *summed),) if summed else ()
