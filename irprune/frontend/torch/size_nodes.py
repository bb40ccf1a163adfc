"""Sizes as the user's ``forward`` sees them while it is captured: ``torch.SymInt`` over expressions
of ``OpenSizes``.

Arithmetic makes expressions. What turns a size into a plain number or a truth value (``int()``,
``range``, ``if``) is recorded as a guard, with the user's line. Torch's own questions that have a
safe answer (``statically_known_true``) get that and record nothing."""

from __future__ import annotations

import dis
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch

from irprune.ir.guards import NEGATED
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size, Sym

__all__ = ["SizeNode", "StrideRead", "as_torch", "expression_of", "stride"]

Real = Size | float
_ASSIGNS = dis.opmap["STORE_SUBSCR"]
Text = str  # the node has a method of that name


class StrideRead(Exception):
    """Forward computes with strides of a tensor whose sizes are open."""

    def __init__(self) -> None:
        super().__init__("forward computes with the strides of a tensor")


class _Node:
    """What torch asks of the node behind a SymInt, SymFloat or SymBool."""

    __slots__ = ("sizes",)

    def __init__(self, sizes: OpenSizes) -> None:
        self.sizes = sizes

    def is_int(self) -> bool:
        return False

    def is_float(self) -> bool:
        return False

    def is_bool(self) -> bool:
        return False

    def is_nested_int(self) -> bool:
        return False

    def nested_int(self) -> None:
        return None

    def is_symbolic(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return False

    def has_hint(self) -> bool:
        return True

    def clone(self) -> _Node:
        return self

    def maybe_as_int(self) -> None:
        return None

    def maybe_as_float(self) -> None:
        return None

    def maybe_as_bool(self) -> None:
        return None

    def constant_int(self) -> None:
        return None

    def constant_bool(self) -> None:
        return None

    def wrap_int(self, x: int) -> SizeNode:
        return SizeNode(self.sizes, x)

    def wrap_float(self, x: float) -> SizeNode:
        return SizeNode(self.sizes, x)

    def wrap_bool(self, x: bool) -> _Truth:
        return _Truth(self.sizes, [], x)

    def _graph_repr(self) -> str:
        return self.str()

    def str(self) -> str:
        raise NotImplementedError


class SizeNode(_Node):
    """A size, or a real number computed from sizes."""

    __slots__ = ("expression", "whole")

    def __init__(self, sizes: OpenSizes, expression: Real) -> None:
        self.sizes, self.expression = sizes, expression
        e = expression
        self.whole = e.is_whole if isinstance(e, Sym) else isinstance(e, int)

    @property
    def hint(self) -> Any:
        return self.sizes.value(self.expression)

    def str(self) -> str:
        """The expression; of one that depends on values the number, since forward may look
        something up by it."""
        if self.sizes.is_of_values(self.expression) and not self.sizes.quiet:
            return str(self.sizes.fixed(self.expression))
        return str(self.expression)

    def is_int(self) -> bool:
        return bool(self.whole)

    def is_float(self) -> bool:
        return not self.whole

    def is_constant(self) -> bool:
        return not isinstance(self.expression, Sym)

    def maybe_as_int(self) -> Any:
        return self.expression if isinstance(self.expression, int) else None

    def maybe_as_float(self) -> Any:
        return self.expression if isinstance(self.expression, float) else None

    def int_(self) -> int:
        return int(self.sizes.fixed(self.expression))

    def guard_int(self, file: Any, line: Any) -> int:
        return self.int_()

    def guard_float(self, file: Any, line: Any) -> float:
        return float(self.sizes.fixed(self.expression))

    def _with(self, op: Text, *others: SizeNode) -> SizeNode:
        args = [self.expression, *(o.expression for o in others)]
        if any(isinstance(o, StrideNode) for o in others):
            if not self.sizes.quiet:
                raise StrideRead
            return StrideNode(self.sizes, 1)
        return SizeNode(self.sizes, self.sizes.of(op, *args))

    def _compared(self, relation: Text, other: SizeNode) -> _Truth:
        return _Truth(self.sizes, [(self.expression, relation, other.expression)])

    def sym_ite(self, then: SizeNode, otherwise: SizeNode) -> Any:
        raise NotImplementedError

    def sym_sum(self, args: Sequence[SizeNode]) -> SizeNode:
        first, *rest = args
        for other in rest:
            first = first._with("+", other)
        return first

    def is_integer(self) -> _Truth:
        if self.is_int():
            return _Truth(self.sizes, [], True)
        whole = self.sizes.of("math.floor", self.expression)
        return _Truth(self.sizes, [(self.expression, "==", whole)])

    def sym_float(self) -> SizeNode:
        return self if self.is_float() else self._with("float")

    def sym_int(self) -> SizeNode:
        return self if self.is_int() else self._with("math.trunc")

    def pos(self) -> SizeNode:
        return self

    def round(self, digits: int | None = None) -> SizeNode:
        if digits is not None:
            raise NotImplementedError("round to digits of a size that is open")
        return self if self.is_int() else self._with("round")

    # layout of a tensor with such sizes; operators never run on one
    def _layout(self, sizes: Any, strides: Any) -> _Truth:
        return _Truth(self.sizes, [], True)

    is_contiguous = is_channels_last_contiguous_2d = is_channels_last_contiguous_3d = _layout
    is_channels_last_strides_2d = is_channels_last_strides_3d = _layout
    is_non_overlapping_and_dense = _layout

    def is_non_overlapping_and_dense_indicator(self, sizes: Any, strides: Any) -> SizeNode:
        return SizeNode(self.sizes, 1)


def _operation(op: str) -> Any:
    def method(self: SizeNode, *others: SizeNode) -> SizeNode:
        return self._with(op, *others)

    return method


def _comparison(relation: str) -> Any:
    def method(self: SizeNode, other: SizeNode) -> _Truth:
        return self._compared(relation, other)

    return method


for _name, _op in {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "mod": "%",
    "floordiv": "//",
    "int_floordiv": "//",
    "truediv": "/",
    "int_truediv": "/",
    "float_truediv": "/",
    "pow": "**",
    "float_pow": "**",
    "pow_by_natural": "**",
    "neg": "neg",
    "abs": "abs",
    "floor": "math.floor",
    "ceil": "math.ceil",
    "trunc": "math.trunc",
    "sym_min": "min",
    "sym_max": "max",
}.items():
    setattr(SizeNode, _name, _operation(_op))
for _name, _op in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(SizeNode, _name, _comparison(_op))


class StrideNode(SizeNode):
    """A stride of a tensor whose sizes are open: torch may look at it, forward may not."""

    __slots__ = ()

    def is_constant(self) -> bool:
        return False

    def maybe_as_int(self) -> None:
        """None: torch would take it for the number that stands here."""
        return

    def _with(self, op: Text, *others: SizeNode) -> SizeNode:
        if not self.sizes.quiet:
            raise StrideRead
        return StrideNode(self.sizes, 1)

    def _compared(self, relation: Text, other: SizeNode) -> _Truth:
        return _Truth(self.sizes, [], True)

    def int_(self) -> int:
        raise StrideRead


class _Truth(_Node):
    """A truth value: comparisons, all of which hold (``every``) or not, or one that is known."""

    __slots__ = ("atoms", "truth")

    def __init__(
        self,
        sizes: OpenSizes,
        atoms: Sequence[tuple[Real, str, Real]],
        truth: bool | None = None,
    ) -> None:
        self.sizes, self.atoms = sizes, list(atoms)
        if truth is None:
            ((left, relation, right),) = atoms
            truth = sizes.value_of(left, relation, right)
        self.truth = truth

    @property
    def hint(self) -> bool:
        return self.truth

    def str(self) -> str:
        return " and ".join(f"{a} {r} {b}" for a, r, b in self.atoms) or str(self.truth)

    def is_bool(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return not self.atoms

    def maybe_as_bool(self) -> Any:
        return None if self.atoms else self.truth

    def guard_bool(self, file: Any, line: Any) -> bool:
        if self._of_assignment():
            return self.truth
        for atom in self.atoms:
            self.sizes.decided(*atom)
        return self.truth

    def _of_assignment(self) -> bool:
        """Whether torch asks if the first size of what ``x[i] = y`` assigns is 1, which it may then
        leave out, and it is not: written in whole it is assigned as well."""
        if len(self.atoms) != 1 or self.atoms[0][2] != 1:
            return False
        if (self.atoms[0][1], self.truth) not in (("==", False), ("!=", True)):
            return False
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        return frame is not None and frame.f_code.co_code[frame.f_lasti] == _ASSIGNS

    def bool_(self) -> bool:
        return self.guard_bool("", 0)

    def expect_true(self, file: Any, line: Any) -> bool:
        return self.guard_bool(file, line)

    def guard_size_oblivious(self, file: Any, line: Any) -> bool:
        return self.guard_bool(file, line)

    def _static(self) -> bool | None:
        if not self.atoms:
            return self.truth
        if len(self.atoms) > 1:
            return None
        return self.sizes.known(*self.atoms[0])

    def statically_known_true(self, file: Any, line: Any) -> bool:
        return self._static() is True

    def guard_or_false(self, file: Any, line: Any) -> bool:
        return self._static() is True

    def guard_or_true(self, file: Any, line: Any) -> bool:
        return self._static() is not False

    def sym_not(self) -> _Truth:
        if len(self.atoms) == 1:
            ((left, relation, right),) = self.atoms
            return _Truth(self.sizes, [(left, NEGATED[relation], right)])
        return _Truth(self.sizes, self.atoms, not self.truth)

    def _joined(self, other: _Truth, truth: bool) -> _Truth:
        return _Truth(self.sizes, [*self.atoms, *other.atoms], truth)

    def and_(self, other: _Truth) -> _Truth:
        return self._joined(other, self.truth and other.truth)

    def or_(self, other: _Truth) -> _Truth:
        return self._joined(other, self.truth or other.truth)

    sym_and, sym_or, bitwise_and, bitwise_or = and_, or_, and_, or_

    def eq(self, other: _Truth) -> _Truth:
        return self._joined(other, self.truth == other.truth)

    def ne(self, other: _Truth) -> _Truth:
        return self._joined(other, self.truth != other.truth)

    def sym_ite(self, then: SizeNode, otherwise: SizeNode) -> SizeNode:
        return then if self.guard_bool("", 0) else otherwise


def as_torch(size: Real, sizes: OpenSizes) -> Any:
    """``size`` as forward sees it."""
    made: Any = torch.SymInt
    return made(SizeNode(sizes, size)) if isinstance(size, Sym) else size


def stride(sizes: OpenSizes) -> Any:
    """What stands for a stride that depends on open sizes."""
    made: Any = torch.SymInt
    return made(StrideNode(sizes, 1))


def expression_of(x: Any) -> Real:
    """The expression behind a size, or a real number, that forward handed to an operator. Raises
    StrideRead for a stride."""
    if isinstance(x.node, StrideNode):
        raise StrideRead
    found: Real = x.node.expression
    return found
