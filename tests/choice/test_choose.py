"""Choosing: ratios are met on widths, caps are hard, ties are stable, and what stays whole says
why."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from choice_models import (
    IMAGE,
    TOKENS,
    VECTOR,
    Attention,
    Dense,
    Gated,
    Grouped,
    GroupNormed,
    Mlp,
    Multiplied,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import chosen, named, proven
from torch import Tensor, nn
from torch.nn import functional as F

from irprune import api
from irprune.analysis.blocks import blocks_of
from irprune.analysis.widths import Width
from irprune.choice.counts import Limits, Rounder
from irprune.choice.ranking import Ranking
from irprune.errors import IrpruneError
from irprune.ir.axis import Axes
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.passes.choose import Choose
from irprune.passes.score import Score

FAST = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def scored(model: nn.Module, *args: Tensor, **options: Any) -> Graph:
    graph = api.analyse(api.capture(model, args))
    Score(**options).run(graph)
    return graph


def left(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights after the choice."""
    assert graph.kept is not None
    return {
        w.name: tuple(int(graph.kept.size(a)) for a in w.axes or ()) for w in graph.weights.values()
    }  # type: ignore[arg-type]


def why(graph: Graph, name: str) -> str:
    return graph.skipped[named(graph, name)]


# -- rounding --------------------------------------------------------------------------------------


@FAST
@given(st.data())
def test_error_is_carried_along_a_sum(data: st.DataObject) -> None:
    """Pieces of a width: each within one of its own target, the whole within one of its; prefixes
    too, as a dense block has them."""
    axes = Axes()
    pieces = [
        axes.leaf(n) if n > 1 else axes._new(1)
        for n in data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    ]
    ratio = data.draw(st.floats(0, 1))
    sizes = {x: int(x.size) for x in pieces if x.size != 1}  # type: ignore[arg-type]
    own = [Width(((x, 1),), 0, True) for x in pieces] if data.draw(st.booleans()) else []
    widths = [Width(tuple((x, 1) for x in pieces[: k + 1]), 0, True) for k in range(len(pieces))]
    target = {x: int(x.size) * (1 - ratio) for x in pieces}  # type: ignore[arg-type]
    counts, skipped = Rounder(sizes, [*own, *widths]).counts(target)
    assert not skipped and counts.keys() == sizes.keys()
    stuck = 0.0  # what pieces at their smallest are over their target, and cannot be helped
    for x, n in counts.items():
        assert 1 <= n <= sizes[x]
        assert abs(n - target[x]) <= 1 or n == 1
        stuck += max(0.0, 1 - target[x]) if n == 1 else 0.0
    stuck += sum(1 - target[x] for x in pieces if x.size == 1)
    assert widths[-1].at(counts) - widths[-1].at(target) <= 1 + stuck
    if not stuck:
        assert abs(widths[-1].at(counts) - widths[-1].at(target)) <= 1


@FAST
@given(st.data())
def test_a_step_goes_to_the_nearest_multiple_within_hard_caps(data: st.DataObject) -> None:
    """A width of ``factor * n``: a multiple of the step, nearest to its target, or whole for a
    reason."""
    size, least = data.draw(st.integers(2, 200)), data.draw(st.integers(1, 40))
    ratio, cap = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    step, factor = data.draw(st.sampled_from([2, 4, 8, 16])), data.draw(st.sampled_from([1, 3, 8]))
    x = Axes().leaf(size)
    rounder = Rounder({x: size}, [Width(((x, factor),), 0, True)], Limits(least, cap), step)
    target = size * (1 - ratio)
    counts, skipped = rounder.counts({x: target})
    n = counts[x]
    assert 0 < n <= size
    low = min(size, max(1, least, ceil(size * (1 - cap) - 1e-9)))
    assert n >= low
    if n == size:
        assert x in skipped or target > size - 1e-6 or (size * factor) % step == 0
        return
    assert (n * factor) % step == 0
    allowed = [k for k in range(low, size + 1) if (k * factor) % step == 0]
    assert abs(n - target) <= min(abs(k - target) for k in allowed) + 1e-9


@FAST
@given(st.data())
def test_pieces_make_their_width_a_multiple(data: st.DataObject) -> None:
    axes = Axes()
    pieces = [axes.leaf(n) for n in data.draw(st.lists(st.integers(2, 30), min_size=2, max_size=6))]
    sizes = {x: int(x.size) for x in pieces}  # type: ignore[arg-type]
    scale = data.draw(st.sampled_from([1, 2]))
    fixed = data.draw(st.sampled_from([0, 1, 4]))
    width = Width(tuple((x, scale) for x in pieces), fixed, True)
    counts, skipped = Rounder(sizes, [width], round_to=4).counts(
        {x: n / 2 for x, n in sizes.items()}
    )
    if skipped:
        assert width.at(counts) == width.at(sizes)
        reachable = [fixed + scale * n for n in range(len(sizes), sum(sizes.values()) + 1)]
        assert not any(
            w % 4 == 0 and abs(w - width.at({x: n / 2 for x, n in sizes.items()})) <= 4
            for w in reachable
        )
        assert all("cannot be made a multiple of 4" in reason for reason in skipped.values())
    else:
        assert width.at(counts) % 4 == 0
        assert abs(width.at(counts) - width.at({x: n / 2 for x, n in sizes.items()})) <= 4


# -- ratios on widths ------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.7, 0.99, 1.0])
def test_gated_units_lose_their_ratio_once(ratio: float) -> None:
    keep = max(1, round(32 * (1 - ratio)))
    separate, fused = (
        left(chosen(Gated(False), VECTOR, ratio=ratio)),
        left(chosen(Gated(True), VECTOR, ratio=ratio)),
    )
    assert separate["gate.weight"] == separate["up.weight"] == (keep, 6) and separate[
        "down.weight"
    ] == (6, keep)
    assert fused["up.weight"] == (2 * keep, 6) and fused["down.weight"] == (6, keep)


@pytest.mark.parametrize("ratio", [0.3, 0.4, 0.5, 0.7])
def test_concatenated_widths_meet_the_ratio_as_a_whole(ratio: float) -> None:
    shapes = left(chosen(Dense(), IMAGE, ratio=ratio))
    for k in range(7):
        assert abs(shapes[f"convs.{k}.weight"][0] - 6 * (1 - ratio)) < 1
        assert abs(shapes[f"convs.{k}.weight"][1] - 6 * (k + 1) * (1 - ratio)) <= 1
    assert abs(shapes["head.weight"][1] - 48 * (1 - ratio)) <= 1


def test_whole_heads_carry_for_key_and_value_groups() -> None:
    shapes = left(proven(Attention(heads=8, kv=4), TOKENS))
    assert (
        shapes["q.weight"][0] == 2 * 2 * 8
        and shapes["k.weight"][0] == shapes["v.weight"][0] == 2 * 8
        and shapes["o.weight"][1] == 32
    )


def test_repeats_carry_for_multi_query() -> None:
    shapes = left(proven(Attention(heads=6, kv=1), TOKENS))
    assert (
        shapes["q.weight"][0] == 3 * 8
        and shapes["k.weight"][0] == 8
        and shapes["o.weight"][1] == 24
    )


@pytest.mark.parametrize(
    "prefer, expected", [("heads", (2, 8)), ("head_dim", (4, 4)), ("both", (3, 6))]
)
def test_packed_projections(prefer: str, expected: tuple[int, int]) -> None:
    graph = proven(Attention(packed=True), TOKENS, prefer=prefer)
    heads, head_dim = expected
    assert (
        left(graph)["qkv.weight"][0] == 3 * heads * head_dim
        and left(graph)["o.weight"][1] == heads * head_dim
    )
    if prefer == "heads":
        assert "qkv.weight:0/1 carries" in why(graph, "qkv.weight:0/2")


def test_heads_in_dimensions_of_their_own() -> None:
    class Einsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(6, 10)
            self.into, self.out = (
                nn.Parameter(torch.randn(10, 4, 8)),
                nn.Parameter(torch.randn(4, 8, 3)),
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum(
                "bhk,hko->bo",
                torch.einsum("bd,dhk->bhk", self.enter(x), self.into).tanh(),
                self.out,
            )

    shapes = left(proven(Einsum(), VECTOR))
    assert shapes["into"] == (5, 2, 8) and shapes["out"] == (2, 8, 3)


def test_channels_within_groups_carry_unless_groups_are_asked_for() -> None:
    shapes = left(proven(Grouped(), IMAGE))
    assert (
        shapes["conv1.weight"][0] == 4 * 3
        and shapes["conv2.weight"][:2] == (12, 3)
        and shapes["conv3.weight"][1] == 12
    )
    shapes = left(proven(Grouped(), IMAGE, prefer="groups"))
    assert shapes["conv2.weight"][:2] == (2 * 6, 6) and shapes["conv3.weight"][1] == 12
    graph = proven(GroupNormed(), IMAGE)
    assert graph.kept is not None and graph.kept.size(named(graph, "norm.weight:0")) == 4
    assert left(graph)["norm.weight"] == (12,)


def test_channels_of_a_depthwise_convolution_are_a_width_of_their_own() -> None:
    shapes = left(proven(Multiplied(), IMAGE))
    assert (
        shapes["conv1.weight"][0] == 5
        and shapes["depth.weight"][0] == 10
        and shapes["conv2.weight"][1] == 10
    )


def test_a_frozen_factor_lets_the_other_carry() -> None:
    shapes = left(proven(Attention(), TOKENS, keep=("q.weight:0",)))
    assert shapes["q.weight"][0] == shapes["v.weight"][0] == 4 * 4


# -- own choice per block --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, example, options, block",
    [
        (Grouped(), IMAGE, {}, "conv3.weight:1/1"),
        (Grouped(), IMAGE, {}, "conv2.weight:1"),
        (GroupNormed(), IMAGE, {}, "conv1.weight:0/1"),
        (Attention(), TOKENS, {"prefer": "head_dim"}, "v.weight:0/1"),
        (Attention(packed=True), TOKENS, {"prefer": "head_dim", "ratio": 0.3}, "qkv.weight:0/2"),
        (Attention(heads=8, kv=4), TOKENS, {"prefer": "head_dim"}, "k.weight:0/1"),
    ],
)
def test_blocks_keep_indices_of_their_own(
    model: nn.Module, example: Tensor, options: dict[str, Any], block: str
) -> None:
    graph = proven(model, example, **options)
    assert graph.kept is not None
    rows = graph.kept.choice[named(graph, block)]
    assert rows.ndim == 2 and len({tuple(r) for r in rows.tolist()}) > 1
    same = proven(model, example, per_block=False, **options)
    assert same.kept is not None and not same.kept.within
    assert left(same) == left(graph)


def test_each_block_keeps_its_best() -> None:
    model = GroupNormed()
    with torch.no_grad():
        model.conv1.weight.copy_(torch.rand(24)[:, None, None, None].expand(24, 3, 1, 1))
        model.norm.weight.fill_(0.0)
        model.conv2.weight.fill_(0.0)
    graph = chosen(model, IMAGE)
    assert graph.kept is not None
    best = (
        model.conv1.weight[:, 0, 0, 0].reshape(4, 6).argsort(descending=True)[:, :3].sort().values
    )
    assert graph.kept.choice[named(graph, "conv1.weight:0/1")].tolist() == best.tolist()


@pytest.mark.parametrize("options", [{"rotary": True}, {"normed": True}])
def test_what_stands_without_its_heads_keeps_the_same_in_all(options: dict[str, bool]) -> None:
    model = Attention(**options)
    graph = proven(model, TOKENS, prefer="head_dim")
    assert graph.kept is not None
    shared = named(graph, "q.weight:0/1")
    assert graph.kept.choice[shared].ndim == 1 and graph.kept.changes(shared)
    assert graph.kept.choice[named(graph, "v.weight:0/1")].ndim == 2


def test_inputs_and_outputs_of_a_grouped_convolution_are_within_its_groups() -> None:
    """Its inputs are a dimension of the weight beside the one that holds the groups."""
    graph = scored(Grouped(), IMAGE)
    groups = named(graph, "conv2.weight:0")
    assert blocks_of(graph) == {
        named(graph, "conv2.weight:1"): groups,
        named(graph, "conv2.weight:0/1"): groups,
    }


def test_groups_are_not_chosen_per_channel() -> None:
    graph = scored(GroupNormed(), IMAGE)
    assert blocks_of(graph) == {named(graph, "conv1.weight:0/1"): named(graph, "conv1.weight:0")}


# -- options ---------------------------------------------------------------------------------------


def test_equal_scores_keep_the_first() -> None:
    graph = chosen_with_scores(Mlp(), lambda s: np.ones_like(s))
    assert graph.kept is not None
    assert graph.kept.kept(named(graph, "fc1.weight:0")).tolist() == [0, 1, 2, 3, 4]


def chosen_with_scores(model: nn.Module, change: Any, **options: Any) -> Graph:
    graph = scored(model, VECTOR)
    graph.scores = {a: change(s) for a, s in graph.scores.items()}
    Choose(**options).run(graph)
    return graph


def test_the_least_important_go() -> None:
    graph = chosen_with_scores(Mlp(), lambda s: np.arange(len(s))[::-1].astype(float), ratio=0.3)
    assert graph.kept is not None
    assert graph.kept.kept(named(graph, "fc1.weight:0")).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_kept_by_weight_group_and_module() -> None:
    for pattern in ("q*", "q.weight:0", "q", "?.bias"):
        graph = chosen(Attention(), TOKENS, keep=(pattern,))
        assert graph.kept is not None and not graph.kept.changes(named(graph, "q.weight:0")), (
            pattern
        )
        assert repr(pattern) in why(graph, "q.weight:0")
    assert left(chosen(Attention(), TOKENS, keep=("q.weight:0",)))["enter.weight"] == (6, 5)
    assert left(chosen(Attention(), TOKENS, keep=("q",)))["enter.weight"] == (12, 5)


def test_a_module_owns_weights_that_others_read() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.ParameterDict({"w": torch.randn(10, 6)})
            self.fc2 = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(F.relu(F.linear(x, self.held["w"])))

    assert left(chosen(Owner(), VECTOR, keep=("held",)))["held.w"] == (10, 6)


def test_a_module_without_weights_is_no_pattern() -> None:
    with pytest.raises(IrpruneError, match="keep: '1' matches only modules without weights"):
        chosen(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)), VECTOR, keep=("1",))


def test_a_pattern_that_matches_nothing_names_its_neighbours() -> None:
    with pytest.raises(
        IrpruneError, match=r"keep: 'fc3\*' matches no weight, group or module; near matches: .*fc1"
    ):
        chosen(Mlp(), VECTOR, keep=("fc3*",))
    with pytest.raises(IrpruneError, match="ratios: 'nope'"):
        chosen(Mlp(), VECTOR, ratios={"nope": 0.5})


def test_ratios_of_their_own() -> None:
    model = nn.Sequential(
        nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2)
    )
    graph = chosen(model, torch.randn(2, 4), ratio=0.5, ratios={"*": 0.2, "2.weight:0": 0.75})
    assert left(graph)["2.weight"] == (5, 16)
    graph = chosen(model, torch.randn(2, 4), ratios={"0.weight:0": 0})
    assert left(graph)["2.weight"] == (10, 20) and why(graph, "0.weight:0") == "its ratio is 0"


def test_a_ratio_that_names_a_group_makes_it_carry() -> None:
    shapes = left(chosen(Attention(packed=True), TOKENS, ratios={"qkv.weight:0/2": 0.25}))
    assert shapes["qkv.weight"][0] == 3 * 4 * 6


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_caps_are_hard(scope: str) -> None:
    graph = chosen(Dense(), IMAGE, ratio=0.9, scope=scope, max_ratio=0.5, min_channels=4)
    assert graph.kept is not None
    for group in groups_of(graph):
        if not group.frozen:
            assert int(graph.kept.size(group.axis)) >= 4  # type: ignore[arg-type]
    graph = chosen(Mlp(), VECTOR, ratio=0.9, scope=scope, max_ratio=0.0)
    assert "at most 0 of it" in why(graph, "fc1.weight:0")


def test_widths_are_rounded_where_heads_make_them() -> None:
    """Three of six heads of eight channels are twenty-four: a multiple of eight as they are."""
    graph = chosen(Attention(heads=6, kv=6, width=40), TOKENS, ratio=0.5, round_to=8)
    assert left(graph)["q.weight"] == (24, 24)  # 20 of 40 is as near to 16 as to 24: the larger
    graph = chosen(Attention(heads=6, kv=6, head_dim=4, width=40), TOKENS, ratio=0.4, round_to=8)
    assert left(graph)["q.weight"] == (16, 24)


def test_what_cannot_be_rounded_stays_whole_and_says_so() -> None:
    graph = chosen(Mlp(10), VECTOR, ratio=0.3, round_to=16)
    assert left(graph)["fc1.weight"] == (10, 6)
    assert why(graph, "fc1.weight:0") == "the nearest multiple of 16 to 7 of 10 is 16"
    graph = chosen(Mlp(10), VECTOR, ratio=0.04)
    assert why(graph, "fc1.weight:0") == "0.04 of 10 rounds to none"


def test_one_threshold_for_all() -> None:
    model = nn.Sequential(
        nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 2)
    )
    with torch.no_grad():
        model[0].weight[:15] *= 0.01
        model[0].bias[:15] *= 0.01
        model[2].weight[:, :15] *= 0.01
    graph = scored(model, torch.randn(2, 4), normalise="none")
    Choose(ratio=0.4, scope="global").run(graph)
    assert graph.kept is not None
    sizes = [int(graph.kept.size(named(graph, n))) for n in ("0.weight:0", "2.weight:0")]  # type: ignore[arg-type]
    assert sum(sizes) == 30 and sizes[0] <= 15
    assert graph.kept.kept(named(graph, "0.weight:0")).min() >= 15
    dropped = {
        a: np.setdiff1d(np.arange(len(s)), graph.kept.kept(a)) for a, s in graph.scores.items()
    }
    highest_gone = max(graph.scores[a][d].max() for a, d in dropped.items() if len(d))
    lowest_left = min(graph.scores[a][graph.kept.kept(a)].min() for a in dropped)
    assert highest_gone <= lowest_left


def test_equal_structures_are_ranked_together() -> None:
    """Two wide layers with different magnitudes share one threshold; the narrow one keeps its own
    ratio."""
    model = nn.Sequential(
        nn.Linear(8, 16),
        nn.ReLU(),
        nn.Linear(16, 8),
        nn.ReLU(),
        nn.Linear(8, 16),
        nn.ReLU(),
        nn.Linear(16, 8),
    )
    graph = scored(model, torch.randn(2, 8), normalise="none")
    graph.scores[named(graph, "0.weight:0")] += 100.0
    Choose(ratio=0.25, scope="isomorphic").run(graph)
    shapes = left(graph)
    assert shapes["0.weight"][0] == 16 and shapes["4.weight"][0] == 8 and shapes["2.weight"][0] == 6


def test_ranks_respect_what_must_stay() -> None:
    axes = Axes()
    a, b = axes.leaf(4), axes.leaf(4)
    ranking = Ranking(
        {a: np.asarray([0.0, 0.0, 0.0, 0.0]), b: np.asarray([1.0, 2.0, 3.0, 4.0])}, {a: 2, b: 1}
    )
    assert ranking.targets(0.5) == {a: 2.0, b: 2.0}
    assert ranking.targets(1.0) == {a: 2.0, b: 1.0}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"max_ratio": -1}, "max_ratio is -1"),
        ({"ratios": {"a": 2}}, "ratio of 'a' is 2"),
        ({"round_to": 0}, "round_to is 0"),
        ({"round_to": 2.5}, "round_to is 2.5"),
        ({"scope": "galactic"}, "scope is 'galactic'"),
        ({"keep": "head*"}, "keep is the text"),
        ({"prefer": "tails"}, "prefer is 'tails'"),
        ({"min_channels": 0}, "min_channels is 0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(IrpruneError) as refused:
        chosen(Mlp(), VECTOR, **options)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_every_free_group_is_cut_or_says_why() -> None:
    models: Sequence[tuple[nn.Module, Tensor]] = (
        (Attention(heads=8, kv=2), TOKENS),
        (Grouped(), IMAGE),
        (Dense(), IMAGE),
        (Gated(True), VECTOR),
    )
    for model, example in models:
        for options in (
            {},
            {"ratio": 0.02},
            {"round_to": 16},
            {"scope": "global", "ratio": 0.1},
            {"keep": ("*",)},
        ):
            graph = chosen(model, example, **options)
            assert graph.kept is not None
            for group in groups_of(graph):
                if not group.frozen:
                    assert graph.kept.changes(group.axis) != bool(graph.skipped.get(group.axis)), (
                        group.name,
                        options,
                    )


def test_same_input_same_choice() -> None:
    for scope in ("local", "global", "isomorphic"):
        made = []
        for _ in range(2):
            torch.manual_seed(0)
            graph = chosen(Attention(heads=8, kv=4), TOKENS, ratio=0.4, scope=scope)
            assert graph.kept is not None and graph.kept.choice
            made.append(
                [
                    (g.name, graph.kept.choice[g.axis].tolist())
                    for g in groups_of(graph)
                    if g.axis in graph.kept.choice
                ]
            )
        assert made[0] == made[1]
