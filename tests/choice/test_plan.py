"""Plans: written, read, replayed exactly, found again in an export, and refused where they do not
fit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import analysed
from torch import Tensor, nn
from torch.nn import functional as F

import models
from irprune import api
from irprune.analysis.cost import Costs
from irprune.choice.plan import Plan, fingerprint
from irprune.choice.replay import _fits, choose_by_plan, replay
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph, TensorType, Weight
from irprune.ir.group import groups_of
from irprune.ir.selection import Selection
from irprune.passes.choose import Choose
from irprune.passes.score import Score
from irprune.run.take import kept_indices


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Net(nn.Module):
    """A norm group (chosen per block), a residual sum and a flatten."""

    def __init__(self, width: int = 12, hidden: int = 10) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(3, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.fc1, self.fc2 = nn.Linear(width * 4, hidden), nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        return self.fc2(F.relu(self.fc1((x + self.conv2(x)).flatten(1))))


IMAGE = torch.randn(2, 3, 2, 2)


def chosen(graph: Graph, **options: Any) -> Graph:
    Score().run(graph)
    Choose(**options).run(graph)
    return graph


def planned(**options: Any) -> Plan:
    return Plan.from_graph(chosen(analysed(Net(), IMAGE), **options))


def by_name(graph: Graph, kept: Selection) -> dict[str, list[int]]:
    return {g.name: kept.choice[g.axis].tolist() for g in groups_of(graph) if g.axis in kept.choice}


def cuts(graph: Graph, kept: Selection) -> dict[str, list[list[int] | None]]:
    """Kept indices of every weight that is cut."""
    made = {
        w.name: [None if i is None else i.tolist() for i in kept_indices(w, kept)]
        for w in graph.weights.values()
    }
    return {name: dims for name, dims in made.items() if any(d is not None for d in dims)}


# -- the same model --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["resnet50", "resnext50", "unet", "llama", "swin_t", "shufflenetv2", "moe", "lstm_tagger"],
)
def test_replays_exactly_on_the_same_model(name: str, tmp_path: Path) -> None:
    case = models.get(name)
    model, (args, kwargs) = case.build(small=True), case.example_inputs(small=True)
    graph = chosen(analysed(model, *args, **kwargs), ratio=0.4, prefer="head_dim")
    assert graph.kept is not None and graph.kept.choice
    plan = Plan.load(Plan.from_graph(graph).save(tmp_path / "plan.json"))
    other = analysed(model, *args, **kwargs)
    choose_by_plan(plan, other)
    assert other.kept is not None
    assert by_name(other, other.kept) == by_name(graph, graph.kept)
    assert cuts(other, other.kept) == cuts(graph, graph.kept)
    free = [g for g in groups_of(other) if not g.frozen and not other.kept.changes(g.axis)]
    assert {other.skipped[g.axis] for g in free} <= {"the plan leaves it whole"}


def test_the_file_is_the_same_each_time_and_reads_back_as_it_was(tmp_path: Path) -> None:
    plan = planned()
    torch.manual_seed(0)
    first, second = plan.save(tmp_path / "a.json"), planned().save(tmp_path / "b.json")
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text()
    for form in (plan, first, str(first), text, json.loads(text)):
        assert Plan.read(form) == plan
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]
    within = next(c for c in plan.choices if c.within)
    assert (
        within.name == "conv1.weight:0/1"
        and within.within == "conv1.weight:0"
        and len(within.kept) == 3
    )


def test_other_weights_of_the_same_structure_will_do() -> None:
    plan = planned()
    torch.manual_seed(5)
    graph = analysed(Net(), IMAGE)
    assert plan.source == fingerprint(graph)
    assert cuts(graph, replay(plan, graph)).keys() >= {"conv1.weight", "fc1.weight"}


def test_no_weights_are_needed(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Net()
    graph = analysed(model, torch.empty(2, 3, 2, 2, device="meta"))
    Score("random").run(graph)
    Choose().run(graph)
    plan = Plan.load(Plan.from_graph(graph).save(tmp_path / "p.json"))
    assert all(w.probe is None for w in plan.weights.values())
    assert replay(plan, analysed(Net(), IMAGE)).choice


def test_a_plan_needs_a_choice() -> None:
    with pytest.raises(ValueError, match="after choose and before slice"):
        Plan.from_graph(analysed(Net(), IMAGE))


# -- an export of it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, prefer",
    [
        ("resnet50", "heads"),
        ("resnext50", "heads"),
        ("unet", "heads"),
        ("llama", "heads"),
        ("shufflenetv2", "heads"),
        ("t5", "heads"),
        ("qkv_unbind", "head_dim"),
        ("vit_b16", "both"),
    ],
)
def test_replays_on_an_onnx_export(name: str, prefer: str) -> None:
    from irprune.frontend.onnx import reader as onnx

    case = models.get(name)
    model, (args, kwargs) = case.build(small=True).eval(), case.example_inputs(small=True)
    graph = chosen(analysed(model, *args, **kwargs), ratio=0.4, prefer=prefer)
    assert graph.kept is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
    other = api.analyse(onnx.capture_onnx(program.model_proto))
    kept = replay(Plan.from_graph(graph), other)
    assert Costs(other).at(kept).macs == Costs(graph).at(graph.kept).macs < Costs(graph).at({}).macs
    ours, theirs = cuts(graph, graph.kept), cuts(other, kept)
    shared = [
        n for n in ours if n in other.weights and graph.weights[n].shape == other.weights[n].shape
    ]
    assert shared
    for n in shared:
        assert theirs[n] == ours[n]


class Turned(nn.Module):
    """The same function as ``Net``, with ``fc1`` stored as its transpose and ``conv1`` under
    another name."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        # The first weight that is met: nothing else is known of its channels yet
        self.fc1 = nn.Module()
        self.first, self.norm, self.conv2, self.fc2 = net.conv1, net.norm, net.conv2, net.fc2
        self.fc1.weight, self.fc1.bias = (
            nn.Parameter(net.fc1.weight.detach().t().clone()),
            net.fc1.bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.fc2(F.relu((x + self.conv2(x)).flatten(1) @ self.fc1.weight + self.fc1.bias))


def test_transposed_and_renamed_weights_are_found() -> None:
    net = Net(hidden=48)  # fc1 is square: its shape does not tell which way round it lies
    graph = chosen(analysed(net, IMAGE))
    assert graph.kept is not None
    other = analysed(Turned(net), IMAGE)
    found = cuts(other, replay(Plan.from_graph(graph), other))
    expected = cuts(graph, graph.kept)
    assert found["fc1.weight"] == expected["fc1.weight"][::-1]
    assert found["first.weight"] == expected["conv1.weight"]
    assert found.keys() == {n.replace("conv1", "first") for n in expected}


class Nameless(nn.Module):
    """A perceptron without biases, or the same one with all weights renamed and transposed."""

    def __init__(self, a: Tensor, b: Tensor, exported: bool) -> None:
        super().__init__()
        self.exported = exported
        if exported:
            self.val_2, self.val_1 = nn.Parameter(b.t().clone()), nn.Parameter(a.t().clone())
        else:
            self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return (
            F.relu(x @ self.val_1) @ self.val_2
            if self.exported
            else F.linear(F.relu(F.linear(x, self.a)), self.b)
        )


def test_weights_are_found_by_what_they_hold() -> None:
    a, b, x = torch.randn(8, 8), torch.randn(8, 8), torch.randn(2, 8)
    graph = chosen(analysed(Nameless(a, b, False), x))
    assert graph.kept is not None
    plan = Plan.from_graph(graph)
    other = analysed(Nameless(a, b, True), x)
    ours, theirs = cuts(graph, graph.kept), cuts(other, replay(plan, other))
    assert theirs == {"val_2": ours["b"][::-1], "val_1": ours["a"][::-1]}
    assert "weight 'a': expected shape [8, 8], found no such weight" in refusal(
        plan, Nameless(b + 1, a + 1, True), x
    )


def test_ways_a_weight_may_lie() -> None:
    assert list(_fits((4, 3), (4, 3))) == [((0,), (1,))]
    assert list(_fits((4, 3), (3, 4))) == [((1,), (0,))]
    assert list(_fits((4, 4), (4, 4))) == [((0,), (1,)), ((1,), (0,))]
    assert list(_fits((4, 3), (4, 3, 1, 1))) == [((0,), (1,), (), ())]
    assert list(_fits((4, 1, 3), (3, 4))) == [((2,), (0,))]
    assert list(_fits((4, 3, 5), (4, 15))) == [((0,), (1, 2))]
    assert list(_fits((4, 3, 5), (12, 1, 5))) == [((0, 1), (), (2,))]
    assert list(_fits((4, 3), (12,))) == [((0, 1),)]
    assert list(_fits((4, 3), (4, 2))) == [] == list(_fits((4, 3), (2, 2, 3)))


# -- refused ---------------------------------------------------------------------------------------


def refusal(plan: Plan, model: nn.Module, *args: Tensor) -> str:
    with pytest.raises(IrpruneError) as refused:
        replay(plan, analysed(model, *args))
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_a_model_of_other_sizes() -> None:
    text = refusal(planned(), Net(width=15), IMAGE)
    assert (
        "does not fit" in text
        and "weight 'conv1.weight': expected shape [12, 3, 3, 3], found [15, 3, 3, 3]" in text
    )


def test_another_model() -> None:
    text = refusal(
        planned(), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    )
    assert "weight 'conv1.weight': expected shape [12, 3, 3, 3], found no such weight" in text


def test_a_model_that_couples_otherwise() -> None:
    class Loose(Net):
        """The same weights; what the plan cuts is a graph output here."""

        def forward(self, x: Tensor) -> Any:
            h = F.relu(self.norm(self.conv1(x)))
            y = F.relu(self.fc1((h + self.conv2(h)).flatten(1)))
            return self.fc2(y), y

    assert (
        "group 'fc1.weight:0': expected one that may shrink, found frozen: graph output"
        in refusal(planned(), Loose(), IMAGE)
    )

    class Longer(Loose):
        def forward(self, x: Tensor) -> Any:
            return tuple(y.relu() for y in super().forward(x))

    assert (
        "group 'fc1.weight:0': expected one that may shrink, found frozen: graph output"
        in refusal(planned(), Longer(), IMAGE)
    )

    class Tied(Net):
        """The hidden units are doubled: the first half must be cut as the second is."""

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.norm(self.conv1(x)))
            y = F.relu(self.fc1((h + self.conv2(h)).flatten(1)))
            a, b = y.chunk(2, 1)
            return self.fc2(torch.cat([a * b, a + b], 1))

    graph = chosen(analysed(Net(), IMAGE))
    hidden = next(g.axis for g in groups_of(graph) if g.name == "fc1.weight:0")
    graph.kept = Selection({hidden: [0, 1, 2, 3, 8]})
    text = refusal(Plan.from_graph(graph), Tied(), IMAGE)
    assert "does not fit" in text and "coupled" in text


def test_channels_that_a_norm_would_split_unevenly() -> None:
    """What is dropped of 12 channels is no choice within 3 groups of 4: each group would keep
    another number."""

    class Normed(nn.Module):
        def __init__(self, norm: bool) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)
            self.norm = nn.GroupNorm(3, 12, affine=False) if norm else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv2(self.norm(self.conv1(x)))

    graph = chosen(analysed(Normed(False), IMAGE))
    channels = next(g.axis for g in groups_of(graph) if g.name == "conv1.weight:0")
    graph.kept = Selection({channels: [0, 1, 2, 4, 8, 9]})
    text = refusal(Plan.from_graph(graph), Normed(True), IMAGE)
    assert (
        "weight 'conv1.weight': expected 6 of 12 kept in dimension 0, found channels coupled in another way"
        in text
    )
    graph.kept = Selection({channels: [0, 1, 5, 6, 8, 11]})
    even = analysed(Normed(True), IMAGE)
    assert cuts(even, replay(Plan.from_graph(graph), even)) == cuts(graph, graph.kept)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.pop("irprune"), "this is not a plan"),
        (lambda d: d.pop("choices"), "damaged: KeyError: 'choices'"),
        (lambda d: d["choices"][0].update(kept="many"), "damaged"),
        (lambda d: d["choices"][0].update(size="x"), "damaged"),
        (lambda d: d.update(weights=[]), "damaged"),
    ],
)
def test_damaged_files(change: Any, said: str, tmp_path: Path) -> None:
    data = planned().as_json()
    data = json.loads(json.dumps(data))
    change(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(IrpruneError, match=said) as refused:
        Plan.load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_indices_that_are_none_of_the_groups() -> None:
    data = json.loads(json.dumps(planned().as_json()))
    data["choices"][-1]["kept"] = [0, 400]
    with pytest.raises(IrpruneError, match="damaged"):
        replay(Plan.from_json(data), analysed(Net(), IMAGE))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(IrpruneError, match="cannot be read: No such file"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(IrpruneError, match="no JSON"):
        Plan.read(tmp_path / "empty.json")
    with pytest.raises(IrpruneError, match="cannot write"):
        planned().save(tmp_path / "no" / "folder.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(IrpruneError, match="cannot write"):
        planned().save(tmp_path / "folder.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.json", "folder.json"]


def test_the_fingerprint_is_of_the_structure() -> None:
    graph = analysed(Net(), IMAGE)
    assert (
        fingerprint(graph)
        == fingerprint(analysed(Net(), torch.randn(5, 3, 2, 2)))
        != fingerprint(analysed(Net(width=15), IMAGE))
    )
    graph.add_weight(Weight("more", TensorType("f32", (2,)), lambda: np.zeros(2)))
    assert fingerprint(graph) != fingerprint(analysed(Net(), IMAGE))
