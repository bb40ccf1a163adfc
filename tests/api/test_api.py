"""The public calls: what comes in, what is refused, what comes out, and what is never touched."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
import models
from irprune.errors import IrpruneError
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x)))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = torch.ones(2, 3, 8, 8)


def outputs(model: nn.Module, *args: Any) -> list[Tensor]:
    with torch.no_grad():
        return flat_tensors(model(*args))


# -- the door --------------------------------------------------------------------------------------


def test_import_is_light() -> None:
    code = "import sys, irprune; print([m for m in ('torch', 'onnx', 'numpy', 'click') if m in sys.modules]); print(irprune.__all__)"
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert out[0] == "[]"
    assert "'prune'" in out[1]
    assert set(irprune.__all__) <= set(dir(irprune))
    with pytest.raises(AttributeError, match="no attribute 'prone'"):
        irprune.prone  # noqa: B018 - the attribute is what is tested


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"ratio": -0.1}, "ratio is -0.1"),
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"ratio": "half"}, "ratio is 'half'"),
        ({"ratio": True}, "ratio is True"),
        ({"scope": "everywhere"}, "scope is 'everywhere'"),
        ({"importance": "beauty"}, "beauty"),
        ({"round_to": 0}, "round_to is 0"),
        ({"keep": ["nothing*"]}, "'nothing\\*' matches no weight"),
        ({"ratios": {"no.such": 0.2}}, "'no.such' matches no"),
        ({"budget": {"watts": 0.5}}, "watts"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"colour": "blue"}, "no option 'colour'"),
        ({"budget": 0.5}, "budget is 0.5"),
        ({"budget": {"macs": "half"}}, "budget on macs is"),
        ({"keep": 3}, "keep is 3"),
        ({"keep": [3]}, "keep is"),
        ({"ratios": [("a", 0.5)]}, "ratios is"),
        ({"ratios": {"head*": "half"}}, "ratios is"),
        ({"importance": 3}, "importance is 3"),
        ({"repair": 3}, "repair is 3"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"loss": 3}, "loss is 3"),
        ({"min_channels": 0}, "min_channels is 0"),
        ({"max_ratio": 2}, "max_ratio is 2"),
    ],
)
def test_bad_options_are_refused(net: Net, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(IrpruneError, match=what) as error:
        irprune.prune(net, (X,), **settings)
    assert "\n" not in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize("thing", [None, 3, "model.bin", {"state": 1}, [nn.Linear(2, 2)], Net])
def test_what_is_no_model_is_refused(thing: Any) -> None:
    with pytest.raises(IrpruneError, match="not a model"):
        irprune.prune(thing, (X,))


def test_models_that_must_be_unwrapped_or_called_first_are_refused(net: Net) -> None:
    with pytest.raises(IrpruneError, match=r"wrapped in DataParallel; give the model in it"):
        irprune.prune(nn.DataParallel(net), (X,))
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(IrpruneError, match=r"without a shape yet \(0\.weight\)"):
        irprune.prune(lazy, (torch.randn(2, 3),))
    assert lazy[0].has_uninitialized_params()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        )
    with pytest.raises(
        IrpruneError, match=r"the model is quantised: .* \(0\); prune it, then quantise it"
    ):
        irprune.prune(quantised, (torch.randn(2, 3),))
    with pytest.raises(IrpruneError, match="kwargs is a list"):
        irprune.prune(net, (X,), [1])  # type: ignore[arg-type]
    with pytest.raises(IrpruneError, match="not a graph: Net"):
        irprune.groups(net)  # type: ignore[arg-type]


def test_a_wrong_input_names_the_users_line(net: Net) -> None:
    with pytest.raises(
        IrpruneError, match=r"forward fails on the example input: .*expected input.* 3 channels"
    ) as error:
        irprune.prune(net, (torch.ones(2, 4, 8, 8),))
    assert f"{Path(__file__).name}:" in error.value.where
    with pytest.raises(IrpruneError, match="forward fails on the example input: TypeError"):
        irprune.prune(net, ())


@pytest.mark.parametrize(
    "shapes", [{"y": {0: "batch"}}, {"x": {1: torch.export.Dim("channels")}}, 3]
)
def test_dynamic_shapes_that_do_not_fit_are_told(net: Net, shapes: Any) -> None:
    with pytest.raises(IrpruneError, match=r"torch\.export says") as error:
        irprune.prune(net, (X,), dynamic_shapes=shapes)
    assert error.value.hint.startswith(
        "give dynamic_shapes as torch.export takes it"
    ) and "\n" not in str(error.value)


def test_control_flow_on_data_is_refused_with_the_line_and_both_reasons() -> None:
    case = models.get("refused_control_flow")
    args, kwargs = case.example_inputs()
    with pytest.raises(IrpruneError, match=r"torch.export says .* torch.fx says") as error:
        irprune.prune(case.build(), args, kwargs)
    assert "refused_control_flow.py:27" in error.value.where


def test_nan_weights_are_named(net: Net) -> None:
    with torch.no_grad():
        net.conv2.weight[3, 2, 1, 1] = float("nan")
    with pytest.raises(IrpruneError, match=r"a weight holds NaN.*conv2\.weight"):
        irprune.prune(net, (X,))


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(IrpruneError, match="no such file"):
        irprune.prune(tmp_path / "m.pt2")
    (tmp_path / "m.pt2").write_bytes(b"")
    with pytest.raises(IrpruneError, match="the file is empty"):
        irprune.prune(str(tmp_path / "m.pt2"))
    (tmp_path / "m.pt2").write_bytes(b"PK but no archive")
    with pytest.raises(IrpruneError, match="not a program of torch"):
        irprune.prune(str(tmp_path / "m.pt2"))


def test_an_operator_without_a_rule_is_pruned_around_or_refused_when_strict() -> None:
    case = models.get("unknown_op")
    torch.manual_seed(0)
    model, (args, kwargs) = case.build(small=True), case.example_inputs(small=True)
    pruned = irprune.prune(model, args, kwargs)
    assert list(pruned.report.unruled) == ["pruning_cases.mirror_channels.default"]
    assert "unknown_op.py:" in pruned.report.unruled["pruning_cases.mirror_channels.default"]
    assert pruned.report.params.left < 0.6
    with pytest.raises(IrpruneError, match="no rule for pruning_cases"):
        irprune.prune(model, args, kwargs, strict=True)
    with pytest.raises(IrpruneError, match="no rule for pruning_cases"):
        irprune.apply_plan(model, pruned.plan, args, kwargs, strict=True)


# -- kinds of models -------------------------------------------------------------------------------


def test_all_kinds_of_models_give_the_same(net: Net, tmp_path: Path) -> None:
    program = torch.export.export(net, (X,), strict=False)
    torch.export.save(program, str(tmp_path / "m.pt2"))
    expected = irprune.prune(net, (X,))
    for model in (program, str(tmp_path / "m.pt2"), tmp_path / "m.pt2"):
        found = irprune.prune(model)
        assert found.kept == expected.kept
        assert list(found.module.state_dict()) == list(net.state_dict())
        assert relative_error(outputs(found.module, X), outputs(expected.module, X)) <= 1e-6


def test_an_onnx_file_gives_the_same_and_loads_no_torch(net: Net, tmp_path: Path) -> None:
    import onnx

    whole = irprune.prune(net, (torch.randn(2, 3, 8, 8),), ratio=0)
    path = whole.onnx(tmp_path / "m.onnx")
    pruned = irprune.prune(str(path))
    assert pruned.from_onnx and pruned.report.proof is not None and pruned.report.proof.passed
    out = pruned.onnx(tmp_path / "small.onnx")
    onnx.checker.check_model(str(out), full_check=True)
    assert out.stat().st_size < 0.6 * path.stat().st_size
    assert irprune.prune(onnx.load(str(path))).kept == pruned.kept
    code = (
        "import sys, irprune; p = irprune.prune(sys.argv[1]); p.onnx(sys.argv[2])\n"
        "assert 'torch' not in sys.modules; print(p.report.params.after)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "t.onnx")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(made.stdout) == pruned.report.params.after
    assert (tmp_path / "t.onnx").read_bytes() == out.read_bytes()


def test_a_model_on_the_meta_device_is_cut_without_values() -> None:
    with torch.device("meta"):
        model, x = Net().eval(), torch.empty(2, 3, 8, 8)
    pruned = irprune.prune(model, (x,), importance="random")
    assert pruned.report.proof is None and any("meta" in note for note in pruned.report.notes)
    assert pruned.module.conv1.weight.is_meta and tuple(pruned.module.conv1.weight.shape) == (
        8,
        3,
        3,
        3,
    )


class Mixed(nn.Module):
    """bfloat16 inside autocast, a part without gradients, a scalar among the results."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = self.up(x)
        with torch.set_grad_enabled(False):
            whole = self.up(x)
        y = self.down(half.float() + whole)
        return y, y.mean()


def test_autocast_and_parts_without_gradients_are_cut_and_proven() -> None:
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(2, 8)
    pruned = irprune.prune(model, (x,))
    assert (
        pruned.report.proof is not None
        and pruned.report.proof.passed
        and pruned.report.proof.dtype == "float64"
    )
    assert pruned.module.up.out_features == 8


def test_a_scalar_result_is_compared_with_the_file(tmp_path: Path) -> None:
    class Mean(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean()

    pruned = irprune.prune(Mean(), (torch.randn(2, 3, 8, 8),))
    pruned.onnx(tmp_path / "mean.onnx")
    assert (
        pruned.report.parity is not None
        and list(pruned.report.parity.outputs) == ["output"]
        and pruned.report.parity.passed
    )


# -- what comes out --------------------------------------------------------------------------------


def test_report_says_what_was_done(net: Net) -> None:
    pruned = irprune.prune(net, (X,), keep=["conv2.weight:0"])
    report = pruned.report
    assert report.params.before == sum(p.numel() for p in net.parameters())
    assert report.params.after == sum(p.numel() for p in pruned.module.parameters())
    assert report.macs.before == 2 * 64 * (16 * 27 + 24 * 16 * 9) + 2 * 24 * 5
    assert report.macs.after == 2 * 64 * (8 * 27 + 24 * 8 * 9) + 2 * 24 * 5
    assert report.bytes.before == sum(
        t.numel() * t.element_size() for k, t in net.state_dict().items() if "num_batches" not in k
    )
    lines = {g.name: g for g in report.groups}
    assert (lines["conv1.weight:0"].size, lines["conv1.weight:0"].kept) == (16, 8)
    assert lines["conv2.weight:0"].kept == 24 and "conv2.weight:0" in lines["conv2.weight:0"].reason
    frozen = {g.name: g.reason for g in report.frozen}
    assert "graph output" in frozen["head.weight:0"] and "graph input" in frozen["conv1.weight:1"]
    assert (
        report.proof is not None
        and report.proof.passed
        and report.proof.max_error < 1e-5
        and report.proof.passes <= 16  # with the draws of a small model
    )
    data = json.loads(report.to_json())
    assert (
        data["params"]["after"] == report.params.after
        and "seconds" not in data
        and "seconds" not in data["proof"]
    )
    assert "capture" in json.loads(report.to_json(timings=True))["seconds"]
    assert "parameters" in str(report) and "exact" in str(report)
    told = [line for line in str(report).splitlines() if "left whole  " in line]
    assert (
        len(told) == 1
        and told[0].startswith("  left whole  conv2.weight:0: ")
        and "conv2.weight:0" in lines["conv2.weight:0"].reason
    )
    page = report.to_html()
    assert (
        page.startswith("<!DOCTYPE html>") and "conv1.weight:0" in page and "graph output" in page
    )


def test_kept_is_in_terms_of_the_original(net: Net) -> None:
    pruned = irprune.prune(net, (X,))
    state, cut = net.state_dict(), pruned.module.state_dict()
    assert set(pruned.kept) == {
        "conv1.weight",
        "conv1.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "conv2.weight",
        "conv2.bias",
        "head.weight",
    }
    for name, indices in pruned.kept.items():
        want = state[name].numpy()
        for dim, index in enumerate(indices):
            want = want if index is None else want.take(index, axis=dim)
        assert np.array_equal(want, cut[name].numpy()), name
    # A check of the criterion that shares no code with it
    order = net.conv1.weight.detach().square().sum((1, 2, 3))
    assert len(pruned.kept["conv1.weight"][0] or []) == 8 and order.shape == (16,)


def test_tied_names_are_kept_alike() -> None:
    case = models.get("tied_weights")
    torch.manual_seed(0)
    args, kwargs = case.example_inputs(small=True)
    pruned = irprune.prune(case.build(small=True), args, kwargs)
    assert pruned.kept["head.weight"] == pruned.kept["embedding.weight"]


def test_the_users_model_is_as_it_was(net: Net) -> None:
    net.train()
    net.norm.eval()
    modes = [m.training for m in net.modules()]
    parameters = dict(net.named_parameters())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    attributes = {k: dict(vars(m)) for k, m in net.named_modules()}
    pruned = irprune.prune(net, (torch.randn(2, 3, 8, 8),))
    assert [m.training for m in net.modules()] == modes
    assert all(p is parameters[k] for k, p in net.named_parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert {k: list(vars(m)) for k, m in net.named_modules()} == {
        k: list(v) for k, v in attributes.items()
    }
    assert not pruned.module.training
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_options_reach_the_choice(net: Net) -> None:
    assert irprune.prune(net, (X,), ratio=0).report.params.left == 1
    assert irprune.prune(net, (X,), ratio=0.3, round_to=8).module.conv1.out_channels == 8
    assert irprune.prune(net, (X,), ratio=1.0).module.conv1.out_channels == 1
    assert irprune.prune(net, (X,), ratios={"conv2.weight:0": 0.75}).module.conv2.out_channels == 6
    assert irprune.prune(net, (X,), max_ratio=0.25).module.conv1.out_channels == 12
    budget = irprune.prune(net, (X,), budget={"macs": 0.5})
    assert 0.4 < budget.report.macs.left <= 0.5
    assert irprune.prune(net, (X,), keep="conv1*").module.conv1.out_channels == 16


def test_the_plan_replays(net: Net, tmp_path: Path) -> None:
    pruned = irprune.prune(net, (X,), ratio=0.4, scope="global")
    path = pruned.plan.save(tmp_path / "plan.json")
    for plan in (pruned.plan, path, str(path), path.read_text(), json.loads(path.read_text())):
        again = irprune.apply_plan(net, plan, (X,))
        assert again.kept == pruned.kept
        assert again.report.proof is not None and again.report.proof.passed
    with pytest.raises(IrpruneError, match="replayed without the option 'ratio'"):
        irprune.apply_plan(net, path, (X,), ratio=0.3)
    with pytest.raises(IrpruneError, match=r"the plan does not fit this model"):
        irprune.apply_plan(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), path, (torch.randn(2, 4),)
        )


def test_capture_and_groups(net: Net) -> None:
    graph = irprune.capture(net, (X,))
    found = {g.name: g for g in irprune.groups(graph)}
    assert [str(m) for m in found["conv1.weight:0"].members] == [
        "conv1.weight:0",
        "conv1.bias:0",
        "norm.weight:0",
        "norm.bias:0",
        "conv2.weight:1",
        "norm.running_mean:0",
        "norm.running_var:0",
    ]
    assert found["conv1.weight:0"].size == 16 and not found["conv1.weight:0"].frozen
    assert "graph output" in found["head.weight:0"].frozen
    assert [g.name for g in irprune.groups(graph)] == list(found)
    # One tensor needs no tuple
    assert [n.op for n in irprune.capture(net, X).nodes] == [n.op for n in graph.nodes]


def test_the_same_call_twice_gives_the_same(net: Net) -> None:
    a, b = (irprune.prune(net, (X,), scope="global") for _ in range(2))
    assert a.kept == b.kept and a.report.to_json() == b.report.to_json()
    assert all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())
