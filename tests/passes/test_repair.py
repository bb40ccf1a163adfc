"""Repair: layers are the linear maps they claim to be, and each repair does exactly what it is
for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from repair_models import (
    captured,
    dropped,
    halved,
    inputs,
    redundant,
    trained_statistics,
    weights_of,
)
from torch import Tensor, nn
from torch.nn import functional as F

from irprune import api
from irprune.analysis.layers import layers
from irprune.api.repair import output_error, repair
from irprune.criteria.readings import Readings
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.passes.repair_batch_norm import RepairBatchNorm
from irprune.passes.repair_bias import RepairAffine, RepairBias
from irprune.passes.repair_fold import RepairFold
from irprune.passes.repair_least_squares import RepairLeastSquares
from irprune.passes.repair_static import RepairStatic
from irprune.passes.repairs import repairs
from irprune.run.calibration import Calibration
from irprune.run.interpret import evaluate
from irprune.run.statistics import Pair, load_as


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# -- layers ----------------------------------------------------------------------------------------


class Products(nn.Module):
    """Weights in einsum, bmm, addmm and matmul, with letters in unusual order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.e, self.m = (nn.Parameter(torch.randn(s)) for s in ((4, 6), (3, 4, 5), (5, 7)))
        self.b, self.c = (nn.Parameter(torch.randn(s)) for s in ((7,), (5,)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.einsum("btd,od->bto", x, self.a)
        z = torch.einsum("bto,eof->betf", y, self.e) + self.c
        return z @ self.m + self.b, torch.addmm(self.b, z[:, 0, 0], self.m)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "linear": (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)),
        (2, 7, 6),
        2,
    ),
    "conv": (
        nn.Sequential(
            nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(8, 4, (1, 3), padding="same", dilation=2)
        ),
        (2, 6, 9, 8),
        2,
    ),
    "grouped conv": (nn.Conv2d(6, 8, 3, padding=1, groups=2), (2, 6, 5, 5), 1),
    "depthwise conv": (nn.Conv1d(6, 12, 3, stride=2, groups=6), (2, 6, 9), 1),
    "conv3d": (nn.Conv3d(2, 3, (1, 2, 3)), (2, 2, 3, 4, 5), 1),
    "transposed conv": (
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
        (2, 6, 4, 5),
        1,
    ),
    "grouped transposed conv": (
        nn.ConvTranspose1d(6, 4, 4, stride=3, padding=1, dilation=2, groups=2),
        (2, 6, 5),
        1,
    ),
    "products": (Products(), (2, 7, 6), 4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_linear_map_it_claims_to_be(name: str) -> None:
    model, shape, count = LAYERS[name]
    x = torch.randn(shape)
    graph = captured(model, x)
    found = list(layers(graph))
    assert len(found) == count
    for layer in found:
        weight = load_as(layer.weight, torch.float32)
        assert torch.equal(layer.array(layer.matrix(weight)), weight)
        operand, result = evaluate(
            graph, [x], wanted=[layer.node.operand(layer.at), layer.node.out]
        )
        at = torch.tensor([layer.rows(operand).shape[0] - 1, 1])  # some rows as of all
        assert torch.equal(layer.rows(operand, at), layer.rows(operand)[at])
        assert torch.equal(layer.targets(result, at), layer.targets(result)[at])
        left = layer.targets(result) - torch.einsum(
            "nbk,bko->nbo", layer.rows(operand), layer.matrix(weight)
        )
        assert float((left - left.mean(0)).abs().max()) < 1e-5, (
            "the rest is not constant: it is no bias"
        )
        if layer.bias is not None and layer.bias.weight in layer.node.inputs:
            assert torch.allclose(
                left.mean(0).flatten(),
                load_as(layer.bias.weight, torch.float32).flatten(),
                atol=1e-5,
            )


def test_the_bias_may_be_a_running_mean_or_a_summand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    (layer,) = layers(captured(model, torch.randn(2, 3, 5, 5)))
    assert layer.bias is not None and (layer.bias.weight.name, layer.bias.sign) == (
        "1.running_mean",
        -1,
    )
    found = {layer.node.op: layer for layer in layers(captured(Products(), torch.randn(2, 7, 6)))}
    assert found["matmul"].bias is None  # self.b is added twice: it is not this layer's own


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_least_squares_finds_what_the_kept_channels_can_say(conv: bool) -> None:
    x = torch.randn(64, 3, 6, 6) if conv else torch.randn(64, 6)
    graph = captured(redundant(conv), x[:2])
    cut = dropped(graph, {"0.weight:0": [0, 2, 4, 6]})
    data = Calibration(x, graph, batch=16)
    assert output_error(graph, cut, data) > 0.3
    assert RepairLeastSquares(graph, data, ridge=1e-9).run(cut)
    fresh = Calibration(torch.randn_like(x), graph)
    assert output_error(graph, cut, fresh) < 1e-4


def test_what_a_constant_channel_gave_goes_into_the_running_mean() -> None:
    """The second half of the channels is constant, and the layer that reads them has no bias but a
    batch norm behind it."""
    model = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.Conv2d(8, 5, 1, bias=False), nn.BatchNorm2d(5)
    ).eval()
    with torch.no_grad():
        model[0].weight[4:] = 0
        model[0].bias[4:] = 2.0
    x = inputs(32)
    graph = captured(model, x[:2])
    cut = dropped(graph, {"0.weight:0": [0, 1, 2, 3]})
    assert RepairLeastSquares(graph, Calibration(x, graph), ridge=1e-9).run(cut)
    assert output_error(graph, cut, Calibration(inputs(32), graph)) < 1e-4


@pytest.mark.parametrize("method", repairs())
def test_every_repair_brings_the_output_nearer_on_fresh_data(method: str) -> None:
    graph = captured(trained_statistics(), inputs(2))
    cut = halved(graph)
    fresh = Calibration(inputs(128), graph)
    before = output_error(graph, cut, fresh)
    done = repair(graph, cut, inputs(192), method)
    after = output_error(graph, cut, fresh)
    assert done.methods == (method,) and done.after < done.before and done.samples == 64
    assert (
        after
        < {
            "least_squares": 0.7,
            "static": 0.95,
            "batch_norm": 1.0,
            "bias": 1.0,
            "affine": 1.0,
            "fold": 1.0,
        }[method]
        * before
    )


def test_the_same_repair_twice_gives_the_same_weights_and_spares_the_original() -> None:
    graph = captured(trained_statistics(), inputs(2))
    before = weights_of(graph)
    x = inputs(96)
    made = []
    for memory in (1 << 30, 0):  # in memory, and through files
        cut = halved(graph)
        assert RepairLeastSquares(graph, Calibration(x, graph, batch=32), memory=memory).run(cut)
        made.append(weights_of(cut))
    assert all(torch.equal(made[0][n], made[1][n]) for n in made[0])
    assert all(torch.equal(before[n], t) for n, t in weights_of(graph).items())


def test_the_ridge_of_a_static_repair_does_not_depend_on_memory() -> None:
    """It is judged with the same layers refitted, in whatever portions they are read."""
    graph = captured(trained_statistics(), inputs(2))
    x = inputs(96)
    tried: list[list[dict[str, Tensor]]] = []
    for memory in (1 << 30, 1):
        data, cut, seen = Calibration(x, graph, batch=32), halved(graph), list[dict[str, Tensor]]()

        def judge(made: Graph, seen: list[dict[str, Tensor]] = seen) -> float:
            seen.append(weights_of(made))
            return abs(len(seen) - 3.0)  # the third is the best

        readings = Readings(graph, data, memory)
        made = RepairStatic(graph, data, readings=readings, judge=judge).run(cut)
        assert any("a ridge of 0.1," in note for note in made.notes), made
        tried.append([*seen, weights_of(cut)])
    assert len(tried[0]) == 6
    for one, other in zip(*tried, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(tried[0][0]["wide.weight"], tried[0][1]["wide.weight"])
    assert all(torch.equal(t, tried[0][-1][name]) for name, t in tried[0][2].items())


def test_activations_beyond_the_limit_wait_in_files() -> None:
    graph = captured(trained_statistics(), inputs(2))
    cut = halved(graph)
    with Pair(graph, cut, Calibration(inputs(64), graph, batch=16), memory=1) as walk:
        node = next(layer.node for layer in layers(cut) if layer.weight.name == "wide.weight")
        assert len(list(walk.to(node))) == 4
        shelf = walk._shelf
        assert not shelf.held and shelf.folder is not None
        folder = Path(shelf.folder.name)
        assert len(list(folder.iterdir())) == 4
    assert not folder.exists()


def test_more_samples_do_not_change_what_a_repair_holds() -> None:
    """Gram matrices are what stays, of a size that samples do not enter."""
    from irprune.passes.repair_least_squares import Fit
    from irprune.run.gram import Gram

    sizes = []
    for count in (10, 1000):
        fit = Fit(torch.zeros(1, 4, 3, dtype=torch.float64), True)
        halves = (Gram(), Gram())
        for _ in range(5):
            fit.add(halves, torch.randn(count, 1, 4), torch.randn(count, 1, 3), None)
        sizes.append(sum(gram.bytes for gram in halves))
    assert sizes[0] == sizes[1] == 2 * 4 * (4 * 4 + 4 * 3)


def test_few_samples_leave_the_weights_near_the_sliced_ones() -> None:
    """Fewer rows than unknowns: the prior decides where the data do not."""
    x = torch.randn(64, 32)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    graph = captured(model, x[:2])
    cut = dropped(graph, {"0.weight:0": range(0, 64, 2)})
    sliced = output_error(graph, cut, Calibration(x, graph))
    assert RepairLeastSquares(graph, Calibration(torch.randn(8, 32), graph)).run(cut)
    assert output_error(graph, cut, Calibration(x, graph)) < sliced


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.shared = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(F.relu(self.shared(F.relu(self.inner(x)))))


def test_a_weight_used_twice_is_left_with_a_note() -> None:
    x = torch.randn(32, 6)
    graph = captured(Twice().eval(), x[:2])
    cut = graph.copy()
    graph.kept = Selection({})
    before = load_as(cut.weights["shared.weight"])
    result = RepairLeastSquares(graph, Calibration(x, graph)).run(cut)
    assert any("shared.weight: used more than once" in n for n in result.notes)
    assert torch.equal(before, load_as(cut.weights["shared.weight"]))


# -- the others ------------------------------------------------------------------------------------


def test_batch_norm_statistics_are_those_of_what_it_reads() -> None:
    graph = captured(trained_statistics(), inputs(2))
    cut = halved(graph)
    x = inputs(128)
    assert RepairBatchNorm(graph, Calibration(x, graph, batch=48)).run(cut)
    for node in (n for n in cut.nodes if n.op == "batch_norm"):
        (read,) = evaluate(cut, [x], wanted=[node.operand(0)])
        mean, variance = (load_as(node.inputs[i]) for i in (3, 4))  # type: ignore[arg-type]
        assert torch.allclose(mean, read.double().mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(variance, read.double().movedim(1, 0).flatten(1).var(1), rtol=1e-4)


@pytest.mark.parametrize("kind", [RepairBias, RepairAffine])
def test_bias_and_affine_match_the_moments_of_every_layer(kind: Any) -> None:
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 5)
    ).eval()
    x = torch.randn(128, 6)
    graph = captured(model, x[:2])
    cut = dropped(graph, {"0.weight:0": range(8), "2.weight:0": range(10)})
    assert kind(graph, Calibration(x, graph, batch=50)).run(cut)
    then, now = (evaluate(g, [x])[0].double() for g in (graph, cut))
    assert torch.allclose(then.mean(0), now.mean(0), atol=1e-5)
    assert torch.allclose(then.std(0), now.std(0), rtol=1e-3) == (kind is RepairAffine)


def test_affine_scales_a_convolution_before_its_batch_norm() -> None:
    graph = captured(trained_statistics(), inputs(2))
    cut = halved(graph)
    x = inputs(128)
    RepairAffine(graph, Calibration(x, graph)).run(cut)
    node = next(
        n
        for n in cut.nodes
        if n.op == "batch_norm"
        and n.operand(0).producer is not None
        and getattr(n.operand(0).producer.inputs[1], "name", "") == "wide.weight"
    )
    (now,) = evaluate(cut, [x], wanted=[node.out])
    twin = next(n for n in graph.nodes if n.outputs[0].name == node.outputs[0].name)
    (then,) = evaluate(graph, [x], wanted=[twin.out])
    then = then[:, torch.from_numpy(graph.kept.kept(twin.out.axes[1]))]  # type: ignore[union-attr,index]
    assert torch.allclose(then.mean((0, 2, 3)), now.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(then.std((0, 2, 3)), now.std((0, 2, 3)), rtol=1e-2)


def test_duplicates_are_folded_without_data_and_without_loss() -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()
    with torch.no_grad():
        for p in (model[0].weight, model[0].bias):
            p[4:] = p[:4] * torch.tensor([1.0, 2.0, 0.5, 3.0]).reshape([-1] + [1] * (p.dim() - 1))
    graph = captured(model, inputs(2))
    cut = dropped(graph, {"0.weight:0": [0, 1, 2, 3]})
    fresh = Calibration(inputs(32), graph)
    assert output_error(graph, cut, fresh) > 0.3
    assert repair(graph, cut, None, "fold").methods == ("fold",)
    assert output_error(graph, cut, fresh) < 1e-4


def test_unlike_channels_are_not_folded() -> None:
    graph = captured(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)).eval(), torch.randn(2, 6))
    cut = dropped(graph, {"0.weight:0": range(4)})
    before = load_as(cut.weights["1.weight"])
    RepairFold(graph, Calibration(torch.randn(64, 6), graph), alike=1.1).run(cut)
    assert torch.equal(before, load_as(cut.weights["1.weight"]))


class Narrow(nn.Module):
    """Attention whose values may be narrower than queries and keys; exported, its copy before the
    view is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).contiguous().view(n, t, -1))


def test_values_of_attention_narrower_than_its_queries_are_cut_and_refitted() -> None:
    torch.manual_seed(0)
    model, x, n, t = (
        Narrow().eval(),
        torch.randn(128, 5, 16),
        torch.export.Dim("n"),
        torch.export.Dim("t"),
    )
    x[..., 8:] = x[..., :8] @ torch.randn(8, 8)  # values that lie in 8 dimensions
    pruned = api.prune(
        model,
        (x[:2],),
        prefer="head_dim",
        keep=["q.weight:0/1"],
        dynamic_shapes={"x": {0: n, 1: t}},
        calibration=x,
    )
    assert pruned.module.v.weight.shape == (8, 16) and pruned.module.q.weight.shape == (16, 16)
    assert (
        pruned.report.repair is not None
        and pruned.report.repair.after < 0.8 * pruned.report.repair.before
    )
    assert pruned.module(x[:3, :4]).shape == (3, 4, 16)
