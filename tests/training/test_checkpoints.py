"""Checkpoints of a schedule: what every rank holds is written once, and any number of ranks goes on
from it with the module and the optimizer as they were."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from test_many_ranks import Net, X, digest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import irprune
from irprune.choice.plan import Plan
from irprune.errors import IrpruneError
from irprune.run.ranks import ALONE
from irprune.training.checkpoint import Checkpoint
from irprune.training.optimizer import OptimizerState

STEPS = 3


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-2, betas=(0.8, 0.9))


def learned(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """The optimizer's state by the names of parameters, whole."""
    out = {}
    for name, p in module.named_parameters():
        for key, value in optimizer.state[p].items():
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            out[f"{name} {key}"] = whole.tolist()
    return out


def run(folder: str, stop: int, sharded: bool = False) -> list[tuple[str, Any, float]]:
    """Of each step the module as it begins, the optimizer's state and its learning rate."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank, size = dist.get_rank(), dist.get_world_size()
    found = []
    cuts = irprune.schedule(
        Net().eval(), (X[:2],), ratio=0.5, steps=STEPS, checkpoint=folder, proof=False
    )
    for number, pruned in enumerate(cuts):
        begun, module = digest(pruned.module), pruned.module
        wrapped: nn.Module = module
        if sharded:
            wrapped = fully_shard(module, mesh=init_device_mesh("cpu", (size,)))
        optimizer = irprune.step_optimizer(pruned, adamw, module)
        group = optimizer.param_groups[0]
        found.append((begun, learned(optimizer, module), group["lr"]))
        assert group["betas"] == (0.8, 0.9)
        if number == stop:
            break
        if not sharded:
            wrapped = DistributedDataParallel(module)
        wrapped.train()
        for _ in range(2):
            optimizer.zero_grad()
            wrapped(X[rank::size]).square().mean().backward()
            optimizer.step()
        module.eval()
        group["lr"] /= 2
    return found


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_any_number_of_ranks_goes_on_from_what_two_have_kept(tmp_path: Path, sharded: bool) -> None:
    whole = on_ranks(2, run, str(tmp_path / "whole"), 9, sharded)
    # Stops while the third module is trained, before it is kept
    begun = on_ranks(2, run, str(tmp_path / "kept"), 2, sharded)
    assert all(r.value is not None for r in (*whole, *begun)), (whole, begun)
    assert whole[0].value == whole[1].value and len(whole[0].value) == STEPS
    assert begun[0].value == whole[0].value
    first, second, third = whole[0].value
    assert first[1] == {} and second[1] and third[1]
    assert [step[2] for step in whole[0].value] == [1e-2, 5e-3, 2.5e-3]
    for size in (1, 3):
        for rank in on_ranks(size, run, str(tmp_path / "kept"), 0, sharded, group=True):
            assert rank.value == [third], rank


def kept_by_two(folder: str) -> list[str]:
    """The files of a checkpoint of sharded parameters, and what lies on each rank."""
    run(folder, 1, sharded=True)
    (state,) = Path(folder).glob("state-*")
    return sorted(p.name for p in state.iterdir())


def test_each_rank_writes_its_shards_and_one_the_plans(tmp_path: Path) -> None:
    for rank in on_ranks(2, kept_by_two, str(tmp_path)):
        assert rank.value == [".metadata", "__0_0.distcp", "__1_0.distcp"], rank
    assert sorted(p.name for p in tmp_path.iterdir())[0] == "plans.json"
    assert len(list(tmp_path.iterdir())) == 2


# -- one process -----------------------------------------------------------------------------------

STATE = {
    "w": torch.arange(6.0),
    "b": torch.tensor([1, 2]),
    "h": torch.ones(3, dtype=torch.bfloat16),
}
PLAN = Plan("0" * 16, "net", ())
LEARNED = OptimizerState(
    [{"lr": 0.5, "betas": [0.8, 0.9]}],
    {"w": {"step": torch.tensor(3.0), "exp_avg": torch.ones(6), "count": 4}},
    {"w": torch.Size([6])},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    place = Checkpoint(tmp_path / "run", {"steps": 3})
    assert place.read(ALONE).plans == []
    place.write(ALONE, [PLAN], STATE)
    place.write(ALONE, [PLAN, PLAN], STATE, LEARNED)
    assert len(list((tmp_path / "run").iterdir())) == 2
    held = place.read(ALONE)
    assert held.state is not None and held.optimizer is not None and len(held.plans) == 2
    for name, tensor in STATE.items():
        assert torch.equal(held.state[name], tensor) and held.state[name].dtype == tensor.dtype
    assert held.optimizer.settings == LEARNED.settings
    assert held.optimizer.shapes == LEARNED.shapes
    assert held.optimizer.values["w"].keys() == LEARNED.values["w"].keys()
    assert torch.equal(held.optimizer.values["w"]["exp_avg"], torch.ones(6))


class Hostile:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    place = Checkpoint(tmp_path / "run", {})
    place.write(ALONE, [PLAN], STATE)
    (state,) = (tmp_path / "run").glob("state-*")
    for hostile in (Hostile(tmp_path / "made"), [1, 2]):
        (state / ".metadata").write_bytes(pickle.dumps(hostile))
        with pytest.raises(IrpruneError, match="the checkpoint cannot be read"):
            place.read(ALONE)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("spoilt", ["plans", "metadata", "numbers", "state"])
def test_a_spoilt_checkpoint_is_one_line(tmp_path: Path, spoilt: str) -> None:
    place = Checkpoint(tmp_path, {})
    place.write(ALONE, [PLAN], STATE)
    (state,) = tmp_path.glob("state-*")
    if spoilt == "plans":
        (tmp_path / "plans.json").write_text("{}")
    if spoilt == "metadata":
        (state / ".metadata").write_bytes(b"")
    if spoilt == "numbers":
        (state / "__0_0.distcp").write_bytes(b"nothing")
    if spoilt == "state":
        told = json.loads((tmp_path / "plans.json").read_text())
        (tmp_path / "plans.json").write_text(json.dumps({**told, "state": "state-9"}))
    with pytest.raises(IrpruneError, match=r"the checkpoint cannot be read.*start over") as said:
        place.read(ALONE)
    assert "\n" not in str(said.value)


def test_an_optimizer_belongs_to_a_step() -> None:
    pruned = irprune.prune(Net().eval(), (X[:2],), ratio=0.5, proof=False)
    with pytest.raises(IrpruneError, match="no step of a schedule"):
        irprune.step_optimizer(pruned, adamw)
    (step,) = irprune.schedule(Net().eval(), (X[:2],), ratio=0.5, steps=1, proof=False)
    with pytest.raises(IrpruneError, match="that the module lacks"):
        irprune.step_optimizer(step, lambda p: adamw(list(Net().parameters())))
