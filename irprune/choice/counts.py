"""How many indices of each leaf are kept: exact targets made whole, within caps, in steps, with
errors carried along widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, gcd, lcm

from irprune.analysis.widths import Width
from irprune.ir.axis import Axis
from irprune.ir.size import probe_of

__all__ = ["Limits", "Rounder"]

_EPS = 1e-9  # 10 * (1 - 0.7) is 3.0000000000000004


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard bounds of every leaf's count: at least ``min_channels`` (and one), and at most
    ``max_ratio`` of it dropped."""

    min_channels: int = 1
    max_ratio: float = 1.0

    def low(self, size: int) -> int:
        """The smallest count allowed for a leaf of ``size``."""
        return min(size, max(1, self.min_channels, ceil(size * (1 - self.max_ratio) - _EPS)))


class Rounder:
    """Turns targets into counts. Built once for a graph; asked for every ratio that a search tries.

    ``sizes`` are the leaves that carry a ratio. With ``round_to`` of 1 a count is within one of its
    target, and the error is carried along the pieces of each width so that the width as a whole
    meets its own. With a larger one, or a ``step`` of their own, the widths that a contraction has
    go to the nearest multiple; leaves for which there is none stay whole. ``steps`` are those of
    leaves whose count itself must be a multiple, also where all of it is none."""

    def __init__(
        self,
        sizes: Mapping[Axis, int],
        widths: Sequence[Width],
        limits: Limits | None = None,
        round_to: int = 1,
        steps: Mapping[Axis, int] | None = None,
    ) -> None:
        self.sizes = dict(sizes)
        self.own = {x: s for x, s in (steps or {}).items() if s > 1 and x in sizes}
        self.low = {x: (limits or Limits()).low(n) for x, n in sizes.items()}
        self.round_to = round_to
        # Stable: graph order among equals
        self.widths = sorted(widths, key=lambda w: -len(w.terms))
        self.step = self._steps()
        # Leaves that somewhere are a dimension by themselves
        self.whole = {x for w in widths if len(w.terms) == 1 for x, _ in w.terms}
        self.pieces = [
            w
            for w in self.widths
            if w.matrix and any(x in sizes and x not in self.whole for x, _ in w.terms)
        ]
        loose = {
            x
            for w in self.pieces
            if self._wanted(w) > 1
            for x, _ in w.terms
            if x in sizes and x not in self.whole and x not in self.own
        }
        for w in self.pieces:
            for x, c in w.terms:
                if x in self.own:
                    wanted = self._wanted(w)
                    self.step[x] = lcm(self.step[x], wanted // gcd(c, wanted))
        # Leaves with no step of their own, fitted to the width they are a piece of
        self.loose = {x: None for x in sizes if x in loose}
        # By how much a count may be raised on its own
        self.growth = {x: step for x, step in self.step.items() if x not in loose}

    def _wanted(self, width: Width) -> int:
        """The multiple that a width should have."""
        return lcm(width.step, self.round_to)

    def levels(self, x: Axis) -> list[int]:
        """The counts that a leaf may have by itself, ascending: multiples within its caps, and all
        of it."""
        step = self.step[x]
        for w in self.pieces if x in self.loose else ():
            step = lcm(
                step, *(self._wanted(w) // gcd(c, self._wanted(w)) for y, c in w.terms if y is x)
            )
        below = [*range(-(-self.low[x] // step) * step, self.sizes[x], step)]
        return (
            below if x in self.own and self.sizes[x] % step and below else [*below, self.sizes[x]]
        )

    def _steps(self) -> dict[Axis, int]:
        """For each leaf the step at which all widths that it makes alone are multiples; 1 for a
        piece of wider ones."""
        matrix: dict[Axis, list[int]] = {}
        other: dict[Axis, list[int]] = {}
        for w in self.widths:
            if len(w.terms) == 1 and w.fixed == 0:
                ((x, c),) = w.terms
                (matrix if w.matrix else other).setdefault(x, []).append(
                    self._wanted(w) // gcd(c, self._wanted(w))
                )
        in_matrix = {x for w in self.widths if w.matrix for x, _ in w.terms}
        out = {}
        for x in self.sizes:
            out[x] = lcm(
                self.own.get(x, 1),
                *(matrix.get(x) or ([] if x in in_matrix else other.get(x, []))),
            )
        return out

    def counts(self, target: Mapping[Axis, float]) -> tuple[dict[Axis, int], dict[Axis, str]]:
        """Counts for exact ``target`` counts, and why leaves stay whole that should not."""
        return (
            self._stepped(target)
            if self.loose or any(s > 1 for s in self.step.values())
            else self._carried(target)
        )

    # -- without a step ----------------------------------------------------------------------------

    def _carried(self, target: Mapping[Axis, float]) -> tuple[dict[Axis, int], dict[Axis, str]]:
        out: dict[Axis, int] = {}
        for width in self.widths:
            error = 0.0  # what the pieces so far are short of, in units of the width
            for x, c in width.terms:
                want = target.get(x, float(probe_of(x.size)))
                if x in self.sizes and x not in out:
                    out[x] = self._near(x, want, want + error / c)
                error += c * (want - out.get(x, probe_of(x.size)))
        for x in self.sizes:
            if x not in out:
                out[x] = self._near(x, target[x], target[x])
        return out, {}

    def _near(self, x: Axis, exact: float, want: float) -> int:
        """The whole number nearest to ``want`` within one of ``exact`` (strictly, for a dimension
        of its own) and within the caps."""
        slack = -_EPS if x in self.whole else _EPS
        below, above = ceil(exact - 1 - slack), floor(exact + 1 + slack)
        n = min(max(round(want), below), above)
        return min(max(n, self.low[x]), self.sizes[x])

    # -- in steps ----------------------------------------------------------------------------------

    def _stepped(self, target: Mapping[Axis, float]) -> tuple[dict[Axis, int], dict[Axis, str]]:
        out: dict[Axis, int] = {}
        why: dict[Axis, str] = {}
        for x, size in self.sizes.items():
            if x in self.loose:
                continue
            n, reason = self._multiple(x, size, target[x])
            out[x] = n
            if reason:
                why[x] = reason
        for width in sorted(self.pieces, key=lambda w: sum(x in self.loose for x, _ in w.terms)):
            mine = {x: c for x, c in width.terms if x in self.loose and x not in out}
            if mine:
                total = width.fixed + sum(
                    c * out.get(x, probe_of(x.size)) for x, c in width.terms if x not in mine
                )
                self._fit(mine, total, self._wanted(width), target, out, why)
        return out, why

    def _multiple(self, x: Axis, size: int, exact: float) -> tuple[int, str]:
        step = self.step[x]
        n = step * max(1, floor(exact / step + 0.5))  # of two as near, the larger
        lowest = -(-self.low[x] // step) * step
        if n >= size and x in self.own and size % step and size // step * step >= lowest > 0:
            return size // step * step, ""
        if n >= size:
            return (
                size,
                ""
                if exact > size - _EPS
                else f"the nearest multiple of {step} to {exact:g} of {size} is {n}",
            )
        if lowest > size:
            return (
                size,
                f"no multiple of {step} lies between its smallest count {self.low[x]} and its size {size}",
            )
        return max(n, lowest), ""

    def _fit(
        self,
        mine: Mapping[Axis, int],
        base: int,
        step: int,
        target: Mapping[Axis, float],
        out: dict[Axis, int],
        why: dict[Axis, str],
    ) -> None:
        """Give the pieces ``mine`` of one width counts that make ``base`` plus them the nearest
        multiple."""
        wanted = base + sum(c * target[x] for x, c in mine.items())
        nearest = step * max(1, round(wanted / step))
        whole = base + sum(c * self.sizes[x] for x, c in mine.items())
        for goal in sorted(
            {nearest, nearest - step, nearest + step}, key=lambda g: (abs(g - wanted), g)
        ):
            if 0 < goal <= whole and (found := self._share(mine, goal - base, target)) is not None:
                out.update(found)
                return
        for x in mine:
            out[x] = self.sizes[x]
            why[x] = (
                f"the width of {whole} that it is a piece of cannot be made a multiple of {step}"
            )

    def _share(
        self, mine: Mapping[Axis, int], goal: int, target: Mapping[Axis, float]
    ) -> dict[Axis, int] | None:
        """Counts whose weighted sum is ``goal``, as near to the targets as whole numbers go; None
        where there are none."""
        wanted = sum(c * target[x] for x, c in mine.items())
        scale = goal / wanted if wanted else 1.0
        ideal = {
            x: min(max(target[x] * scale, float(self.low[x])), float(self.sizes[x])) for x in mine
        }
        out = {x: min(max(round(e), self.low[x]), self.sizes[x]) for x, e in ideal.items()}
        left = goal - sum(c * out[x] for x, c in mine.items())
        while left:
            sign = 1 if left > 0 else -1
            able = [
                x
                for x, c in mine.items()
                if c <= abs(left) and self.low[x] <= out[x] + sign <= self.sizes[x]
            ]
            if not able:
                return None
            # The first of equals: graph order
            x = max(able, key=lambda y: (ideal[y] - out[y]) * sign)
            out[x] += sign
            left -= sign * mine[x]
        return out
