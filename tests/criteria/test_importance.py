"""Criteria against brute force over the weights, place by place."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import analysed
from torch import Tensor, nn
from torch.nn import functional as F

from irprune.analysis.blocks import blocks_of
from irprune.criteria import criteria, criterion, named
from irprune.criteria.normalise import normalised
from irprune.criteria.places import elements, is_bias, is_scale
from irprune.criteria.profile import profile
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.passes.score import Score


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Net(nn.Module):
    """conv1 -> norm -> conv2 with flatten into a linear map: places of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 3),
        )
        self.fc = nn.Linear(6 * 4, 5)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.norm(self.conv1(x))))).flatten(1))


def scores(model: nn.Module, *args: Tensor, **options: Any) -> dict[str, np.ndarray]:
    graph = analysed(model, *args)
    Score(**{"normalise": "none", **options}).run(graph)
    return {g.name: graph.scores[g.axis] for g in groups_of(graph) if g.axis in graph.scores}


IMAGE = torch.randn(2, 3, 6, 6)


def numpy_of(t: Tensor) -> np.ndarray:
    return t.detach().double().numpy()


# -- profiles --------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.sampled_from([1.0, 2.0, float("inf")]),
    st.booleans(),
    st.integers(0, 5),
)
def test_profiles_are_sums_of_powers(shape: list[int], p: float, as_torch: bool, seed: int) -> None:
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    wanted = [*((d,) for d in range(len(shape))), *permutations(range(len(shape)), 2)]
    found = profile(torch.from_numpy(array) if as_torch else array, wanted, p)
    for dims in wanted:
        powers = np.abs(array.astype(np.float64)) if p != 2.0 else array.astype(np.float64) ** 2
        powers = np.moveaxis(powers, dims, range(len(dims))).reshape(*(shape[d] for d in dims), -1)
        np.testing.assert_allclose(
            found[dims],
            powers.max(axis=-1) if p == float("inf") else powers.sum(axis=-1),
            rtol=1e-5,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_chunks_strides_and_precisions(dtype: torch.dtype) -> None:
    """An array wider than a chunk, one of many chunks, and one that is not contiguous."""
    for array in (torch.randn(3, 150_000), torch.randn(5000, 90), torch.randn(700, 600).t()):
        array = array.to(dtype)
        for p in (1.0, 2.0):
            found = profile(array, ((0,), (1,), (1, 0)), p)
            np.testing.assert_allclose(
                found[(0,)], numpy_of(array.double().abs().pow(p).sum(1)), rtol=2e-5
            )
            np.testing.assert_allclose(
                found[(1,)], numpy_of(array.double().abs().pow(p).sum(0)), rtol=2e-5
            )
            np.testing.assert_allclose(
                found[(1, 0)], numpy_of(array.double().abs().pow(p).t()), rtol=2e-5
            )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_bad_values_are_named(bad: float, p: float) -> None:
    model = Net()
    with torch.no_grad():
        model.conv2.weight[3, 1, 0, 0] = bad
    with pytest.raises(IrpruneError, match=r"NaN or infinity.*'conv2.weight'"):
        scores(model, IMAGE, p=p)


class Masked(nn.Module):
    """A table with a row that masks, added to what is cut."""

    def __init__(self, value: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.table, self.down = nn.Linear(6, 8), nn.Embedding(5, 8), nn.Linear(8, 4)
        with torch.no_grad():
            self.table.weight[0] = value

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x) + self.table(i)))


@pytest.mark.parametrize("importance", ["magnitude", "lamp", "fpgm", "taylor", "fisher"])
def test_minus_infinity_in_a_table_weighs_nothing(importance: str) -> None:
    """A row of -inf takes out what it is added to; the scores are those of its finite part."""
    data = [(torch.randn(3, 6), torch.tensor([1, 0, 3])) for _ in range(2)]
    options: dict[str, Any] = {"importance": importance}
    if importance in ("taylor", "fisher"):
        options |= {"calibration": data, "loss": lambda outputs, batch: outputs[0].square().mean()}
    masked = scores(Masked(float("-inf")), *data[0], **options)
    plain = scores(Masked(-1e9 if "loss" in options else 0.0), *data[0], **options)
    assert masked.keys() == plain.keys() and masked
    for name, found in masked.items():
        np.testing.assert_allclose(found, plain[name], rtol=1e-6)


def test_plus_infinity_in_a_table_is_refused() -> None:
    with pytest.raises(IrpruneError, match=r"NaN or infinity.*'table.weight'"):
        scores(Masked(float("inf")), torch.randn(3, 6), torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("extra", [-3, 5])
def test_scores_of_another_length_are_refused(extra: int) -> None:
    class Own:
        def scores(self, graph: Any, groups: Any, blocks: Any) -> dict[Any, np.ndarray]:
            return {g.axis: np.arange(g.size + extra, dtype=float) for g in groups}

    with pytest.raises(IrpruneError, match=rf"scores of shape \[{8 + extra}\].*has 8 indices"):
        scores(Net(), IMAGE, importance=Own())


# -- magnitude -------------------------------------------------------------------------------------


def members_of(model: Net, p: float) -> dict[str, list[np.ndarray]]:
    """The p-th powers of each place, written out by hand. Biases and running statistics do not
    count."""
    w1, w2, g, fc = (
        numpy_of(t)
        for t in (model.conv1.weight, model.conv2.weight, model.norm.weight, model.fc.weight)
    )

    def powers(x: np.ndarray) -> np.ndarray:
        return np.abs(x) ** (1 if p == float("inf") else p)

    join = np.max if p == float("inf") else np.sum
    return {
        "conv1.weight:0": [
            join(powers(w1), axis=(1, 2, 3)),
            powers(g),
            join(powers(w2), axis=(0, 2, 3)),
        ],
        "conv2.weight:0": [
            join(powers(w2), axis=(1, 2, 3)),
            join(powers(fc.reshape(5, 6, 4)), axis=(0, 2)),
        ],
    }


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "prod"])
def test_magnitude_over_all_places(p: float, reduce: str) -> None:
    model = Net()
    found = scores(model, IMAGE, p=p, reduce=reduce)
    assert found.keys() == {"conv1.weight:0", "conv2.weight:0"}
    for name, places in members_of(model, p).items():
        expected = getattr(np, reduce)(np.stack(places), axis=0)
        np.testing.assert_allclose(
            found[name], np.sqrt(expected) if p == 2 else expected, rtol=1e-5
        )


def test_biases_count_when_asked() -> None:
    model = Net()
    both = (named("magnitude", reduce="sum", biases=b) for b in (False, True))
    without, including = (scores(model, IMAGE, importance=c)["conv1.weight:0"] for c in both)
    added = numpy_of(model.conv1.bias) ** 2 + numpy_of(model.norm.bias) ** 2
    np.testing.assert_allclose(including**2 - without**2, added, rtol=1e-4, atol=1e-6)


def test_what_is_a_scale_and_what_a_bias() -> None:
    weights = analysed(Net(), IMAGE).weights
    assert [n for n, w in weights.items() if is_scale(w)] == ["norm.weight"]
    statistics = {"norm.running_mean", "norm.running_var"}
    assert {n for n, w in weights.items() if is_bias(w)} == {
        "conv1.bias",
        "norm.bias",
        "conv2.bias",
        "fc.bias",
        *statistics,
    }


def test_tied_weights_count_once() -> None:
    """One matrix that is called twice stands once in each place; two equal matrices stand twice."""

    class Twice(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.enter = nn.Linear(3, 6, bias=False)
            self.a = nn.Linear(6, 6, bias=False)
            self.b = self.a if tied else nn.Linear(6, 6, bias=False)
            with torch.no_grad():
                self.b.weight.copy_(self.a.weight)
            self.leave = nn.Linear(6, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            return self.leave(x + self.b(F.relu(x + self.a(F.relu(x)))))

    x = torch.randn(2, 3)
    model = Twice(True)
    enter, a, leave = (numpy_of(m.weight) ** 2 for m in (model.enter, model.a, model.leave))
    once = enter.sum(1) + a.sum(0) + a.sum(1) + leave.sum(0)
    np.testing.assert_allclose(
        scores(model, x, reduce="sum")["enter.weight:0"] ** 2, once, rtol=1e-5
    )
    other = Twice(False)
    other.load_state_dict(model.state_dict())
    np.testing.assert_allclose(
        scores(other, x, reduce="sum")["enter.weight:0"] ** 2, once + a.sum(0) + a.sum(1), rtol=1e-5
    )


def test_rows_per_block_where_a_choice_per_block_is_legal() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1, bias=False),
        nn.GroupNorm(3, 12, affine=False),
        nn.ReLU(),
        nn.Conv2d(12, 2, 1, bias=False),
    )
    graph = analysed(model, IMAGE)
    Score(normalise="none", reduce="sum").run(graph)
    ((channels, outer),) = blocks_of(graph).items()
    expected = np.sqrt(
        (numpy_of(model[0].weight) ** 2).sum((1, 2, 3))
        + (numpy_of(model[3].weight) ** 2).sum((0, 2, 3))
    )
    np.testing.assert_allclose(graph.scores[channels], expected.reshape(3, 4), rtol=1e-5)
    np.testing.assert_allclose(
        graph.scores[outer], np.sqrt((expected.reshape(3, 4) ** 2).sum(1)), rtol=1e-5
    )


def test_where_a_leaf_stands() -> None:
    """Elements of a dimension that belong to each index, against an array that says so."""
    graph = analysed(
        nn.Sequential(
            nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Flatten(), nn.Linear(12 * 36, 2)
        ),
        IMAGE,
    )
    place = np.arange(12 * 36).reshape(3, 4, 36)
    members = {
        group.size: m
        for group in groups_of(graph)
        for m in group.members
        if m.weight.name == "3.weight" and not group.frozen
    }
    assert members.keys() == {3, 4}
    for lead, size in enumerate((3, 4)):
        found = [sorted(row) for row in elements(members[size].slot).tolist()]
        assert found == [sorted(place.take(i, axis=lead).reshape(-1).tolist()) for i in range(size)]


# -- the other criteria ----------------------------------------------------------------------------


def test_batch_norm_scale() -> None:
    model = Net()
    found = scores(model, IMAGE, importance="batch_norm_scale")
    np.testing.assert_allclose(
        found["conv1.weight:0"], np.abs(numpy_of(model.norm.weight)), rtol=1e-6
    )
    assert "conv2.weight:0" not in found


def test_groups_without_a_scale_stay_whole() -> None:
    graph = analysed(Net(), IMAGE)
    Score("batch_norm_scale").run(graph)
    from irprune.passes.choose import Choose

    Choose().run(graph)
    group = next(g for g in groups_of(graph) if g.name == "conv2.weight:0")
    assert graph.skipped[group.axis].startswith("no importance")


def test_geometric_median() -> None:
    model = Net()
    found = scores(model, IMAGE, importance="fpgm")
    out, into = (
        numpy_of(model.conv1.weight).reshape(8, -1),
        numpy_of(model.conv2.weight).swapaxes(0, 1).reshape(8, -1),
    )

    def distances(x: np.ndarray) -> np.ndarray:
        return np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)).sum(1)

    np.testing.assert_allclose(
        found["conv1.weight:0"], (distances(out) + distances(into)) / 2, rtol=1e-4
    )


def test_geometric_median_of_weights_that_are_nearly_the_same() -> None:
    """Distances far below the weights themselves: single precision would lose them."""
    model = nn.Sequential(nn.Linear(40, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False))
    step = torch.tensor([0.0, 1e-3, 2e-3, 3e-3, 7e-3, 9e-3])
    with torch.no_grad():
        model[0].weight.copy_(10 + step[:, None].expand(6, 40))
        model[2].weight.zero_()
    found = scores(model, torch.randn(2, 40), importance="fpgm", reduce="sum")["0.weight:0"]
    exact = numpy_of(model[0].weight)
    np.testing.assert_allclose(
        found, np.sqrt(((exact[:, None] - exact[None]) ** 2).sum(-1)).sum(1), rtol=1e-3
    )


def test_lamp() -> None:
    s = np.asarray([3.0, 1.0, 2.0])
    np.testing.assert_allclose(normalised(s, "lamp"), [1.0, 1 / 14, 4 / 13])
    model = Net()
    magnitude = scores(model, IMAGE)["conv2.weight:0"]
    np.testing.assert_allclose(
        scores(model, IMAGE, importance="lamp")["conv2.weight:0"],
        normalised(magnitude, "lamp"),
        rtol=1e-6,
    )


def test_random_is_seeded_and_needs_no_weights() -> None:
    with torch.device("meta"):
        model = Net()
    x = torch.empty(2, 3, 6, 6, device="meta")
    first, again, other = (scores(model, x, importance="random", seed=s) for s in (1, 1, 2))
    for name in first:
        assert (first[name] == again[name]).all() and (first[name] != other[name]).all()
    assert (first["conv1.weight:0"][:6] != first["conv2.weight:0"]).all()
    assert (scores(model, x, importance="uniform")["conv2.weight:0"] == 1).all()
    with pytest.raises(IrpruneError, match=r"meta device.*importance='random'"):
        scores(model, x)


# -- normalisers and names -------------------------------------------------------------------------


def test_normalisers() -> None:
    s = np.asarray([1.0, 2.0, 3.0])
    assert normalised(s, "none").tolist() == [1, 2, 3]
    assert normalised(s, "mean").tolist() == [0.5, 1, 1.5]
    np.testing.assert_allclose(normalised(s, "max"), [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(
        normalised(s, "standardisation"), np.asarray([-1, 0, 1]) * np.sqrt(1.5)
    )
    for how in ("mean", "max", "standardisation", "lamp"):
        assert (
            np.isfinite(normalised(np.zeros(3), how)).all()
            and np.isfinite(normalised(np.full(3, 0.1), how)).all()
        )
    assert (normalised(np.full(3, 0.1), "standardisation") == 0).all()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(IrpruneError, match=r"no criterion is called 'taylr'.*one of .*magnitude"):
        scores(Net(), IMAGE, importance="taylr")
    with pytest.raises(IrpruneError, match="no normaliser is called 'median'"):
        scores(Net(), IMAGE, normalise="median")
    with pytest.raises(IrpruneError, match="no group reduction is called 'first'"):
        scores(Net(), IMAGE, reduce="first")
    with pytest.raises(IrpruneError, match="the norm p is 3"):
        scores(Net(), IMAGE, p=3)
    with pytest.raises(
        IrpruneError, match=r"criterion 'random' has no option 'p' \(importance\); it has seed"
    ):
        scores(Net(), IMAGE, importance="random", p=1)


def test_every_criterion_scores_and_names_its_source() -> None:
    own = {n: m for n, m in criteria().items() if m.__module__.startswith("irprune.")}
    for name, made in own.items():
        text = (made.__doc__ or "") + (__import__(made.__module__, fromlist=["x"]).__doc__ or "")
        assert any(year in text for year in ("20", "19")), f"{name} names no paper"
    with pytest.raises(ValueError, match="declared twice"):
        criterion("magnitude")(criteria()["random"])  # type: ignore[type-var]


def test_an_object_of_the_users_own() -> None:
    class Last:
        def scores(self, graph: Graph, groups: Any, blocks: Any) -> dict[Axis, np.ndarray]:
            return {g.axis: np.arange(g.size, dtype=float) for g in groups}

    assert scores(Net(), IMAGE, importance=Last())["conv1.weight:0"].tolist() == list(range(8))

    class Broken(Last):
        def scores(self, graph: Graph, groups: Any, blocks: Any) -> dict[Axis, np.ndarray]:
            return {g.axis: np.full(g.size, np.nan) for g in groups}

    with pytest.raises(IrpruneError, match=r"importance is NaN or infinite.*'conv1.weight:0'"):
        scores(Net(), IMAGE, importance=Broken())
