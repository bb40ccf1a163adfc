"""Cost polynomials against torch's own counter, against cut graphs, and budgets met to the last
channel."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import models
from irprune import api
from irprune.analysis.cost import MEASURES, Cost, Costs, cost
from irprune.choice.counts import Rounder
from irprune.emit.torch.module import emit_module
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.ir.selection import Selection
from irprune.passes.choose import Choose
from irprune.passes.infer_axes import InferAxes
from irprune.passes.score import Score

CASES = (
    "resnet50",
    "resnext50",
    "shufflenetv2",
    "densenet121",
    "unet",
    "swin_t",
    "llama",
    "moe",
    "einsum_attention",
    "tied_weights",
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def scored(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any], Graph]:
    case = models.get(name)
    model = case.build(small=True).eval()
    args, kwargs = case.example_inputs(small=True)
    graph = api.analyse(api.capture(model, args, kwargs))
    Score().run(graph)
    return model, args, kwargs, graph


def mlp(*widths: int) -> Graph:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    graph = api.analyse(api.capture(nn.Sequential(*layers[:-1]), (torch.randn(2, widths[0]),)))
    Score().run(graph)
    return graph


# -- exact -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_whole_models(name: str) -> None:
    """MACs are half of torch's flops, parameters are those of the model."""
    model, args, kwargs, graph = scored(name)
    found = cost(graph)
    # It overlooks the fused kernel
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        model(*args, **kwargs)
    assert found.macs == counter.get_total_flops() // 2
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.bytes == sum(w.load().nbytes for w in graph.weights.values())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.3}, {"ratio": 0.6, "scope": "global"}, {"prefer": "head_dim", "round_to": 2}],
)
def test_predicted_is_what_the_cut_graph_costs(name: str, options: dict[str, Any]) -> None:
    graph = scored(name)[3]
    Choose(**options).run(graph)
    predicted = cost(graph)
    assert predicted != cost(graph, Selection({}))
    cut = api.cut_graph(graph)
    InferAxes().run(cut)
    assert cost(cut) == predicted
    assert sum(p.numel() for p in emit_module(cut).parameters()) == predicted.params


def test_a_frozen_axis_is_no_choice() -> None:
    graph = mlp(6, 10, 3)
    frozen = next(g for g in groups_of(graph) if g.frozen)
    with pytest.raises(ValueError, match="is frozen: graph"):
        Costs(graph).at({frozen.axis: 1})


# -- activation ------------------------------------------------------------------------------------


def activation(model: nn.Module, *args: Tensor) -> int:
    return cost(api.analyse(api.capture(model, args))).activation


def test_values_are_alive_until_they_are_last_read() -> None:
    assert activation(
        nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3), nn.Linear(3, 20)), torch.randn(2, 6)
    ) == 4 * 2 * (3 + 20)

    class Skip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.relu()
            return (y.sigmoid().tanh().exp() + y).sum(1)

    assert activation(Skip(), torch.randn(5, 7)) == 4 * 3 * 35  # y, what is read and what is made


def test_views_take_no_memory_and_keep_what_they_show_alive() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor) -> Tensor:
            left, right = (x * self.wide).view(2, 3, 4).transpose(1, 2).chunk(2, 1)
            return left.sin().cos() + right

    # All of what is halved, one half changed, and the result
    assert activation(Views(), torch.randn(2, 1)) == 4 * (24 + 12 + 12)

    class Shown(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.exp().exp()
            return y, y.view(2, 3, 4).transpose(1, 2)

    assert activation(Shown(), torch.randn(2, 12)) == 4 * (24 + 24)


def test_outputs_stay_alive() -> None:
    class Early(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.exp()
            z = y.sum(1, keepdim=True)
            return y, z.expand(2, 12).relu().tanh()

    assert activation(Early(), torch.randn(2, 12)) == 4 * (24 + 24 + 24)


def test_peak_against_real_storages() -> None:
    """Live storages of an eager run, by weak references: what the polynomial says, one node after
    the other."""
    import weakref

    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, tuple[Any, int]] = {}
            self.peak = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                storage = out.untyped_storage()
                self.alive[storage.data_ptr()] = (weakref.ref(storage), storage.nbytes())
            self.peak = max(self.peak, sum(n for r, n in self.alive.values() if r() is not None))
            return out

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = x.sin()
            b = torch.cat([a, a.cos()], 1)
            del a
            c = b.exp()
            c = c * b
            del b
            return c.sum(1)

    with Watch() as watch:
        x = torch.ones(4, 6).add(1)
        Net()(x)
    # The caller's input stays alive in the eager run
    assert activation(Net(), x) == watch.peak - 4 * 24 == 4 * (48 + 48 + 48)


# -- symbols ---------------------------------------------------------------------------------------


def test_dynamic_sizes_take_the_values_of_the_example() -> None:
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    graph = api.analyse(
        api.capture(
            model, (torch.randn(7, 6),), None, {"input": {0: torch.export.Dim("batch", max=64)}}
        )
    )
    assert cost(graph).macs == 7 * 90
    symbol = str(graph.inputs[0].shape[0])
    assert cost(graph, symbols={symbol: 5}).macs == 5 * 90
    assert cost(graph, symbols={}).macs == 90


# -- budgets ---------------------------------------------------------------------------------------


def bounds_hold(
    graph: Graph, budget: dict[str, float], options: dict[str, Any]
) -> tuple[Cost, Cost]:
    """The bounds hold, and no group could be one step larger."""
    Choose(budget=budget, **options).run(graph)
    assert graph.kept is not None
    costs = Costs(graph)
    whole, found = costs.at({}), costs.at(graph.kept)
    limit = {k: v * whole[k] if v <= 1 else v for k, v in budget.items()}
    assert all(found[k] <= limit[k] for k in budget)
    counts = {g.axis: int(graph.kept.size(g.axis)) for g in groups_of(graph) if not g.frozen}  # type: ignore[arg-type]
    carrying = {a: n for a, n in counts.items() if not graph.skipped.get(a, "").startswith("held")}
    for a, n in carrying.items():
        if n + 1 <= int(a.size):  # type: ignore[arg-type]
            more = costs.at({**counts, a: n + 1})
            assert any(more[k] > limit[k] for k in budget), a
    return whole, found


@pytest.mark.parametrize("name", ["resnet50", "llama", "swin_t", "shufflenetv2"])
@pytest.mark.parametrize("scope", ["local", "global", "isomorphic", "knapsack"])
@pytest.mark.parametrize(
    "budget",
    [
        {"macs": 0.5},
        {"params": 0.35},
        {"bytes": 0.6},
        {"activation": 0.8},
        {"macs": 0.6, "params": 0.5},
    ],
)
def test_budgets_are_met_to_the_last_channel(
    name: str, scope: str, budget: dict[str, float]
) -> None:
    graph = scored(name)[3]
    whole, found = bounds_hold(graph, budget, {"scope": scope})
    # Small models: a channel is a few percent
    assert min(budget[k] - found[k] / whole[k] for k in budget) < 0.03


def test_a_knapsack_weighs_what_is_lost_by_what_it_saves() -> None:
    """Of two groups of equal scores the one whose index saves more gives; without a budget there is
    nothing to weigh by."""
    graph = mlp(512, 64, 64, 4)
    graph.scores = {g.axis: np.linspace(1, 2, g.size) for g in groups_of(graph) if not g.frozen}
    bounds_hold(graph, {"macs": 0.7}, {"scope": "knapsack"})
    assert graph.kept is not None
    dear, cheap = (int(graph.kept.size(g.axis)) for g in groups_of(graph) if not g.frozen)  # type: ignore[arg-type]
    assert dear < 50 and cheap > 60
    with pytest.raises(IrpruneError, match="'knapsack' without a budget"):
        Choose(scope="knapsack")


def test_amounts_are_absolute_above_one() -> None:
    _, found = bounds_hold(mlp(8, 64, 64, 4), {"params": 2000}, {})
    assert 1950 < found.params <= 2000


def test_groups_that_are_whole_again_are_left_alone() -> None:
    bounds_hold(mlp(8, 4, 64, 4), {"macs": 0.95}, {})


def test_what_a_local_budget_drops_is_the_same_share_everywhere() -> None:
    graph = mlp(16, 60, 120, 200, 4)
    bounds_hold(graph, {"macs": 0.5}, {})
    assert graph.kept is not None
    shares = [int(graph.kept.size(g.axis)) / g.size for g in groups_of(graph) if not g.frozen]  # type: ignore[arg-type]
    assert max(shares) - min(shares) < 0.03


def test_a_budget_that_holds_already_changes_nothing() -> None:
    graph = mlp(8, 16, 4)
    assert Choose(budget={"macs": 1.0}).run(graph), "the reasons are new"
    assert graph.kept is not None and graph.kept.choice == {}
    assert set(graph.skipped.values()) == {"the budget leaves it whole"}


def test_steps_and_caps_hold_under_a_budget() -> None:
    graph = mlp(8, 64, 64, 64, 4)
    Choose(budget={"macs": 0.4}, round_to=8, max_ratio=0.6).run(graph)
    assert graph.kept is not None
    sizes = [int(graph.kept.size(g.axis)) for g in groups_of(graph) if not g.frozen]  # type: ignore[arg-type]
    assert all(n % 8 == 0 and n >= 26 for n in sizes)
    assert 0.3 < cost(graph).macs / cost(graph, Selection({})).macs <= 0.4


def test_groups_with_a_ratio_of_their_own_are_left_to_it() -> None:
    """Its channels would be the cheapest to give back: one of the second layer costs more than what
    is left of the budget."""
    graph = mlp(2, 64, 8, 512, 4)
    Choose(budget={"macs": 0.6}, ratios={"0.weight:0": 0.25}).run(graph)
    assert graph.kept is not None
    assert next(graph.kept.size(g.axis) for g in groups_of(graph) if not g.frozen) == 48
    assert 0.6 * cost(graph, Selection({})).macs - cost(graph).macs > 2 + 8


def test_a_budget_out_of_reach_says_what_holds_it_up() -> None:
    graph = mlp(8, 64, 64, 4)
    with pytest.raises(IrpruneError) as refused:
        Choose(budget={"params": 0.01}, keep=("2",)).run(graph)
    text = str(refused.value)
    smallest = cost(graph, Selection({})).params
    assert (
        f"the smallest reachable is {smallest:,}" in text
        and "what holds it up: 2.weight 4,096" in text
    )
    with pytest.raises(IrpruneError, match="the budget of 1 macs cannot be met"):
        Choose(budget={"macs": 1.0001e0}).run(mlp(8, 64, 4))


@pytest.mark.parametrize(
    "budget, said",
    [
        ({}, "the budget is empty"),
        (
            {"watts": 0.5},
            "no budget on 'watts' \\(choose\\); one of macs, params, bytes, activation",
        ),
        ({"macs": 0}, "the budget on macs is 0"),
        ({"macs": float("nan")}, "the budget on macs is nan"),
    ],
)
def test_budgets_that_make_no_sense(budget: dict[str, float], said: str) -> None:
    with pytest.raises(IrpruneError, match=said):
        Choose(budget=budget)
    assert MEASURES == ("macs", "params", "bytes", "activation")


def test_changes_of_one_leaf_add_up() -> None:
    """What a search adds up step by step is what the whole polynomial says."""
    graph = scored("resnet50")[3]
    costs = Costs(graph)
    counts = {g.axis: g.size for g in groups_of(graph) if not g.frozen}
    rounder = Rounder(counts, [])
    now = {m: costs.measure(m, counts) for m in MEASURES}
    for k, leaf in enumerate(rounder.sizes):
        less = {**counts, leaf: counts[leaf] - 1 - k % 3}
        for m in MEASURES:
            now[m] += costs.change(m, leaf, counts, less)
        counts = less
    assert {m: costs.at(counts)[m] for m in MEASURES} == now


def test_functional_models_count_too() -> None:
    class Matmul(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.linear(x @ y, torch.ones(3, 5))

    graph = api.analyse(api.capture(Matmul(), (torch.randn(2, 7, 4), torch.randn(2, 4, 5))))
    assert cost(graph).macs == 2 * 7 * 5 * 4 + 2 * 7 * 5 * 3
