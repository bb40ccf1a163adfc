"""The sizes of a call that are left open while it is captured, and what the program does with
them.

A size is a number or an expression over symbols; a symbol is a size of an input, or a size that a
node tells when it runs. ``OpenSizes`` does exact arithmetic on them: nothing is left out because it
vanishes for convenient sizes. Two expressions are taken as one where they agree at several points
that are far apart (small, odd, large numbers), which tells ``min(s, 512)`` and ``s // 7 * 7`` from
``s``.

What the program decides by a size (a branch, a loop, a number made of it) is a guard. In the end
``settle`` says which sizes are fixed by an equation, and which guards are left to check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import combinations
from math import lcm
from operator import eq
from typing import Any
from zlib import crc32

from irprune.ir.guards import NEGATED, RELATIONS, Fixed, Guard
from irprune.ir.size import Size, Sym, apply, number, operation, same, symbol, symbols

__all__ = ["DecidedByValues", "OpenSizes", "Settled", "rewrite"]

# spans of values that a symbol takes at the points of comparison; at the first all are 1
_SPANS = ((1, 2), (2, 40), (41, 400), (401, 3000), (10**5, 10**6), (10**9, 10**10))
_ENOUGH = 4  # points at which sides that cannot be computed everywhere must agree

Real = Size | float


@dataclass
class Settled:
    """What is known of the open sizes at the end of a capture: symbols that turned out to be
    another size, where in the inputs each stands (position, dimension), the dimensions that are
    fixed, and the guards that remain; ``asserted`` are those on sizes that depend on values, to be
    checked once these are known."""

    replaced: dict[str, Size] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    fixed: list[Fixed] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)
    asserted: list[Guard] = field(default_factory=list)


class DecidedByValues(Exception):
    """The program decides by a size that depends on the values of tensors, which it must not."""


class OpenSizes:
    """The symbols of one capture.

    ``where`` says which line of the user's program runs now; it is asked when a guard is made.
    ``unique`` makes a name that nothing else has."""

    def __init__(
        self,
        where: Callable[[], str] = lambda: "",
        unique: Callable[[str], str] = lambda name: name,
    ) -> None:
        self.where, self._unique = where, unique
        self.example: dict[str, int] = {}
        self.guards: dict[Guard, None] = {}  # what the program decides
        self.ties: dict[Guard, None] = {}  # what operators take to be equal
        self.quiet = False  # True while torch asks for its own sake, and nothing is decided
        self.by_no_values = False  # whether a decision by a size that depends on values ends it all
        self._inputs: dict[str, tuple[int, int]] = {}  # of each symbol: position of input, dim
        self._from: dict[str, frozenset[str]] = {}  # inputs' symbols that a told one depends on
        self._of_values: dict[str, None] = {}  # symbols of sizes that depend on values
        self._real: dict[str, int] = {}  # those that another number stands for
        self._points: list[dict[str, int]] = [{} for _ in _SPANS]
        self._first: dict[tuple[Any, ...], Real] = {}
        self._values: dict[Sym, tuple[Any, ...] | None] = {}
        self._in_example: dict[Sym, Any] = {}
        self._made: dict[tuple[Any, ...], Real] = {}

    # -- symbols -----------------------------------------------------------------------------------

    def of_input(self, name: str, position: int, dim: int, size: int) -> Sym:
        """A symbol for a size of an input, whose value in the example is ``size``."""
        made = self._new(name, size)
        self._inputs[made.name] = (position, dim)
        self._from[made.name] = frozenset((made.name,))
        return made

    def told(self, size: int, sources: Iterable[Any]) -> Sym:
        """A symbol for a size that a node tells when it runs; it depends on the symbols in
        ``sources``, nested lists of sizes."""
        listed = list(sources)
        if any(n in self._of_values for s in listed if isinstance(s, Sym) for n in symbols(s)):
            return self.of_values(size)
        made = self._new(f"n{len(self.example)}", size)
        self._from[made.name] = self.inputs_behind(listed)
        return made

    def of_values(self, size: int, real: int | None = None) -> Sym:
        """A symbol for a size, or a number, that depends on the values of tensors; ``size`` is what
        the example makes of it, or what stands for that where it is ``real``."""
        made = self._new(f"n{len(self.example)}", size)
        self._of_values[made.name] = None
        if real is not None and real != size:
            self._real[made.name] = real
        return made

    def really(self) -> dict[str, int]:
        """The value of each symbol in the example call, whatever stands for it."""
        return {**self.example, **self._real}

    def is_of_values(self, x: Any) -> bool:
        """Whether ``x``, a size or a guard, depends on the values of tensors."""
        names = x.symbols if isinstance(x, Guard) else symbols(x) if isinstance(x, Sym) else ()
        return any(n in self._of_values for n in names)

    def is_of_inputs(self, size: Sym) -> bool:
        """Whether ``size`` is made of sizes of inputs alone."""
        return all(n in self._inputs for n in symbols(size))

    def _new(self, name: str, size: int) -> Sym:
        name = self._unique(name)
        while name in self.example:
            name += "_"
        made = symbol(name)
        self.example[name] = size
        for k, ((low, high), point) in enumerate(zip(_SPANS, self._points, strict=True)):
            taken = set(point.values())
            value = low + crc32(f"{name}/{k}".encode()) % (high - low)
            while k and value in taken:
                value += 1
            point[name] = value
        self._first[(*(p[made.name] for p in self._points), int)] = made
        return made

    def inputs_behind(self, sizes: Any) -> frozenset[str]:
        """The inputs' symbols that sizes in nested lists depend on."""
        if isinstance(sizes, Sym):
            return frozenset().union(
                *(self._from.get(name, frozenset()) for name in symbols(sizes))
            )
        if isinstance(sizes, (list, tuple)):
            return frozenset().union(*(self.inputs_behind(s) for s in sizes))
        return frozenset()

    # -- arithmetic --------------------------------------------------------------------------------

    def _at_points(self, x: Real) -> tuple[Any, ...] | None:
        """The values of ``x`` at the points; None where one of them cannot be computed."""
        if not isinstance(x, Sym):
            return (x,) * len(_SPANS)
        if x in self._values:
            return self._values[x]
        found: tuple[Any, ...] | None = None
        if x.op == "symbol":
            found = tuple(p[x.name] for p in self._points)
        else:
            of = [self._at_points(a) for a in x.args if not isinstance(a, str)]
            operands = [values for values in of if values is not None]
            if len(operands) == len(of):
                with suppress(ArithmeticError, ValueError):
                    found = tuple(apply(x.op, at) for at in zip(*operands, strict=True))
        self._values[x] = found
        return found

    def of(self, op: str, *args: Real) -> Any:
        """``op`` over ``args``: a number where it is the same for all sizes, and the first
        expression with these values where there was one."""
        key = (op, *args, *map(type, args))
        if key in self._made:
            return self._made[key]
        made = operation(op, *args)
        if isinstance(made, Sym):
            values = self._at_points(made)
            if values is not None:
                if all(v == values[0] for v in values) and values[0] == self.value(made):
                    made = values[0]
                else:
                    # a whole number and a real one are not the same to the program
                    made = self._first.setdefault((*values, type(values[0])), made)
        self._made[key] = made
        return made

    def sum(self, sizes: Iterable[Size]) -> Size:
        """The sum of ``sizes``; 0 for none."""
        total: Size = 0
        for s in sizes:
            if not isinstance(s, Sym) and s < 0 and total != 0:
                total = self.of("-", total, -s)
            elif s != 0:
                total = s if total == 0 else self.of("+", total, s)
        return total

    def product(self, sizes: Iterable[Size]) -> Size:
        """The product of ``sizes``; 1 for none."""
        total: Size = 1
        for s in sizes:
            total = s if total == 1 else total if s == 1 else self.of("*", total, s)
        return total

    def value(self, x: Real) -> Any:
        """What ``x`` is in the example call."""
        if not isinstance(x, Sym):
            return x
        if x not in self._in_example:
            self._in_example[x] = (
                self.example[x.name]
                if x.op == "symbol"
                else apply(x.op, [self.value(a) for a in x.args if not isinstance(a, str)])
            )
        return self._in_example[x]

    def value_of(self, left: Real, relation: str, right: Real) -> bool:
        """Whether the relation holds in the example call."""
        return RELATIONS[relation](self.value(left), self.value(right))

    # -- guards ------------------------------------------------------------------------------------

    def decided(self, left: Real, relation: str, right: Real) -> bool:
        """Whether the relation holds in the example; from here on the capture depends on it."""
        truth = self.value_of(left, relation, right)
        if not self.quiet and (isinstance(left, Sym) or isinstance(right, Sym)):
            left, right = _plain(left), _plain(right)
            kept = Guard(left, relation if truth else NEGATED[relation], right)
            if not _always(kept):
                self.guards.setdefault(Guard(left, kept.relation, right, self.where()), None)
                if self.by_no_values and self.is_of_values(kept):
                    raise DecidedByValues(f"{kept} depends on values")
        return truth

    @contextmanager
    def because(self, why: str) -> Iterator[None]:
        """What is decided meanwhile is so for this reason, where no line of the user's says it."""
        before, self.where = self.where, lambda: why
        try:
            yield
        finally:
            self.where = before

    def fixed(self, x: Real) -> Any:
        """The number that ``x`` is in the example; from here on it must be that."""
        self.decided(x, "==", self.value(x))
        return self.value(x)

    def known(self, left: Real, relation: str, right: Real) -> bool | None:
        """Whether the relation holds for all sizes (True) or for none (False), as far as the points
        tell; None otherwise."""
        a, b = self._at_points(left), self._at_points(right)
        if a is None or b is None:
            return None
        found = {RELATIONS[relation](x, y) for x, y in zip(a, b, strict=True)}
        return found.pop() if len(found) == 1 and relation in ("==", "!=") else None

    def meet(self, a: Size, b: Size) -> Size:
        """The size of a dimension that an operator takes to be both ``a`` and ``b``, without
        broadcasting."""
        if a == b:
            return a
        if not (isinstance(a, Sym) or isinstance(b, Sym)):
            return a
        self.ties.setdefault(Guard(a, "==", b, self.where()), None)
        return a if isinstance(b, Sym) and isinstance(a, Sym) else b if isinstance(a, Sym) else a

    def broadcast(self, a: Size, b: Size) -> Size:
        """The size of a dimension where ``a`` meets ``b`` and 1 is stretched."""
        if a == b or (b == 1 and not isinstance(b, Sym)):
            return a
        if a == 1 and not isinstance(a, Sym):
            return b
        one, other = self.value(a) == 1, self.value(b) == 1
        if one != other:  # stretched in the example: whether it is at other sizes the program says
            self.ties.setdefault(Guard(a if one else b, "==", 1, self.where()), None)
            return b if one else a
        return self.meet(a, b)

    # -- the end -----------------------------------------------------------------------------------

    def settle(self) -> Settled:
        """Solve the equations among the guards and among what operators take to be equal.

        A size in an equation with a number is fixed at its value in the example, with every input
        size that it depends on; a symbol that equals an expression of others becomes it. A decision
        by a size that a node tells fixes what that depends on, because guards are checked before
        anything runs."""
        out = Settled()
        why: dict[str, str] = {}

        def close(names: Iterable[str], where: str) -> None:
            for n in names:
                if isinstance(out.replaced.get(n), int):
                    continue
                instead = out.replaced.get(n)
                why.setdefault(n, where)
                if instead is None:
                    out.replaced[n] = self.example[n]
                close([s for s in self._from.get(n, ()) if s != n], where)
                close(symbols(instead) if instead is not None else (), where)

        def is_told(guard: Guard) -> bool:
            return any(n not in self._inputs for n in guard.symbols)

        for guard in self.guards:
            if is_told(guard) and not self.is_of_values(guard):
                close(guard.symbols, guard.where)
        solved: list[Guard] = []
        pending = [
            g for g in (*self.guards, *self.ties) if g.relation == "==" and not self.is_of_values(g)
        ]
        changed = True
        while changed:
            changed, rest = False, []
            for guard in pending:
                now = _rewritten(guard, out.replaced)
                if not now.symbols:
                    continue
                if guard in self.guards and _is_of_multiples(now):
                    rest.append(guard)
                elif not (isinstance(now.left, Sym) and isinstance(now.right, Sym)):
                    needed = self._needed(now)
                    close(needed, now.where)
                    changed |= bool(needed)
                elif self._solve(now, out):
                    changed = True
                    solved.append(guard)
                elif guard in self.ties and not self._possible(now):
                    close(self._needed(now), now.where)
                    changed = True
                else:
                    rest.append(guard)
            pending = rest
        for name, sources in self._from.items():  # those of values are not among them
            if name not in self._inputs and all(
                not isinstance(rewrite(symbol(s), out.replaced), Sym) for s in sources
            ):
                out.replaced[name] = self.example[name]
        out.asserted = self._asserted(out.replaced)
        out.replaced = {n: _whole(rewrite(symbol(n), out.replaced)) for n in out.replaced}
        numbers = {n: s for n, s in out.replaced.items() if isinstance(s, int)}
        # what operators take to be equal they check themselves, but where one symbol became another
        checked = dict.fromkeys(
            g
            for g in (*self.guards, *(g for g in solved if not is_told(g)))
            if not self.is_of_values(g)
        )
        out.guards = _simplest([_rewritten(g, numbers) for g in checked])
        for name, (position, dim) in self._inputs.items():
            if name not in numbers:
                out.places[name] = position, dim
            else:
                out.fixed.append(Fixed(position, dim, self.example[name], why.get(name, "")))
        return out

    def _asserted(self, replaced: dict[str, Size]) -> list[Guard]:
        """The guards on sizes that depend on values. A size that must be a number becomes it, in
        ``replaced``; where two such sizes meet, the operator checks that itself."""
        ties = (g for g in self.ties if not (isinstance(g.left, Sym) and isinstance(g.right, Sym)))
        found = [g for g in dict.fromkeys((*self.guards, *ties)) if self.is_of_values(g)]
        fixed: list[Guard] = []
        for guard in found:
            names = guard.symbols
            if guard.relation != "==" or len(names) != 1 or names[0] in replaced:
                continue
            known = {names[0]: self.example[names[0]]}
            bare = isinstance(guard.left, Sym) and guard.left.name == names[0]
            if bare and not isinstance(guard.right, Sym):
                replaced[names[0]] = known[names[0]]
                fixed.append(guard)
        return [*fixed, *(g for g in found if _rewritten(g, replaced).symbols)]

    def _solve(self, guard: Guard, out: Settled) -> bool:
        """Let a symbol that stands alone on one side become the other side, or become another
        symbol where the sides are the same then."""
        for one, other in ((guard.right, guard.left), (guard.left, guard.right)):
            if (
                isinstance(one, Sym)
                and isinstance(other, Sym)
                and other.is_whole
                and one.name in self._inputs
                and one.name not in symbols(other)
                and all(n in self._inputs for n in symbols(other))
            ):
                out.replaced[one.name] = other
                return True
        if self._possible(guard):
            return False  # no symbol is another for that
        own = [n for n in guard.symbols if n in self._inputs]
        for a, b in combinations(own, 2):
            if self.example[a] == self.example[b] and self._identity(guard, {b: symbol(a)}):
                out.replaced[b] = symbol(a)
                return True
        return False

    def _possible(self, guard: Guard) -> bool:
        """Whether the sides are equal for a kind of sizes, not for the example's alone: where all
        divide, for small or large ones, or for those a little below the example's (that it is
        for sizes of 1 says little)."""
        if same(_whole(guard.left), _whole(guard.right)):
            return True
        a, b = self._at_points(guard.left), self._at_points(guard.right)
        if a is not None and b is not None and any(map(eq, a[1:], b[1:])):
            return True
        below = {n: size - 1 for n, size in self.example.items()}
        if any(below[n] < 2 for n in guard.symbols):
            return False
        with suppress(ArithmeticError, ValueError):
            return number(guard.left, below) == number(guard.right, below)
        return False

    def _identity(self, guard: Guard, replaced: Mapping[str, Size]) -> bool:
        """Whether the two sides are the same for all sizes once symbols are ``replaced``."""
        now = _rewritten(guard, replaced)
        steps = self._steps()
        found = []
        for values in self._points:
            point = {name: value * steps.get(name, 1) for name, value in values.items()}
            with suppress(ArithmeticError, ValueError):  # of no patches there is no share
                found.append(number(now.left, point) == number(now.right, point))
        return len(found) >= _ENOUGH and all(found)

    def _steps(self) -> dict[str, int]:
        """What the program holds sizes of inputs to be multiples of."""
        out: dict[str, int] = {}
        for guard in filter(_is_of_multiples, self.guards):
            assert isinstance(guard.left, Sym)
            size, step = guard.left.args
            if isinstance(size, Sym) and size.op == "symbol" and isinstance(step, int):
                out[size.name] = lcm(out.get(size.name, 1), step)
        return out

    def _needed(self, guard: Guard) -> Sequence[str]:
        """The fewest symbols that must have their value in the example for the sides to be the
        same; the batch last."""
        names = sorted(guard.symbols, key=lambda n: n in self._inputs and self._inputs[n][1] == 0)
        for count in range(min(len(names), 4)):
            for some in combinations(names, count):
                if self._identity(guard, {n: self.example[n] for n in some}):
                    return some
        return names


def _is_of_multiples(guard: Guard) -> bool:
    """Whether a size must divide, which many sizes do."""
    left = guard.left
    return isinstance(left, Sym) and left.op == "%" and guard.right == 0


def _plain(x: Real) -> Real:
    """One side of a comparison as a whole number where it is one."""
    if isinstance(x, Sym):
        inner = x.args[0]
        return inner if x.op == "float" and isinstance(inner, Sym) else x
    return int(x) if float(x).is_integer() else x


def _whole(x: Real) -> Size:
    return x if isinstance(x, Sym) else int(x)


_INFINITE = float("inf")


def _range(x: Real, least: int) -> tuple[float, float]:
    """Bounds of ``x`` where every symbol is at least ``least``, which is not negative."""
    if not isinstance(x, Sym):
        return x, x
    if x.op == "symbol":
        return least, _INFINITE
    bounds = [_range(a, least) for a in x.args if not isinstance(a, str)]
    (low, high), *others = bounds
    if x.op == "neg":
        return -high, -low
    if x.op in ("float", "math.trunc", "math.floor") and low >= 0:
        return low // 1, high
    if not others:
        return -_INFINITE, _INFINITE
    (below, above), *_ = others
    if x.op == "+":
        return low + below, high + above
    if x.op == "-":
        return low - above, high - below
    if x.op == "*" and low >= 0 and below >= 0:
        return low * below, high * above if high and above else 0
    if x.op in ("min", "max"):
        pick = min if x.op == "min" else max
        return pick(low, below), pick(high, above)
    if x.op == "//" and low >= 0 and below == above and above > 0:
        return low // below, high if high == _INFINITE else high // above
    if x.op == "%" and below > 0:
        return 0, above
    return -_INFINITE, _INFINITE


def _always(guard: Guard, least: int = 0) -> bool:
    """Whether the relation holds wherever every symbol is at least ``least``."""
    if guard.left == guard.right:
        return guard.relation in ("==", "<=", ">=")
    (low, high), (below, above) = _range(guard.left, least), _range(guard.right, least)
    match guard.relation:
        case ">":
            return low > above
        case ">=":
            return low >= above
        case "<":
            return high < below
        case "<=":
            return high <= below
        case "!=":
            return low > above or high < below
    return False


def _simplest(guards: Iterable[Guard]) -> list[Guard]:
    """The guards that can fail; those that only an empty input fails as one for each size."""
    out: dict[Guard, None] = {}
    seen: dict[tuple[Real, str, Real], None] = {}
    for guard in guards:
        if not guard.symbols or _always(guard):
            continue
        each = [guard]
        if _always(guard, 1):
            each = [Guard(symbol(n), ">", 0, guard.where) for n in guard.symbols]
        for one in each:
            key = (one.left, one.relation, one.right)
            if key not in seen:
                seen[key] = None
                out[one] = None
    return list(out)


def rewrite(x: Real, replaced: Mapping[str, Size], of: Callable[..., Real] | None = None) -> Real:
    """``x`` with symbols replaced, until none of them is left; ``of`` makes the expressions."""
    if not isinstance(x, Sym) or not any(n in replaced for n in symbols(x)):
        return x
    if x.op == "symbol":
        rest = {n: s for n, s in replaced.items() if n != x.name}
        return rewrite(replaced[x.name], rest, of)
    args = [rewrite(a, replaced, of) if isinstance(a, Sym) else a for a in x.args]
    return (of or _simply)(x.op, *args)


def _simply(op: str, *args: Any) -> Real:
    """``op`` over ``args`` without additions of 0 and products with 1."""
    x = operation(op, *args)
    if isinstance(x, Sym) and len(x.args) == 2:
        a, b = x.args
        if x.op in ("+", "-", "*", "//") and b == (0 if x.op in "+-" else 1):
            return a  # type: ignore[return-value]
        if x.op in ("+", "*") and a == (0 if x.op == "+" else 1):
            return b  # type: ignore[return-value]
    return x


def _rewritten(guard: Guard, replaced: Mapping[str, Size]) -> Guard:
    return Guard(
        rewrite(guard.left, replaced), guard.relation, rewrite(guard.right, replaced), guard.where
    )
