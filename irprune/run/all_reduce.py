"""How long the ranks of a group take to add up gradients, as DistributedDataParallel does: one
all-reduce after another of buckets of 25 MB."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from irprune.run.ranks import Ranks

__all__ = ["AllReduce", "measured"]

BUCKET = 25 << 20  # bytes, as DistributedDataParallel's bucket_cap_mb
_SECONDS = 1.0  # that the buckets of one size may take, about; the others are taken to be alike
_REPEATS = 5  # of which the median counts


@dataclass(frozen=True)
class AllReduce:
    """Seconds that an all-reduce of all gradients takes by itself, before and after the cut.

    DistributedDataParallel sends one bucket while the backward pass works on the next layers, so
    that a step takes longer by what the backward pass does not hide: between nothing and this.

    Attributes:
        before: Of the gradients of the original.
        after: Of those of the pruned model.
        ranks: How many add them up.
        backend: What sends them: gloo, nccl, mpi.
        device: Where they lie: cpu or cuda.
    """

    before: float
    after: float
    ranks: int
    backend: str
    device: str

    def __str__(self) -> str:
        return (
            f"{self.before * 1e3:.3g} -> {self.after * 1e3:.3g} ms for the gradients, on "
            f"{self.ranks} ranks ({self.backend}, {self.device}), less what backward overlaps"
        )


def measured(ranks: Ranks, sizes: Sequence[int]) -> AllReduce | None:
    """What the group that the ranks are takes for gradients of so many bytes, before and after.

    Args:
        ranks: All of them call this at the same time.
        sizes: Bytes before, and after.

    Returns:
        The times of the first rank, on all; None where there is but one.
    """
    if ranks.size == 1:
        return None
    import torch
    import torch.distributed as dist

    backend = str(dist.get_backend())
    device = "cuda" if "nccl" in backend and torch.cuda.is_available() else "cpu"
    before, after = (_seconds(ranks, size, device) for size in sizes)
    return ranks.first(AllReduce(before, after, ranks.size, backend, device))


def _seconds(ranks: Ranks, size: int, device: str) -> float:
    """Of gradients of ``size`` bytes."""
    whole, rest = divmod(size, BUCKET)
    buckets = ([BUCKET] if whole else []) + ([rest] if rest else [])
    counts = ([whole] if whole else []) + ([1] if rest else [])
    return sum(
        count * _bucket(ranks, held, device) for held, count in zip(buckets, counts, strict=True)
    )


def _bucket(ranks: Ranks, size: int, device: str) -> float:
    """The median of a bucket of ``size`` bytes, on the slowest rank."""
    import torch

    bucket = torch.zeros(max(1, size // 4), device=device)
    took: list[float] = []
    while len(took) < 1 + _REPEATS:  # the first one makes the connections
        took.append(max(ranks.gather(ranks.all_reduce(bucket))))
        if sum(took) > _SECONDS and len(took) > 1:
            break
    return statistics.median(took[1:])
