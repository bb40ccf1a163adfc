"""Iterative pruning, penalties, masks and distillation: what they reach, and that they go on where
they stopped."""

from __future__ import annotations

import json
import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irprune import api, schedule
from irprune.emit.torch.module import emit_module
from irprune.errors import IrpruneError
from irprune.passes.mask import Mask, apply_masks
from irprune.run.ranks import ALONE
from irprune.training.checkpoint import Checkpoint
from irprune.training.distill import Distillation
from irprune.training.sparsity import BatchNormScale, GroupLasso, Growing


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 32, 3, padding=1)
        self.back = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.back(F.relu(self.inner(x)))).mean((2, 3)))


def one_step(module: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    module.train()
    module(x).square().mean().backward()
    optimizer.step()
    module.eval()


X = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1))


# -- schedule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", ["linear", "cubic", lambda t: t * t])
def test_the_last_step_has_the_size_that_was_asked_for(pace: Any) -> None:
    model = Net().eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    widths = []
    for pruned in schedule(model, (X[:2],), ratio=0.5, steps=4, pace=pace, proof=False):
        widths.append((pruned.module.stem.out_channels, pruned.module.inner.out_channels))
        one_step(pruned.module, X)
    assert widths[-1] == (8, 16) and len(widths) == 4
    assert widths == sorted(widths, reverse=True) and widths[0] != widths[-1]
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_budget_is_reached_and_never_overshot() -> None:
    model = Net().eval()
    whole = api.prune(model, (X[:2],), ratio=0.0, proof=False).report.macs.before
    shares = [
        p.report.macs.after / whole
        for p in schedule(model, (X[:2],), budget={"macs": 0.4}, steps=3)
    ]
    assert [round(s, 1) for s in shares] == [0.8, 0.6, 0.4] and shares[-1] <= 0.4


def test_training_between_steps_is_kept() -> None:
    seen = []
    for pruned in schedule(Net().eval(), (X[:2],), ratio=0.5, steps=2, proof=False):
        seen.append(float(pruned.module.head.bias[0].detach()))
        with torch.no_grad():
            pruned.module.head.bias.fill_(7.0)
    assert seen[0] != 7.0 and seen[1] == 7.0


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = Net().eval()

    def run(folder: Path, stop: int) -> list[Tensor]:
        out = []
        for i, pruned in enumerate(
            schedule(model, (X[:2],), ratio=0.5, steps=3, checkpoint=folder, proof=False)
        ):
            if i == stop:
                break
            one_step(pruned.module, X)
            out.append(pruned.module(X).detach())
        return out

    whole = run(tmp_path / "a", 9)
    # Stops while the third model is being trained, before it is kept
    first = run(tmp_path / "b", 2)
    rest = run(tmp_path / "b", 9)
    assert (
        len(whole) == 3 and len(first) == 2 and len(rest) == 1 and torch.equal(rest[-1], whole[-1])
    )
    assert run(tmp_path / "b", 9) == []
    with pytest.raises(IrpruneError, match="another schedule"):
        list(schedule(model, (X[:2],), ratio=0.6, steps=3, checkpoint=tmp_path / "b"))
    (tmp_path / "b" / "plans.json").write_text("{")
    with pytest.raises(IrpruneError, match="cannot be read"):
        list(schedule(model, (X[:2],), ratio=0.5, steps=3, checkpoint=tmp_path / "b"))


def test_each_step_says_how_good_it_is_beside_the_beginning() -> None:
    model = Net().eval()
    data = torch.randn(48, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    found = []
    for pruned in schedule(model, (X[:2],), ratio=0.75, steps=2, calibration=iter(data.split(8))):
        assert pruned.report.step is not None
        found.append(pruned.report.step)
        assert f"step        {len(found)} of 2" in str(pruned.report)
        with torch.no_grad():  # training that goes wrong
            pruned.module.get_submodule("head").weight.neg_()
    first, last = found
    assert first.samples == 48 and (last.number, last.steps) == (2, 2)
    assert first.before == first.began and first.after < first.began
    assert last.began == first.began and last.before < first.after  # what was trained counts
    plain = next(iter(schedule(model, (X[:2],), ratio=0.5, steps=2)))
    assert plain.report.step is None  # there are no data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a ratio or a budget"),
        ({"ratio": 0.5, "budget": {"macs": 0.5}}, "a ratio or a budget"),
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"ratio": 0.5, "steps": 0}, "steps is 0"),
        ({"ratio": 0.5, "pace": "slow"}, "pace is 'slow'"),
        ({"budget": {"time": 0.5}}, "no budget on 'time'"),
    ],
)
def test_bad_schedules_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IrpruneError, match=message):
        list(schedule(Net().eval(), (X[:2],), **options))


# -- penalties -------------------------------------------------------------------------------------


def norms(model: nn.Module, graph: Any) -> Tensor:
    """Norms of the inner channels, over everything that belongs to them."""
    inner, back = model.inner, model.back
    return (
        (inner.weight.square().sum((1, 2, 3)) + back.weight.square().sum((0, 2, 3))).detach().sqrt()
    )


def test_group_lasso_is_the_sum_of_norms_over_coupled_places() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    penalty = GroupLasso(api.capture(model, (torch.randn(2, 3),)), model, 0.1)
    a, b = model[0].weight, model[2].weight
    want = 0.1 * (3 + 2) ** 0.5 * (a.square().sum(1) + b.square().sum(0)).sqrt().sum()
    assert torch.allclose(penalty(), want, rtol=1e-5)
    penalty().backward()
    assert a.grad is not None and torch.allclose(
        a.grad[0] / a[0], (a.grad[0] / a[0])[0].expand(3), rtol=1e-4
    )


def test_group_lasso_drives_whole_channels_to_zero() -> None:
    model = Net()
    graph = api.capture(model.eval(), (X[:2],))
    penalty = GroupLasso(graph, model, 2e-3)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    before = norms(model, graph)
    for _ in range(60):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert float((norms(model, graph) / before).mean()) < 0.9


def test_growing_presses_on_the_weakest_alone() -> None:
    model = Net()
    graph = api.capture(model.eval(), (X[:2],))
    penalty = Growing(graph, model, 0.05, ratio=0.5, ceiling=0.2)
    assert float(penalty()) == 0.0
    before = norms(model, graph)
    levels = [penalty.grow() for _ in range(6)]
    assert levels[0] == 0.05 and levels[-1] == 0.2
    for p in model.parameters():
        p.grad = None
    penalty().backward()
    weak = torch.argsort(before)[:16]
    moved = model.inner.weight.grad.abs().sum((1, 2, 3)) > 0
    # The stem's group presses on inner's inputs, not on its outputs
    stem = model.stem.weight.grad.abs().sum((1, 2, 3)) > 0
    assert int(stem.sum()) == 8
    assert set(weak.tolist()) <= set(torch.nonzero(moved).flatten().tolist())


def test_batch_norm_scale_is_the_sum_of_scales() -> None:
    model = Net()
    penalty = BatchNormScale(api.capture(model.eval(), (X[:2],)), model, 0.5)
    assert torch.allclose(penalty(), 0.5 * model.norm.weight.abs().sum())


def test_penalties_refuse_another_model() -> None:
    graph = api.capture(Net().eval(), (X[:2],))
    with pytest.raises(IrpruneError, match="no free group has a parameter"):
        GroupLasso(graph, nn.Linear(3, 4), 1.0)


# -- masks -----------------------------------------------------------------------------------------


def captured(model: nn.Module, x: Tensor) -> Any:
    return api.analyse(api.capture(model.eval(), (x,)))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_n_of_m_are_kept_and_they_are_the_largest(pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    model = Net()
    graph = captured(model, X[:2])
    result = Mask(pattern).run(graph)
    assert result.changed
    module = emit_module(graph)
    rows = module.inner.weight.flatten(1).reshape(32, -1, m)
    assert bool(((rows != 0).sum(-1) == n).all())
    old = model.inner.weight.detach().flatten(1).reshape(32, -1, m)
    assert torch.allclose(
        rows.abs().sum(-1), old.abs().sort(-1, descending=True).values[..., :n].sum(-1)
    )
    assert any(note.startswith("stem.weight") for note in result.notes) == (18 % m != 0)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_unstructured_masks_have_the_share_that_was_asked_for(scope: str) -> None:
    graph = captured(Net(), X[:2])
    result = Mask(ratio=0.7, scope=scope).run(graph)
    assert result.changed
    masks = result.data["masks"]
    total = sum(t.numel() for t in masks.values())
    assert sum(int((~t).sum()) for t in masks.values()) == pytest.approx(0.7 * total, abs=4)
    assert all(
        bool((torch.as_tensor(graph.weights[n].load())[~t] == 0).all()) for n, t in masks.items()
    )
    shares = {round(float((~t).float().mean()), 2) for t in masks.values()}
    assert (len(shares) == 1) == (scope == "local")


def test_masks_weighted_by_activations_drop_what_meets_nothing() -> None:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.weight[:, 2] = 5.0
    x = torch.randn(64, 4)
    x[:, 2] *= 0.01
    graph = captured(model, x[:2])
    Mask(ratio=0.25, calibration=x).run(graph)
    assert bool((graph.weights["weight"].load()[:, 2] == 0).all())


def test_masks_hold_through_training() -> None:
    graph = captured(Net(), X[:2])
    masks = Mask("2:4").run(graph).data["masks"]
    module = emit_module(graph)
    one_step(module, X)
    assert bool((module.inner.weight[~masks["inner.weight"]] != 0).any())
    apply_masks(module, masks)
    assert bool((module.inner.weight[~masks["inner.weight"]] == 0).all())


@pytest.mark.parametrize(
    "options", [{"pattern": "4:2"}, {"pattern": "half"}, {"ratio": 1.5}, {"scope": "all"}]
)
def test_bad_masks_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(IrpruneError):
        Mask(**options)


# -- distillation ----------------------------------------------------------------------------------


def test_distillation_is_zero_for_the_teacher_itself_and_trains_the_pruned() -> None:
    teacher = Net().eval()
    same = api.prune(
        teacher, (X[:2],), ratio=0.0, proof=False, dynamic_shapes={"x": {0: torch.export.Dim("n")}}
    )
    with Distillation(teacher, same, layers=["inner", "back"]) as loss:
        assert float(loss(X).detach()) == pytest.approx(0.0, abs=1e-6)
    pruned = api.prune(
        teacher, (X[:2],), ratio=0.5, proof=False, dynamic_shapes={"x": {0: torch.export.Dim("n")}}
    )
    optimizer = torch.optim.Adam(pruned.module.parameters(), 3e-3)
    with Distillation(teacher, pruned, layers=["inner", "back"]) as loss:
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            value = loss(X)
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert not teacher.inner._forward_hooks and all(p.grad is None for p in teacher.parameters())


def test_distillation_compares_the_kept_channels() -> None:
    teacher = Net().eval()
    pruned = api.prune(
        teacher, (X[:2],), ratio=0.5, proof=False, dynamic_shapes={"x": {0: torch.export.Dim("n")}}
    )
    with Distillation(teacher, pruned, layers=["stem"], weight=1.0) as loss:
        loss(X)
        # The stem reads nothing that was cut
        assert float(loss._inside("stem").detach()) == pytest.approx(0.0, abs=1e-9)


def test_distillation_refuses_unknown_layers() -> None:
    teacher = Net().eval()
    with pytest.raises(IrpruneError, match="no layer 'middle'"):
        Distillation(teacher, api.prune(teacher, (X[:2],), proof=False), layers=["middle"])


# -- recipes ---------------------------------------------------------------------------------------

RECIPES = Path(__file__).resolve().parents[2] / "models" / "recipes"


RANKS = ("ddp", "fsdp")  # run by torchrun in test_many_ranks


@pytest.mark.parametrize(
    "name",
    sorted({p.stem for p in RECIPES.glob("*.py")} - {"common", "language_distillation", *RANKS}),
)
def test_every_recipe_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(RECIPES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = runpy.run_path(str(RECIPES / f"{name}.py"))["main"](
            epochs=2, **{"sparse_training": {"sparse": 2}}.get(name, {})
        )
    shares = list(made.values()) if isinstance(made, dict) else [made]
    assert all(0.05 < s <= 1 for s in shares)
    assert capsys.readouterr().out.startswith("dense")


def test_the_iterative_recipe_goes_on_to_the_same_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped while its third step trains, and run again: the same weights to the last bit."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(RECIPES))
    recipe = runpy.run_path(str(RECIPES / "iterative.py"))["main"]
    whole = recipe(epochs=1, steps=4, checkpoint=str(tmp_path / "whole"))
    line = recipe.__globals__["line"]

    def stopped(what: str, *rest: Any) -> float:
        if what == "step 3 of 4":
            raise KeyboardInterrupt
        return line(what, *rest)

    recipe.__globals__["line"] = stopped
    with pytest.raises(KeyboardInterrupt):
        recipe(epochs=1, steps=4, checkpoint=str(tmp_path / "twice"))
    (state,) = (p for p in (tmp_path / "twice").iterdir() if p.name != "plans.json")
    assert re.fullmatch(r"state-2-[0-9a-f]{12}", state.name)
    recipe.__globals__["line"] = line
    torch.manual_seed(99)
    capsys.readouterr()
    assert recipe(epochs=1, steps=4, checkpoint=str(tmp_path / "twice")) == whole
    assert "step 2 of 4" not in (out := capsys.readouterr().out) and "step 3 of 4" in out
    once, twice = (
        Checkpoint(tmp_path / name, told).read(ALONE).state
        for name in ("whole", "twice")
        for told in [json.loads((tmp_path / name / "plans.json").read_text())["settings"]]
    )
    assert once is not None and twice is not None and once
    assert list(once) == list(twice) and all(torch.equal(once[n], twice[n]) for n in once)
