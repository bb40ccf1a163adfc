"""Training between steps on several ranks: the same module in each, gradients that agree, state
that is carried on, and a run that goes on with another number of ranks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks, torchrun
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import irprune
from irprune.errors import IrpruneError

RECIPES = Path(__file__).resolve().parents[2] / "models" / "recipes"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.last = nn.Linear(12, 24), nn.LayerNorm(24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        made: torch.Tensor = self.head(self.last(F.relu(self.inner(x))))
        return made


X = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def digest(module: nn.Module) -> str:
    made = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        made.update(name.encode() + tensor.detach().numpy().tobytes())
    return made.hexdigest()


def trained(module: nn.Module, wrapped: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """One step of SGD; the gradients."""
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    wrapped.train()
    wrapped(x).square().mean().backward()
    optimizer.step()
    module.eval()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


# -- schedule --------------------------------------------------------------------------------------


def steps_under_ddp(folder: str | None = None, stop: int = 9) -> dict[str, Any]:
    import torch.distributed as dist

    rank, size = dist.get_rank(), dist.get_world_size()
    modules, grads = [], []
    cuts = irprune.schedule(Net().eval(), (X[:2],), ratio=0.5, steps=3, checkpoint=folder)
    for number, pruned in enumerate(cuts):
        modules.append(digest(pruned.module))
        if number == stop:
            break
        ddp = DistributedDataParallel(pruned.module)
        with torch.autocast("cpu", torch.bfloat16, enabled=number == 1):
            made = trained(pruned.module, ddp, X[rank::size])
        grads.append([g.numpy() for g in made])
    return {"modules": modules, "grads": grads, "sizes": pruned.report.params.after}


def test_every_rank_has_the_same_module_and_the_same_gradients_in_each_step() -> None:
    first, second = on_ranks(2, steps_under_ddp)
    assert first.value is not None and second.value is not None, (first, second)
    assert first.value["modules"] == second.value["modules"]
    assert len(set(first.value["modules"])) == 3 and len(first.value["grads"]) == 3
    for one, two in zip(first.value["grads"], second.value["grads"], strict=True):
        assert all((a == b).all() for a, b in zip(one, two, strict=True))


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    whole = on_ranks(2, steps_under_ddp)
    begun = on_ranks(2, steps_under_ddp, str(tmp_path), 1)
    assert all(r.value is not None for r in (*whole, *begun)), (whole, begun)
    assert begun[0].value["modules"] == whole[0].value["modules"][:2]
    goes_on = on_ranks(1, steps_under_ddp, str(tmp_path), group=True)
    assert goes_on[0].value is not None, goes_on
    assert goes_on[0].value["modules"][0] == whole[0].value["modules"][1]
    assert goes_on[0].value["sizes"] == whole[0].value["sizes"]


def steps_in_mixed_precision(kind: str) -> list[Any]:
    """Of each step the gradients, and whether a step of the optimizer was made."""
    import torch.distributed as dist

    rank, size = dist.get_rank(), dist.get_world_size()
    half = torch.bfloat16 if kind == "bf16" else torch.float32
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=kind == "scaler")
    found = []
    cuts = irprune.schedule(Net().eval().to(half), (X[:2].to(half),), ratio=0.5, steps=3)
    for pruned in cuts:
        optimizer = irprune.step_optimizer(pruned, lambda p: torch.optim.AdamW(p, 1e-2))
        ddp = DistributedDataParallel(pruned.module)
        ddp.train()
        before = digest_of_bits(pruned.module)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "bf16"):
            loss = ddp(X[rank::size].to(half)).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        pruned.module.eval()
        kinds = {p.dtype for p in pruned.module.parameters()}
        assert kinds == {half} and digest_of_bits(pruned.module) != before
        assert all(bool(p.isfinite().all()) for p in pruned.module.parameters())
        grads = [p.grad.float().tolist() for p in pruned.module.parameters() if p.grad is not None]
        found.append((grads, scaler.get_scale(), digest_of_bits(pruned.module)))
    return found


def digest_of_bits(module: nn.Module) -> str:
    made = hashlib.sha256()
    for tensor in module.parameters():
        made.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


@pytest.mark.parametrize("kind", ["autocast", "scaler", "bf16"])
def test_mixed_precision_between_steps_agrees_on_every_rank(kind: str) -> None:
    first, second = on_ranks(2, steps_in_mixed_precision, kind)
    assert first.value is not None, first
    assert first.value == second.value and len(first.value) == 3
    assert {scale for _, scale, _ in first.value} == {256.0 if kind == "scaler" else 1.0}


def wrong_uses() -> list[str]:
    """What is said to training without a wrapper, and to a cut inside a live one."""
    import torch.distributed as dist

    said = []
    try:
        for pruned in irprune.schedule(Net().eval(), (X[:2],), ratio=0.5, steps=2):
            trained(pruned.module, pruned.module, X[dist.get_rank() :: 2])
    except IrpruneError as error:
        said.append(str(error))
    model = Net().eval()
    pruned = irprune.prune(model, (X[:2],), ratio=0.5)
    before = digest(model)
    ddp = DistributedDataParallel(model)
    try:
        pruned.apply_to(ddp.module)
    except IrpruneError as error:
        said.append(str(error))
    assert digest(model) == before
    del ddp
    pruned.apply_to(model)
    grads = trained(model, DistributedDataParallel(model), X[dist.get_rank() :: 2])
    every: list[Any] = [None, None]
    dist.all_gather_object(every, [g.numpy().tobytes() for g in grads])
    assert every[0] == every[1]
    return said


def test_training_apart_and_cutting_inside_a_live_wrapper_are_refused() -> None:
    for rank in on_ranks(2, wrong_uses):
        assert rank.value is not None, rank
        apart, live = rank.value
        assert apart.startswith("the trained parameters of rank 1 are not those of rank 0")
        assert live.startswith("the model is held by DistributedDataParallel")
        assert "delete the wrapper" in live


# -- optimizers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, 1e-2, betas=(0.8, 0.9), weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam([{"params": list(p), "lr": 3e-3}], amsgrad=True),
        lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5),
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_the_state_of_an_optimizer_is_cut_as_its_parameters_are(make: Any, in_place: bool) -> None:
    model = Net()
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    model.eval()
    old = {n: dict(optimizer.state[p]) for n, p in model.named_parameters()}
    before = dict(model.named_parameters())
    pruned = irprune.prune(model, (X[:2],), ratio=0.5)
    after = pruned.apply_to(model) if in_place else pruned.module
    made = irprune.carry_optimizer(pruned, optimizer, before, after)
    assert type(made) is type(optimizer)
    mine, theirs = made.param_groups[0], optimizer.param_groups[0]
    assert {k: v for k, v in mine.items() if k != "params"} == {
        k: v for k, v in theirs.items() if k != "params"
    }
    seen = 0
    for name, p in after.named_parameters():
        for key, value in made.state[p].items():
            whole = old[name][key]
            if not isinstance(whole, torch.Tensor) or whole.dim() == 0:
                assert value == whole
                continue
            for dim, kept in enumerate(pruned.kept.get(name, [None] * whole.dim())):
                if kept is not None:
                    whole = whole.index_select(dim, torch.tensor(kept))
            assert torch.equal(value, whole) and value.shape == p.shape
            seen += 1
    assert seen >= 8
    after.train()
    after(X).square().mean().backward()
    made.step()


def test_an_optimizer_of_another_module_is_refused() -> None:
    model = Net().eval()
    pruned = irprune.prune(model, (X[:2],), ratio=0.5)
    with pytest.raises(IrpruneError, match=r"holds a parameter of shape .* that the module lacks"):
        irprune.carry_optimizer(pruned, torch.optim.SGD(Net().parameters(), 0.1), model)


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddp.py", "fsdp.py"])
def test_a_recipe_runs_on_two_ranks(name: str, tmp_path: Path) -> None:
    made = torchrun(2, [str(RECIPES / name), "1", "2"], tmp_path)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert lines[0].startswith("dense") and lines[-1].startswith("step 2 of 2")
    assert len(lines) == 3
