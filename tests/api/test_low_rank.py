"""Layers of low rank: in modules and in files, by a budget and by name, with what is said of
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import irprune
from irprune.analysis.cost import Costs
from irprune.analysis.factorable import factorable
from irprune.analysis.ranked_costs import RankedCosts
from irprune.api import low_rank
from irprune.cli import cli
from irprune.cli.spelling import spell
from irprune.driver.pipelines import analyse
from irprune.errors import CheckFailed, IrpruneError
from irprune.frontend.onnx import low_rank as file_form
from irprune.frontend.torch import low_rank as module_form
from irprune.run.low_rank import Factors, factorise
from irprune.run.session import session


class Net(nn.Module):
    """Convolutions and linear layers, of which ``fc1`` has rank 4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c1 = nn.Conv2d(3, 16, 3, padding=1)
        self.c2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.p = nn.Conv2d(32, 32, 1)
        self.fc1, self.fc2, self.out = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 10)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.randn(48, 4) @ torch.randn(4, 32) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.p(torch.relu(self.c2(torch.relu(self.c1(x)))))).mean((2, 3))
        return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
_DRAW = torch.Generator().manual_seed(2)
# Pictures of unlike brightness and contrast, so that means over pixels say something
DATA = torch.randn(64, 3, 8, 8, generator=_DRAW) * torch.rand(64, 3, 1, 1, generator=_DRAW) * 3
DATA = DATA + torch.randn(64, 3, 1, 1, generator=_DRAW)


def written(tmp_path: Path) -> Path:
    """A file with Conv, Gemm in both layouts, and MatMul with the weight on either side."""
    rng = np.random.default_rng(0)
    arrays = {
        "conv.w": rng.standard_normal((16, 3, 3, 3)) / 5,
        "conv.b": rng.standard_normal(16),
        "a.w": rng.standard_normal((32, 16)) / 4,
        "a.b": rng.standard_normal(32),
        "b.w": rng.standard_normal((32, 24)) / 5,
        "b.b": rng.standard_normal(24),
        "c.w": rng.standard_normal((24, 20)) / 5,
        "d.w": rng.standard_normal((12, 20)) / 5,
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.w", "conv.b"], ["h0"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("GlobalAveragePool", ["h1"], ["h2"]),
        helper.make_node("Flatten", ["h2"], ["h3"]),
        helper.make_node("Gemm", ["h3", "a.w", "a.b"], ["h4"], "a", transB=1),
        helper.make_node("Relu", ["h4"], ["h5"]),
        helper.make_node("Gemm", ["h5", "b.w", "b.b"], ["h6"], "b"),
        helper.make_node("Relu", ["h6"], ["h7"]),
        helper.make_node("MatMul", ["h7", "c.w"], ["h8"], "c"),
        helper.make_node("Relu", ["h8"], ["h9"]),
        helper.make_node("Transpose", ["h9"], ["h10"], perm=[1, 0]),
        helper.make_node("MatMul", ["d.w", "h10"], ["y"], "d"),
    ]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "both",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [12, "n"])],
            [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(made)
    path = tmp_path / "both.onnx"
    onnx.save(made, str(path))
    return path


def test_ranks_by_name_in_a_module() -> None:
    model = Net().eval()
    made = irprune.prune(model, (X,), ratio=0, low_rank={"fc1*": 4, "p": 8, "c2.weight": 12})
    report = made.report
    assert report.proof is not None and report.proof.passed
    assert report.low_rank is not None and report.low_rank.error < 1e-5
    assert {x.name: x.rank for x in report.low_rank.layers} == made.plan.low_rank
    assert made.plan.low_rank == {"c2.weight": 12, "p.weight": 8, "fc1.weight": 4}
    state = made.module.state_dict()
    assert state["fc1.0.weight"].shape == (4, 32) and state["fc1.1.weight"].shape == (48, 4)
    assert state["c2.0.weight"].shape == (12, 16, 3, 3)
    assert state["c2.1.weight"].shape == (32, 12, 1, 1)
    # Counts are those of what comes out
    assert report.params.after == sum(p.numel() for p in made.module.parameters())
    assert report.params.before == sum(p.numel() for p in model.parameters())
    only = irprune.prune(model, (X,), ratio=0, low_rank={"fc1*": 4})
    assert torch.allclose(only.module(X), model(X), atol=1e-5)  # it has no more than rank 4


def test_widths_and_ranks_together_are_proven(tmp_path: Path) -> None:
    made = irprune.prune(Net().eval(), (X,), ratio=0.5, low_rank={"fc*": 4})
    assert made.report.proof is not None and made.report.proof.passed
    assert made.module.state_dict()["fc1.1.weight"].shape == (24, 4)
    assert made.report.params.after == sum(p.numel() for p in made.module.parameters())
    made.onnx(tmp_path / "small.onnx")
    assert made.report.parity is not None and made.report.parity.passed
    assert made.kept["fc1.weight"][0] is not None  # in terms of the original
    made.save(tmp_path / "folder")
    again = irprune.load(tmp_path / "folder")
    assert torch.allclose(again(X), made.module(X), atol=1e-6)


def test_a_file_in_every_spelling(tmp_path: Path) -> None:
    path = written(tmp_path)
    ranks = {"conv.w": 6, "a.w": 5, "b.w": 7, "c.w": 4, "d.w": 3}
    made = irprune.prune(path, ratio=0.25, low_rank=ranks)
    assert made.report.proof is not None and made.report.proof.passed
    assert made.plan.low_rank == ranks
    small = made.onnx(tmp_path / "small.onnx")
    assert all(r.passed for r in made.report.read_back)
    names = {t.name: tuple(t.dims) for t in onnx.load(str(small)).graph.initializer}
    assert names["conv.w.0"] == (6, 3, 3, 3) and names["conv.w.1"] == (12, 6, 1, 1)
    assert names["a.w.0"] == (5, 12) and names["c.w.0"] == (18, 4) and names["d.w.1"] == (12, 3)
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    (y,) = session(small).run(None, {"x": x})
    assert y.shape == (12, 3)


def test_ranks_compete_with_widths_for_a_budget() -> None:
    model = Net().eval()
    options: dict[str, Any] = {"budget": {"params": 0.75}, "calibration": DATA}
    widths = irprune.prune(model, (X,), **options)
    both = irprune.prune(model, (X,), **options, low_rank=True)
    low = both.report.low_rank
    assert low is not None and low.calibrated and low.output_error is not None
    assert both.report.params.left <= 0.75
    # fc1 has rank 4: to make two of it loses nothing, and saves more than any width
    assert both.plan.low_rank["fc1.weight"] == 4
    assert both.report.proof is not None and both.report.proof.passed

    def off(pruned: irprune.Pruned) -> float:
        with torch.no_grad():
            return float((pruned.module(DATA) - model(DATA)).square().mean())

    assert off(both) < off(widths)


def test_without_data_a_budget_takes_ranks_as_well() -> None:
    made = irprune.prune(Net().eval(), (X,), budget={"params": 0.7}, low_rank=True)
    assert made.plan.low_rank["fc1.weight"] == 4 and not made.plan.calibrated
    again = irprune.apply_plan(Net().eval(), made.plan, (X,))
    assert torch.equal(again.module(X), made.module(X))


def test_costs_of_two_layers_are_those_that_come_out() -> None:
    model = Net().eval()
    graph = analyse(irprune.capture(model, (X,)))
    one = next(f for f in factorable(graph) if f.name == "c2.weight")
    assert graph.axes is not None
    leaf = graph.axes.leaf(one.size)
    costs = RankedCosts(Costs(graph), {leaf: one})
    made = irprune.prune(model, (X,), ratio=0, low_rank={"c2": 5}).report
    assert costs.measure("params", {leaf: 5}) == made.params.after
    assert costs.measure("macs", {leaf: 5}) == made.macs.after
    assert costs.measure("params", {leaf: one.size}) == made.params.before
    assert (
        costs.change("macs", leaf, {leaf: one.size}, {leaf: 5})
        == made.macs.after - made.macs.before
    )


def test_an_instance_becomes_what_comes_out() -> None:
    model = Net().eval()
    made = irprune.prune(model, (X,), ratio=0.5, low_rank={"fc2": 4})
    instance = made.apply_to(Net().eval())
    assert torch.allclose(instance(X), made.module(X), atol=1e-5)
    assert isinstance(instance.fc2, nn.Sequential) and instance.fc2.out_features == 16
    instance(X).sum().backward()
    assert instance.fc2[0].weight.grad is not None


@pytest.mark.parametrize("which", [0, 1])
def test_a_planted_fault_in_the_two_layers_of_a_module_is_seen(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = module_form._two

    def spoilt(layer: nn.Module, split: module_form.SplitLayer) -> module_form.LowRank:
        made = built(layer, split)
        with torch.no_grad():
            made[which].weight.copy_(made[which].weight.flip(0))
        return made

    monkeypatch.setattr(module_form, "_two", spoilt)
    with pytest.raises(CheckFailed, match="two layers do not compute"):
        irprune.prune(Net().eval(), (X,), ratio=0, low_rank={"fc2": 8})


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_planted_fault_in_the_two_nodes_of_a_file_is_seen(
    which: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = file_form.with_split_nodes

    def spoilt(source: Any, split: Any) -> onnx.ModelProto:
        for one in split.values():
            array = getattr(one, which)
            array[...] = array[::-1].copy()
        return built(source, split)

    monkeypatch.setattr(file_form, "with_split_nodes", spoilt)
    with pytest.raises(CheckFailed, match="two layers do not compute"):
        irprune.prune(written(tmp_path), ratio=0, low_rank={"b.w": 8})


def test_factors_of_another_matrix_show_in_the_measured_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def error() -> float:
        made = irprune.prune(
            Net().eval(), (X,), ratio=0, low_rank={"fc1": 4}, calibration=DATA, repair=False
        )
        assert made.report.low_rank is not None
        assert made.report.low_rank.output_error is not None
        return made.report.low_rank.output_error

    assert error() < 1e-4

    def other(matrix: torch.Tensor, rank: int, gram: torch.Tensor | None = None) -> Factors:
        found = factorise(matrix, rank, gram)
        return Factors(found.first.flip(1), found.second, found.lost)

    monkeypatch.setattr(low_rank, "factorise", other)
    assert error() > 0.01  # against the original itself, not its factors


def test_ranks_are_looked_for_with_a_metric() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU()).eval()
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(96, 6) @ torch.randn(6, 96) / 8)
    data = torch.randn(192, 32)
    options: dict[str, Any] = {"metric": "cosine", "minimise": "params", "points": 2}
    made = irprune.prune(
        model, (data[:4],), calibration=data, low_rank=True, max_drop=0.02, **options
    )
    assert made.trials is not None and made.trials.best.passed
    assert made.plan.low_rank["2.weight"] < 48
    assert not made.trials.tried[-1].passed  # what comes out is the best of them, not the last
    assert made.report.params.left == pytest.approx(made.trials.best.params)
    plain = irprune.prune(model, (data[:4],), calibration=data, max_drop=0.02, **options)
    assert made.report.params.after < plain.report.params.after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low_rank": True}, "needs a budget"),
        (
            {"low_rank": True, "calibration": DATA, "max_drop": 0.1, "minimise": "latency"},
            "latency does not know",
        ),
        ({"low_rank": True, "budget": {"latency": 0.5}}, "latency does not know"),
        ({"low_rank": True, "budget": {"macs": 0.5}, "scope": "local"}, "scope is 'local'"),
        ({"low_rank": {"nothing": 4}}, "matches no layer that can become two"),
        ({"low_rank": {"fc1": 30}}, "saves nothing"),
        ({"low_rank": {"fc1": 0}}, "takes True, False, or ranks"),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IrpruneError, match=message) as error:
        irprune.prune(Net().eval(), (X,), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--low-rank", "--low-rank needs a budget"),
        ("--low-rank", "which ranks (--low-rank-of 'fc*=16')"),
        ("--low-rank --latency 0.5", "with --low-rank say macs"),
        ("--low-rank --uniform --params 0.5", "--low-rank and --uniform are both given"),
        ("--low-rank --format hf --params 0.5", "--format hf and --low-rank are both given"),
        ("--low-rank-of a=5 --format hf", "--format hf and --low-rank-of a=5 are both given"),
        (
            "--low-rank-of a=5 --low-rank-of b*=6 -o x.gguf",
            "a GGUF file and --low-rank-of a=5 --low-rank-of 'b*=6' are both given",
        ),
    ],
)
def test_the_command_line_names_what_was_typed(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And refuses it before a model is loaded: there is none."""
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(cli, ["prune", "none.onnx", "-o", "out", *words.split()])
    assert isinstance(ran.exception, IrpruneError)
    assert said in ran.exception.spelled(spell)


def test_the_command_line(tmp_path: Path) -> None:
    path, out = written(tmp_path), tmp_path / "small.onnx"
    said = ["prune", str(path), "-o", str(out), "--low-rank-of", "a.w=5", "--ratio", "0.25"]
    ran = CliRunner().invoke(cli, [*said, "--no-bench", "--json"])
    assert ran.exit_code == 0, ran.output
    told = (
        json.loads(ran.stdout)["report"]
        if "report" in json.loads(ran.stdout)
        else json.loads(ran.stdout)
    )
    assert told["low_rank"]["layers"][0]["rank"] == 5
    assert "  low rank" in CliRunner().invoke(cli, [*said, "--no-bench", "--force"]).output
    budget = ["prune", str(path), "-o", str(tmp_path / "b.onnx"), "--params", "0.6", "--low-rank"]
    ran = CliRunner().invoke(cli, [*budget, "--no-bench"])
    assert ran.exit_code == 0, ran.output


def test_a_pipeline_writes_it(tmp_path: Path) -> None:
    path, out = written(tmp_path), tmp_path / "small.onnx"
    pipeline = "prepare,analyse,low-rank{ranks={a.w=5}},cut"
    ran = CliRunner().invoke(cli, ["opt", str(path), "-p", pipeline, "-o", str(out)])
    assert ran.exit_code == 0, ran.output
    names = {t.name for t in onnx.load(str(out)).graph.initializer}
    assert {"a.w.0", "a.w.1"} <= names and "a.w" not in names


def test_the_page_says_it() -> None:
    made = irprune.prune(Net().eval(), (X,), ratio=0, low_rank={"fc1": 4})
    page = made.report.to_html()
    assert "Low rank:" in page and "fc1.weight 4 of 32" in page
