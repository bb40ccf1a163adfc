"""A model in stages over ranks is pruned as one graph, and each rank gets back its stage."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import nn

import irprune
from irprune.errors import IrpruneError

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))


class Two(nn.Module):
    """A stage that hands two values on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.skip = nn.Linear(8, 24), nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.relu(self.first(x)), self.skip(x)


class Sum(nn.Module):
    """A stage that takes two, with a parameter that it uses twice and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.norm = nn.Linear(24, 16), nn.BatchNorm1d(16)
        self.inner = nn.Linear(16, 16, bias=False)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.inner.weight

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.second(x) + skip))
        return torch.relu(self.again(torch.relu(self.inner(x))))


def stages() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        m.eval()
        for m in (Two(), Sum(), nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)))
    ]


OPTIONS: list[dict[str, Any]] = [{"ratio": 0.5}, {"ratio": 0.5, "calibration": list(X.split(8))}]


def hash_of(pruned: Any) -> str:
    return hashlib.sha256(json.dumps(pruned.plan.as_json()["choices"]).encode()).hexdigest()


def run(chain: list[nn.Module]) -> list[float]:
    made: Any = (X,)
    with torch.no_grad():
        for stage in chain:
            made = stage(*made) if isinstance(made, tuple) else stage(made)
    return made.flatten().tolist()


def whole() -> list[Any]:
    """The chain of the stages in one process."""
    from irprune.frontend.torch.stages import Chain

    found = []
    for options in OPTIONS:
        chain = Chain(stages())
        pruned = irprune.prune(chain, (X[:2],), **options)
        found.append((hash_of(pruned), run(list(pruned.apply_to(chain)))))
    return found


def apart() -> list[Any]:
    """Each rank with one stage; the pruned stages are gathered to be run."""
    import torch.distributed as dist

    rank, size = dist.get_rank(), dist.get_world_size()
    every = stages()
    mine = (
        every[rank] if rank < size - 1 else nn.Sequential(*every[rank:]) if rank < 2 else every[2]
    )
    if size == 2 and rank == 1:
        mine = Tail(every[1], every[2]).eval()
    before = {n: t.clone() for n, t in mine.state_dict().items()}
    found = []
    for options in OPTIONS:
        stage, pruned = irprune.prune_stages(mine, (X[:2],), **options)
        assert type(stage) is type(mine)
        gone = sum(p.numel() for p in mine.parameters()) - sum(
            p.numel() for p in stage.parameters()
        )
        assert gone > 0
        parts: list[Any] = [None] * size
        dist.all_gather_object(parts, stage)
        found.append((hash_of(pruned), run(parts)))
    assert all(torch.equal(before[n], t) for n, t in mine.state_dict().items())
    return found


class Tail(nn.Module):
    """Two stages on one rank."""

    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.two(self.one(x, skip))
        return made


def test_stages_over_ranks_have_the_plan_of_the_whole() -> None:
    (alone,) = on_ranks(1, whole)
    assert alone.value is not None, alone
    for rank in on_ranks(3, apart):
        assert rank.value == alone.value, rank
    for rank in on_ranks(2, apart):  # other names of the same weights: the same numbers
        assert rank.value is not None, rank
        assert [out for _, out in rank.value] == [out for _, out in alone.value]


def bad() -> list[str]:
    """A stage of a class that the others cannot import, on one rank."""
    import torch.distributed as dist

    class Local(nn.Linear):
        pass

    said = []
    for mine in (Local(8, 8), nn.Linear(8, 8, device="meta")):
        try:
            stage = mine if dist.get_rank() else nn.Linear(8, 8)
            irprune.prune_stages(stage, (X[:2],), ratio=0.5)
        except IrpruneError as error:
            said.append(str(error))
    return said


def test_stages_that_cannot_be_sent_are_one_line_on_every_rank() -> None:
    for rank in on_ranks(2, bad):
        assert rank.value is not None, rank
        local, meta = rank.value
        assert local.startswith("a stage cannot be sent to the other ranks")
        assert meta.startswith("a stage whose parameters are no plain tensors")
    with pytest.raises(IrpruneError, match="there is one rank, and so one stage"):
        irprune.prune_stages(nn.Linear(8, 8), (X[:2],))
