"""Models that are sharded over ranks are pruned where they lie, with the whole model's plan."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import nn

import irprune
from irprune.errors import IrpruneError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)
        self.register_buffer("shift", torch.full((16,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x)))) + self.shift
        made: torch.Tensor = self.head(self.norm(x))
        return made


X = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
OPTIONS: list[dict[str, Any]] = [{"ratio": 0.5}, {"ratio": 0.5, "calibration": list(X.split(8))}]


def told(pruned: Any) -> tuple[str, list[float]]:
    with torch.no_grad():
        return json.dumps(pruned.plan.as_json()["choices"]), pruned.module(X).flatten().tolist()


def whole() -> list[Any]:
    return [told(irprune.prune(Net().eval(), (X[:2],), **o)) for o in OPTIONS]


def mesh() -> Any:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (dist.get_world_size(),))


def by_fsdp() -> list[Any]:
    """Pruned as it lies, after it has run; then filled into a sharded module of the user's own."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    def sharded(model: nn.Module) -> nn.Module:
        for part in list(model.children()):
            if isinstance(part, nn.Linear):
                fully_shard(part, mesh=mesh())
        return fully_shard(model, mesh=mesh())

    model = sharded(Net().eval())
    with torch.no_grad():
        before = model(X)
    found: list[Any] = []
    for options in OPTIONS:
        pruned = irprune.prune(model, (X[:2],), **options)
        found.append(told(pruned))
        assert type(pruned.module).__mro__[0] is not type(model)
        mine = sharded(copy.deepcopy(pruned.module).to("meta"))
        try:
            pruned.fill(mine)
            raise AssertionError("filled on the meta device")
        except IrpruneError as refused:
            assert "meta device" in str(refused)
        pruned.fill(mine.to_empty(device="cpu"))
        assert all(isinstance(p, DTensor) for p in mine.parameters())
        with torch.no_grad():
            assert torch.allclose(mine(X), pruned.module(X), atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(X), before) and isinstance(model.first.weight, DTensor)
    try:
        pruned.apply_to(model)
    except IrpruneError as refused:
        found.append(str(refused))
    return found


def by_tensor_parallel() -> list[Any]:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = parallelize_module(
        Net().eval(), mesh(), {"first": ColwiseParallel(), "second": RowwiseParallel()}
    )
    return [told(irprune.prune(model, (X[:2],), **o)) for o in OPTIONS]


@pytest.fixture(scope="module")
def plain() -> Any:
    (alone,) = on_ranks(1, whole)
    assert alone.value is not None, alone
    return alone.value


def test_a_module_of_fully_shard_has_the_plan_of_the_whole(plain: Any) -> None:
    for rank in on_ranks(2, by_fsdp):
        assert rank.value is not None, rank
        *found, refused = rank.value
        assert found == plain
        assert refused.startswith("the model is sharded")


def test_a_tensor_parallel_module_has_the_plan_of_the_whole(plain: Any) -> None:
    for rank in on_ranks(2, by_tensor_parallel):
        assert rank.value == plain, rank


def test_what_does_not_fit_is_not_filled() -> None:
    pruned = irprune.prune(Net().eval(), (X[:2],), ratio=0.5)
    with pytest.raises(IrpruneError, match=r"'first\.bias' has shape \[24\], not \[12\]"):
        pruned.fill(Net())
    with pytest.raises(IrpruneError, match=r"the module has no 'first\.bias'"):
        pruned.fill(nn.Identity())
    other = copy.deepcopy(pruned.module)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(pruned.fill(other)(X), pruned.module(X))
