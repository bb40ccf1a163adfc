"""Criteria that read data: each finds what it is meant to find, on nets where the answer is
known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irprune import api
from irprune.criteria import criteria, named
from irprune.criteria.fisher import Fisher
from irprune.criteria.taylor import Taylor, TaylorSquared
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.passes.choose import Choose
from irprune.passes.score import Score
from irprune.run.batch import Batch
from irprune.run.gradients import Gradients, drawn_loss

DATA = ("fisher", "flap", "osscar", "reconstruction", "taylor", "taylor_squared", "wanda")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def captured(model: nn.Module, *args: Tensor) -> Graph:
    return api.analyse(api.capture(model.eval(), args))


def scored(
    model: nn.Module, x: Tensor, importance: Any, member: str, **options: Any
) -> np.ndarray[Any, Any]:
    graph = captured(model, x[:2])
    Score(importance, calibration=x, **options).run(graph)
    return graph.scores[next(g.axis for g in api.groups(graph) if member in map(str, g.members))]


class Planted(nn.Module):
    """Six hidden channels of ReLU. 0 is read with weight zero, 1 is constant, 2 is small, 3 a
    double of 4, 5 is on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 4)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(6))
            self.first.weight[1] = 0
            self.first.weight[2] *= 0.01
            self.first.weight[3] = self.first.weight[4]
            self.first.bias.fill_(0.5)
            self.first.bias[1] = 2.0
            self.first.bias[2] = 0.0
            self.second.weight.copy_(
                torch.tensor(
                    [
                        [1, 1, 1, 1, 1, 1],
                        [1, -1, 1, -1, 1, -1],
                        [1, 1, -1, -1, -1, 1],
                        [-1, 1, 1, 1, -1, -1.0],
                    ]
                )
            )
            self.second.weight[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


@pytest.mark.parametrize("name", DATA)
def test_what_is_not_read_matters_least(name: str) -> None:
    s = scored(Planted(), torch.randn(512, 6), name, "first.weight:0")
    assert s.shape == (6,) and s.argmin() == 0 and s[0] < 1e-6 * s.max()


# Of two doubles each alone is worth nothing, and of a constant beside a bias
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("wanda", (2,), (1, 3, 4, 5)),  # a large constant counts: it is large
        ("flap", (1, 2), (3, 4, 5)),  # a constant does not: the bias can say it
        (
            "reconstruction",
            (1, 2, 3, 4),
            (5,),
        ),
        ("taylor", (2,), (3, 4, 5)),
        ("taylor_squared", (2,), (3, 4, 5)),
        ("fisher", (2,), (3, 4, 5)),
    ],
)
def test_each_criterion_sees_what_it_is_meant_to_see(
    name: str, low: tuple[int, ...], high: tuple[int, ...]
) -> None:
    s = scored(Planted(), torch.randn(1024, 6), name, "first.weight:0")
    assert s[list(low)].max() < 0.5 * s[list(high)].min(), s


def test_wanda_and_flap_are_what_their_papers_say() -> None:
    x, model = torch.randn(512, 6), Planted()
    h, w = F.relu(model.first(x)).detach(), model.second.weight.detach()
    for name, want in (
        ("wanda", w.abs().sum(0) * h.square().mean(0).sqrt()),
        ("flap", w.square().sum(0) * h.var(0, unbiased=False)),
    ):
        got = scored(model, x, name, "first.weight:0", normalise="none")
        assert np.allclose(got, (want / want.sum()).numpy(), rtol=1e-4, atol=1e-9)


def test_osscar_drops_one_of_two_doubles_and_keeps_the_other() -> None:
    s = scored(Planted(), torch.randn(1024, 6), "osscar", "first.weight:0", normalise="none")
    early, late = sorted(s[[3, 4]])
    assert early < 0.05 * late
    assert named("reconstruction", calibration=1).ridge == named("osscar", calibration=1).ridge


def test_reconstruction_is_the_error_that_the_refit_leaves() -> None:
    x = torch.randn(400, 6).double()
    model = Planted().double()
    got = scored(
        model,
        x,
        named("reconstruction", calibration=x, ridge=1e-9, weighted=False),
        "first.weight:0",
        normalise="none",
    )
    h = F.relu(model.first(x)).detach()
    w = model.second.weight.detach().T
    want = []
    for i in range(6):
        # The bias is refitted too
        rest = torch.cat((h[:, :i], h[:, i + 1 :], torch.ones(400, 1)), 1)
        best = torch.linalg.pinv(rest, rtol=1e-10) @ (h @ w)
        want.append(float((h @ w - rest @ best).square().sum() / (h @ w).square().sum()))
    assert np.allclose(got, want, atol=1e-6)


def test_taylor_is_the_derivative_by_a_gate() -> None:
    x, labels = torch.randn(64, 6), torch.randint(0, 4, (64,))
    model = Planted().eval()

    def loss(outputs: list[Tensor], batch: Batch) -> Tensor:
        return F.cross_entropy(outputs[0], batch.extra[0], reduction="sum")

    graph = captured(model, x[:2])
    (group,) = [g for g in api.groups(graph) if "first.weight:0" in map(str, g.members)]
    gate = torch.ones(6, requires_grad=True)
    want = torch.zeros(6)
    for at in range(0, 64, 4):
        y = model.second(F.relu(model.first(x[at : at + 4])) * gate)
        (g,) = torch.autograd.grad(F.cross_entropy(y, labels[at : at + 4], reduction="sum"), gate)
        want += g.abs() / 64
    got = Taylor([(x, labels)], loss, batch=4).scores(graph, [group], {})[group.axis]
    assert np.allclose(got, want.numpy(), rtol=1e-4, atol=1e-7)
    squared = TaylorSquared([(x, labels)], loss, batch=64).scores(graph, [group], {})[group.axis]
    (g,) = torch.autograd.grad(
        F.cross_entropy(model.second(F.relu(model.first(x)) * gate), labels, reduction="sum"), gate
    )
    assert np.allclose(squared, g.square().numpy() / 64, rtol=1e-4)


def test_fisher_is_half_the_squared_gradient_times_the_squared_weight() -> None:
    x, labels = torch.randn(32, 6), torch.randint(0, 4, (32,))
    model = Planted().eval()
    graph = captured(model, x[:2])
    (group,) = [g for g in api.groups(graph) if "first.weight:0" in map(str, g.members)]

    def loss(outputs: list[Tensor], batch: Batch) -> Tensor:
        return F.cross_entropy(outputs[0], batch.extra[0], reduction="sum")

    want = torch.zeros(6)
    for i in range(32):
        (g,) = torch.autograd.grad(
            F.cross_entropy(model(x[i : i + 1]), labels[i : i + 1], reduction="sum"),
            model.second.weight,
        )
        want += (g.square() * model.second.weight.detach().square()).sum(0) / 64
    got = Fisher([(x, labels)], loss, batch=1).scores(graph, [group], {})[group.axis]
    assert np.allclose(got, want.numpy(), rtol=1e-4)


def test_drawn_labels_follow_the_soft_output_and_gradients_have_mean_zero() -> None:
    """The expected gradient at the model itself is zero, so the mean over many draws is small
    beside the mean of magnitudes."""
    y = torch.tensor([[2.0, 0.0, -1.0]]).expand(4000, 3).clone().requires_grad_()
    (g,) = torch.autograd.grad(drawn_loss([y], torch.Generator().manual_seed(0)), y)
    shares = (torch.softmax(y.detach(), -1) - g).mean(0)
    assert torch.allclose(shares, y[0].detach().softmax(-1), atol=0.03)
    assert g.mean(0).norm() < 0.05 * g.norm(dim=1).mean()
    means = torch.randn(200, 2, 3, 3, requires_grad=True)
    (g,) = torch.autograd.grad(drawn_loss([means], torch.Generator().manual_seed(0)), means)
    assert float(g.mean().abs()) < 0.1 * float(g.abs().mean())


def test_an_output_that_is_a_softmax_is_drawn_from_as_it_is() -> None:
    """Taken for logits, probabilities are all but uniform labels."""
    logits = torch.tensor([[6.0, 0.0, -1.0, -2.0]]).expand(500, 4)
    sure = logits.softmax(-1).clone().requires_grad_()
    value = drawn_loss([sure], torch.Generator().manual_seed(0)) / 500
    entropy = -(logits[0].softmax(-1) * logits[0].log_softmax(-1)).sum()
    assert torch.isclose(value, entropy, atol=0.02)


def test_the_same_seed_gives_the_same_scores() -> None:
    x = torch.randn(64, 6)
    model = Planted()
    a, b, c = (scored(model, x, "taylor", "first.weight:0", seed=s) for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1, groups=2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(F.relu(self.b(F.relu(self.norm(self.a(x)))))).mean((2, 3)))


@pytest.mark.parametrize("name", sorted(criteria()))
@pytest.mark.parametrize("build", [Attention, Convs])
def test_every_criterion_scores_every_free_group(name: str, build: type[nn.Module]) -> None:
    x = torch.randn(16, 5, 16) if build is Attention else torch.randn(16, 3, 6, 6)
    graph = captured(build(), x[:2])
    Score(name, calibration=x).run(graph)
    free = [g for g in api.groups(graph) if not g.frozen]
    if name != "batch_norm_scale":
        assert set(graph.scores) == {g.axis for g in free}
    assert all(
        np.isfinite(s).all() and (s >= 0).all() and s.shape[-1] == leaf.size
        for leaf, s in graph.scores.items()
    )
    assert Choose(0.5).run(graph) or name == "batch_norm_scale"


def test_heads_that_give_nothing_go_first() -> None:
    model = Attention()
    with torch.no_grad():
        model.out.weight[:, 4:8] = 0  # the second head
    x = torch.randn(32, 5, 16)
    for name in DATA:
        s = scored(model, x, name, "out.weight:1")
        assert s.argmin() == 1, name


@pytest.mark.parametrize("name", DATA)
def test_without_data_it_says_so(name: str) -> None:
    graph = captured(Planted(), torch.randn(2, 6))
    with pytest.raises(IrpruneError, match=f"criterion '{name}' needs calibration data"):
        Score(name).run(graph)


def test_bad_losses_are_one_clear_line() -> None:
    x = torch.randn(8, 6)
    graph = captured(Planted(), x[:2])
    bad = {
        "not a finite number": lambda o, b: o[0].sum() * float("nan"),
        "does not depend": lambda o, b: o[0].detach().sum(),
        "finite": lambda o, b: o[0],
    }
    for message, loss in bad.items():
        with pytest.raises(IrpruneError, match=message):
            Score("taylor", calibration=x, loss=loss).run(graph)


def test_gradients_are_those_of_the_model_itself() -> None:
    x = torch.randn(8, 3, 6, 6)
    model = Convs().eval()
    graph = captured(model, x[:2])
    from irprune.run.calibration import Calibration

    (batch,) = Calibration(x, graph)
    made = Gradients(graph, lambda o, b: o[0].square().sum()).of(batch)
    assert batch.size == 8
    model(x).square().sum().backward()
    got = {w.name: g for w, (_, g) in made.items()}
    for name, p in model.named_parameters():
        assert torch.allclose(got[name], p.grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("name", ["osscar", "reconstruction"])
def test_leaves_may_be_taken_a_few_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held at a time changes no score."""
    from irprune.criteria import consumers, readings

    x = torch.randn(16, 3, 6, 6)
    graph = captured(Convs(), x[:2])
    Score(name, calibration=x, normalise="measured").run(graph)
    whole = dict(graph.scores)
    found = consumers.readers(graph, [g for g in api.groups(graph) if not g.frozen], {})
    layers = {leaf: [r.layer for r in many] for leaf, many in found.items()}
    one = readings.readings_of(x, graph, name)
    assert len(list(one.portions(layers))) == 1
    monkeypatch.setattr(readings, "memory_share", lambda: 1)
    few = readings.readings_of(x, graph, name)
    assert len(list(few.portions(layers))) == len(found)
    Score(name, calibration=x, normalise="measured").run(graph)
    assert all(np.array_equal(s, whole[leaf]) for leaf, s in graph.scores.items()) and len(
        whole
    ) == len(graph.scores)


@pytest.mark.parametrize("name", ["osscar", "reconstruction"])
def test_a_layer_too_wide_for_a_gram_matrix_is_judged_by_its_diagonal(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from irprune.criteria import readings

    monkeypatch.setattr(readings, "WIDEST", 5)
    x, model = torch.randn(256, 6), Planted()
    got = scored(
        model, x, named(name, calibration=x, weighted=False), "first.weight:0", normalise="none"
    )
    h, w = F.relu(model.first(x)).detach(), model.second.weight.detach()
    want = (w.square().sum(0) * h.var(0, unbiased=False)).numpy()  # the bias says what is constant
    assert np.allclose(got, want / want.sum(), rtol=1e-4, atol=1e-9)


def test_without_a_gradient_errors_count_relative_to_the_result() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.planted = Planted()

        def forward(self, x: Tensor) -> Tensor:
            return self.planted(x).argmax(-1)

    x = torch.randn(128, 6)
    model = Whole()
    plain = scored(
        model, x, named("osscar", calibration=x, weighted=False), "planted.first.weight:0"
    )
    assert np.array_equal(scored(model, x, "osscar", "planted.first.weight:0"), plain)
    with pytest.raises(IrpruneError, match="does not depend"):
        scored(
            model,
            x,
            named("osscar", calibration=x, loss=lambda o, b: o[0].float().sum()),
            "planted.first.weight:0",
        )
