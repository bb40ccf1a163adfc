"""Gram matrices of activations: sums of products over rows that come chunk by chunk.

Products are taken about the mean of the first rows, so that single precision is enough where a
large constant lies under small changes, and the mean is given apart: with a bias the covariance is
what counts, without one the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["Gram", "sampled_rows", "signal"]


def sampled_rows(total: int, wanted: int, seed: int) -> torch.Tensor | None:
    """The numbers of about ``wanted`` of ``total`` rows, one at random in each of as many equal
    stretches; None for all of them. Rows at a fixed distance would be the same column of every
    image."""
    if total <= wanted:
        return None
    draw = torch.Generator().manual_seed(seed)
    place = torch.arange(wanted) + torch.rand(wanted, generator=draw, dtype=torch.float64)
    return (place * (total / wanted)).long().clamp(max=total - 1)


class Gram:
    """Sums over rows x [b, n, k] and, where they are given, over what is to be explained by them, r
    [b, n, o]; in float32, or in float64 for rows of it.

    ``products`` False keeps the mean and the variance of each input alone."""

    def __init__(self, products: bool = True) -> None:
        self.products = products
        self.count = 0.0  # of rows, or what they weigh
        self.peak: Any = None  # the highest square of each input [b, k]
        self._shift: Any = None
        self._sum: Any = 0.0
        self._xx: Any = None  # [b, k, k], or [b, k] without products
        self._xr: Any = None
        self._r: Any = 0.0

    def state(self) -> dict[str, Any]:
        """The sums, as plain data."""
        return dict(vars(self))

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Gram:
        """Those that ``state`` was taken of."""
        made = cls()
        vars(made).update(state)
        return made

    def add(
        self,
        x: torch.Tensor,
        r: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Rows x [b, n, k], with r [b, n, o]; each counts once, or for as much as ``weights`` [n]
        say."""
        b, n, k = x.shape
        if n == 0:
            return
        x = x if x.dtype == torch.float64 else x.float()
        self.saw(x.transpose(0, 1))
        if self._shift is None:
            self._shift = x.mean(1, keepdim=True)
            self._xx = x.new_zeros((b, k, k) if self.products else (b, k))
        x = x - self._shift
        once = x
        if weights is None:
            self.count += n
        else:
            column = weights.to(x.dtype)[:, None]
            self.count += float(weights.double().sum())
            x = x * column
        self._sum = self._sum + x.sum(1, dtype=torch.float64)
        if self.products:
            self._xx.baddbmm_(x.transpose(1, 2), once)
        else:
            self._xx += (x * once).sum(1)
        if r is not None:
            if self._xr is None:
                self._xr = x.new_zeros(b, k, r.shape[2])
            r = r.to(x.dtype)
            self._xr.baddbmm_(x.transpose(1, 2), r)
            r = r if weights is None else r * column
            self._r = self._r + r.sum(1, dtype=torch.float64)

    def saw(self, x: torch.Tensor) -> None:
        """Count rows x [n, b, k] for ``peak`` alone."""
        highest = x.abs().amax(0).double().square()
        self.peak = highest if self.peak is None else torch.maximum(self.peak, highest)

    def merged(self, other: Gram) -> Gram:
        """The sums over the rows of both; one of the two is used up for it."""
        if other._shift is None or self._shift is None:
            return self if other._shift is None else other
        move = other._shift - self._shift  # what their rows are further from our shift
        theirs, count = other._sum.to(move.dtype), other.count
        self.peak = torch.maximum(self.peak, other.peak)
        self._xx += other._xx
        if self.products:  # theirs move' + move theirs' + count move move', in one product
            own, across = move.transpose(1, 2), theirs[:, :, None]
            self._xx.baddbmm_(
                torch.cat((across + count * own, own), 2), torch.cat((move, theirs[:, None]), 1)
            )
        else:
            self._xx += 2 * theirs * move[:, 0] + count * move[:, 0].square()
        if self._xr is not None:
            self._xr += other._xr
            self._xr.baddbmm_(move.transpose(1, 2), other._r[:, None].to(move.dtype))
            self._r = self._r + other._r
        self._sum = self._sum + other._sum + count * move[:, 0].double()
        self.count += count
        return self

    @property
    def bytes(self) -> int:
        """What the sums take."""
        return int(sum(t.nbytes for t in (self._xx, self._xr) if t is not None))

    @property
    def mean(self) -> torch.Tensor:
        """Of each input, [b, k] in float64."""
        mean: torch.Tensor = self._shift[:, 0].double() + self._sum / self.count
        return mean

    @property
    def variance(self) -> torch.Tensor:
        """Of each input, [b, k] in float64."""
        raw = self._xx.diagonal(dim1=1, dim2=2) if self.products else self._xx
        variance: torch.Tensor = raw.double() / self.count - (self._sum / self.count).square()
        return variance.clamp(min=0)

    def covariance(self) -> torch.Tensor:
        """[b, k, k], of the rows' own precision. Needs ``products``."""
        d = (self._sum / self.count).to(self._xx.dtype)
        made: torch.Tensor = torch.baddbmm(
            self._xx, d[:, :, None], d[:, None], beta=1 / self.count, alpha=-1
        )
        return made

    def second_moment(self) -> torch.Tensor:
        """The mean of x x' [b, k, k], of the rows' own precision. Needs ``products``."""
        mean = self.mean.to(self._xx.dtype)
        return self.covariance().baddbmm_(mean[:, :, None], mean[:, None])

    def explained(self, centred: bool) -> torch.Tensor:
        """The mean of x r' [b, k, o] in float64, of what varies where ``centred``. Needs rows added
        with r."""
        d = self._sum / self.count
        made: torch.Tensor = self._xr.double() / self.count
        made = made - d[:, :, None] * self.target[:, None]
        return made if centred else made + self.mean[:, :, None] * self.target[:, None]

    @property
    def target(self) -> torch.Tensor:
        """The mean of r [b, o] in float64."""
        mean: torch.Tensor = self._r / self.count
        return mean


def signal(gram: Gram, centred: bool) -> torch.Tensor:
    """The mean diagonal of the covariance (or of the second moment) of each block [b], which a
    ridge is relative to, with what rounding leaves of a constant input as its least: below that
    nothing is known."""
    square = gram.mean.square().mean(1)
    own = gram.variance.mean(1) + (0 if centred else 1) * square
    return (own + 1e-8 * square).clamp(min=1e-30)
