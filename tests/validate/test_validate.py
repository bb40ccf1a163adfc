"""The proof sees planted faults, decides rounding in float64 and says when it proved nothing;
parity, latency and runners."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
import models
from irprune.api.load import load_model
from irprune.api.runner import runner
from irprune.base.tolerance import FLOAT32, FLOAT64, PARITY
from irprune.driver.pipelines import cut_graph
from irprune.emit.torch.module import emit_module
from irprune.errors import CheckFailed, IrpruneError
from irprune.ir.graph import Graph
from irprune.run.inputs import draw, redraw
from irprune.run.session import providers_for, run_session, session
from irprune.run.timing import interleaved
from irprune.run.typed_load import load_typed
from irprune.validate.judge import zeroed
from irprune.validate.parity import Parity, compare_arrays, measure
from irprune.validate.proof import Remake, prove
from irprune.validate.random_weights import redrawn, with_random_numbers
from irprune.validate.random_weights_proof import with_weights

remake = Remake(cut_graph, emit_module)


@pytest.fixture
def mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3)
    ).eval(), torch.randn(4, 6)


# -- the proof -------------------------------------------------------------------------------------


def test_the_proof_passes_on_a_right_cut(mlp: tuple[nn.Module, Tensor]) -> None:
    model, x = mlp
    proof = irprune.prune(model, (x,)).report.proof
    assert (
        proof is not None and proof.passed and proof.max_error <= 1e-6 and proof.dtype == "float32"
    )
    # At the example's sizes the user's forward, the uncut graph, the oracle and the module; at
    # others with random weights the oracle, the module, and the judge with the module of its part;
    # since it is small three times more the oracle and the module
    assert proof.passes == 14
    second = proof.second_pass
    assert second is not None and second.dtype == "float64" and second.error <= FLOAT64
    assert second.judge_error is not None and second.judge_error <= FLOAT64
    # Behind a layer norm zeros are not what is absent
    assert second.judged == 0
    (said,) = (n for n in proof.notes if n.startswith("not judged by the original itself is "))
    assert "norm" in said and "not absence" in said
    assert "exact" in str(proof)


@pytest.mark.parametrize("fault", ["wrong index", "wrong order", "wrong statistics"])
def test_a_planted_fault_fails_the_proof(mlp: tuple[nn.Module, Tensor], fault: str) -> None:
    model, x = mlp
    pruned = irprune.prune(model, (x,))
    broken = copy.deepcopy(pruned.module)
    with torch.no_grad():
        weight = broken.get_parameter("3.weight")
        if fault == "wrong index":
            dropped = next(i for i in range(16) if i not in (pruned.kept["3.weight"][1] or []))
            weight[:, 0] = model[3].weight[:, dropped]
        elif fault == "wrong order":
            weight.copy_(weight.flip(1))
        else:
            broken.get_submodule("1").eps = 0.1
    proof = prove(pruned.graph, broken, remake)
    assert not proof.passed and "FAILED" in str(proof)
    assert (
        proof.dtype == "float64"
        and proof.float32_error is not None
        and proof.float32_error > FLOAT32
    )
    assert proof.tolerance == FLOAT64


def test_a_failed_proof_stops_prune(
    mlp: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from irprune.passes import slice as slicing

    model, x = mlp
    real = slicing.take
    monkeypatch.setattr(
        slicing,
        "take",
        lambda array, indices: real(array, [None if i is None else (i + 1) % 16 for i in indices]),
    )
    with pytest.raises(CheckFailed, match="the proof fails"):
        irprune.prune(model, (x,))
    assert irprune.prune(model, (x,), proof=False).report.proof is None


class Deep(nn.Module):
    """A net whose float32 rounding grows past the tolerance: differences of large, nearly equal
    sums."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 64), nn.Linear(64, 1)
        with torch.no_grad():
            self.up.bias += 1000

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.down(F.relu(y)) - self.down(F.relu(y * 1.001))


def test_rounding_is_decided_in_float64() -> None:
    torch.manual_seed(0)
    proof = irprune.prune(Deep(), (torch.randn(8, 6),)).report.proof
    assert proof is not None and proof.passed
    assert proof.float32_error is not None and proof.float32_error > FLOAT32
    assert proof.dtype == "float64" and proof.max_error <= FLOAT64
    assert proof.second_pass is not None and proof.second_pass.judged == 1
    assert proof.passes == 15


def test_float64_goes_through_the_graph_where_forward_names_float32() -> None:
    class Named(Deep):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(torch.float32) * torch.ones(6, dtype=torch.float32))

    torch.manual_seed(0)
    proof = irprune.prune(Named(), (torch.randn(8, 6),)).report.proof
    assert proof is not None and proof.passed and proof.dtype == "float64"


def test_constant_outputs_are_proven_with_random_weights(mlp: tuple[nn.Module, Tensor]) -> None:
    model, x = mlp
    nn.init.zeros_(model[3].weight)
    nn.init.zeros_(model[3].bias)
    pruned = irprune.prune(model, (x,))
    proof = pruned.report.proof
    assert proof is not None and proof.passed and proof.random_weights and not proof.vacuous
    assert proof.max_error == 0 and proof.second_pass is not None
    assert proof.second_pass.dtype == "float64" and proof.second_pass.error <= FLOAT64
    # The random weights stay in the proof
    assert torch.count_nonzero(pruned.module.get_parameter("3.weight")) == 0

    def wrong(cut: Graph) -> nn.Module:
        module = emit_module(cut)
        with torch.no_grad():
            weight = module.get_parameter("3.weight")
            weight.copy_(weight.roll(1, 1))
        return module

    assert not prove(pruned.graph, pruned.module, Remake(cut_graph, wrong)).passed


class Overflows(nn.Module):
    """Its first hidden channel is infinite whatever the input, and the smallest by magnitude."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.up, self.norm, self.down = (
            nn.Linear(6, 64),
            nn.LayerNorm(64) if norm else nn.Identity(),
            nn.Linear(64, 2, bias=False),
        )
        with torch.no_grad():
            for tensor in (self.up.weight[0], self.down.weight[:, 0]):
                tensor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.down(
            self.norm(y.exp() / torch.where(self.up.weight.abs().sum(1) == 0, 0.0, 1.0))
        )


@pytest.mark.parametrize("norm", [False, True])
def test_what_is_dropped_may_be_infinite(norm: bool) -> None:
    """Zeros are multiplied into the smaller operand, and zero times infinity is no zero."""
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    model = Overflows(norm).eval()
    assert not model(x).isfinite().any()
    pruned = irprune.prune(model, (x,))
    assert 0 not in (pruned.kept["up.weight"][0] or []) and pruned.module(x).isfinite().all()
    proof = pruned.report.proof
    assert proof is not None and proof.passed and proof.dtype == "float32"


class Nearest(nn.Module):
    """Distances to stored rows: no product, so a coordinate has to be taken out on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.rows = nn.Linear(6, 16), nn.Parameter(torch.randn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(F.relu(self.up(x)), self.rows)


def test_distances_to_a_stored_array() -> None:
    torch.manual_seed(0)
    pruned = irprune.prune(Nearest(), (torch.randn(4, 6),))
    assert pruned.report.proof is not None and pruned.report.proof.passed
    assert tuple(pruned.module.get_parameter("rows").shape) == (5, 8)


class Roots(nn.Module):
    """Takes positive numbers alone; with ``zero`` its outputs are constant."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)
        if zero:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x.sqrt())))


@pytest.mark.parametrize("zero", [False, True])
def test_inputs_outside_the_domain_give_way_to_the_examples(zero: bool) -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 6)
    pruned = irprune.prune(Roots(zero), (x,))
    proof = pruned.report.proof
    assert (
        proof is not None
        and proof.passed
        and proof.dtype == "float64"
        and proof.max_error <= FLOAT64
    )
    assert (proof.passes, proof.random_weights) == (15, zero)

    def wrong(cut: Graph) -> nn.Module:
        module = emit_module(cut)
        with torch.no_grad():
            module.get_parameter("down.weight").copy_(
                module.get_parameter("down.weight").roll(1, 1)
            )
        return module

    again = Remake(cut_graph, wrong)
    assert not prove(pruned.graph, again(pruned.graph), again).passed


def test_what_cannot_be_proven_is_not_called_proven() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.fc(x))) * 0

    with pytest.raises(CheckFailed, match="nothing proven"):
        irprune.prune(Nothing(), (torch.randn(2, 6),))


def test_random_inputs_leave_integers_and_constants() -> None:
    generator = torch.Generator().manual_seed(0)
    ids, mask, ones = torch.arange(4), torch.tensor([True, False]), torch.ones(3)
    for t in (ids, mask, ones):
        assert draw(t, generator) is t
    x = torch.randn(2000) * 5 + 100
    y = draw(x, generator)
    assert (
        abs(float(y.mean()) - 100) < 1 and abs(float(y.std()) - 5) < 0.5 and not torch.equal(x, y)
    )
    first, second = (redraw((x, ids), {"m": mask}) for _ in range(2))
    assert torch.equal(first[0][0], second[0][0]) and first[1]["m"] is mask
    assert torch.get_rng_state().equal(torch.get_rng_state())


# -- parity ----------------------------------------------------------------------------------------


def test_errors_are_relative_and_shapes_count() -> None:
    a = np.array([100.0, -50.0], np.float32)
    assert compare_arrays([a], {"y": a + 1})["y"] == pytest.approx(0.01)
    assert compare_arrays([a], {"y": a[:1]})["y"] == float("inf")
    assert compare_arrays([a], {"y": np.array([100.0, np.nan], np.float32)})["y"] == float("inf")
    nan, inf = np.array([np.nan, 1.0]), np.array([np.inf, 1.0])
    assert (
        compare_arrays([nan], {"y": nan})["y"] == 0 and compare_arrays([inf], {"y": inf})["y"] == 0
    )
    assert compare_arrays([np.array([1, 2])], {"y": np.array([1, 3])})["y"] == 0.5
    assert compare_arrays([np.array([True])], {"y": np.array([False])})["y"] == 1
    assert compare_arrays([np.array([1 + 1j])], {"y": np.array([1 - 1j])})["y"] == pytest.approx(
        2**0.5
    )
    assert (
        not Parity(1e-3, "p").passed
        and Parity(1e-3, "p", tolerance=1e-2).passed
        and Parity(0.0, "p").tolerance == PARITY
    )


def test_parity_names_the_provider_of_each_node(
    tmp_path: Path, mlp: tuple[nn.Module, Tensor]
) -> None:
    model, x = mlp
    pruned = irprune.prune(model, (x,))
    path = pruned.onnx(tmp_path / "m.onnx", parity=False)
    assert pruned.report.parity is None
    with torch.no_grad():
        expected = pruned.module(x).numpy()
    name = session(path).get_inputs()[0].name
    parity = measure(path, {name: x.numpy()}, [expected], "cpu")
    assert (
        parity.passed
        and parity.nodes["CPUExecutionProvider"] >= 3
        and "nodes on CPUExecutionProvider" in str(parity)
    )
    assert not measure(path, {name: x.numpy()}, [expected + 1], "cpu").passed
    with pytest.raises(IrpruneError, match="onnxruntime fails on the input"):
        run_session(session(path), {name: x.numpy()[:, :2]})
    assert list(tmp_path.iterdir()) == [path]


def test_cuda_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert providers_for("auto") == ["CPUExecutionProvider"]
    with pytest.raises(IrpruneError, match="no CUDAExecutionProvider"):
        providers_for("cuda")
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    assert providers_for("auto") == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert providers_for("cpu") == ["CPUExecutionProvider"]


def test_a_broken_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(IrpruneError, match="onnxruntime refuses the model"):
        session(tmp_path / "m.onnx")


# -- latency and runners ---------------------------------------------------------------------------


def test_calls_are_timed_in_turns() -> None:
    now = 0.0
    order: list[str] = []

    def call(name: str, takes: Iterator[float]) -> Any:
        def run() -> None:
            nonlocal now
            order.append(name)
            now += next(takes)

        return run

    a, b = (
        [x for t in taken for x in (99.0, t)] for taken in ((1, 2, 3, 4, 5), (10, 10, 10, 10, 90))
    )
    times = interleaved(
        {"a": call("a", iter(a)), "b": call("b", iter(b))}, seconds=0, least=5, clock=lambda: now
    )
    assert order == ["a", "a", "b", "b"] * 5, "the first of each two is not timed"
    assert times["a"].median == 3 and times["b"].median == 10 and times["a"].runs == 5
    assert times["a"].low == 2 and times["a"].high == 4
    assert times["b"].over(times["a"]).median == 5 and times["b"].over(times["b"]).high == 1


def test_runners_give_the_same_outputs_for_torch_onnx_and_folders(tmp_path: Path) -> None:
    case = models.get("shared_conv")
    torch.manual_seed(0)
    args, kwargs = case.example_inputs(small=True)
    pruned = irprune.prune(case.build(small=True), args, kwargs)
    folder = pruned.save(tmp_path / "net")
    running = [
        runner(load_model(str(p))) for p in (folder, folder / "model.pt2", folder / "model.onnx")
    ]
    arrays = running[0].draw(seed=3)
    results = [r.run(arrays) for r in running]
    for other in results[1:]:
        assert (
            max(
                compare_arrays(
                    list(results[0].values()), dict(zip(results[0], other.values(), strict=True))
                ).values()
            )
            < 1e-5
        )
    assert list(results[0]) == ["0", "1"] or len(results[0]) == 2
    with pytest.raises(IrpruneError, match="takes 1 inputs, is given 2"):
        running[2].check([arrays[0], arrays[0]])
    with pytest.raises(IrpruneError, match="is given"):
        running[2].check([arrays[0][:, :1]])
    with pytest.raises(IrpruneError, match="forward fails"):
        running[0].run([arrays[0][:, :1]])


def test_outputs_of_nothing_but_nan_are_no_proof() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    net[1].running_mean.fill_(float("nan"))
    with pytest.raises(CheckFailed, match="nothing proven"):
        irprune.prune(net.eval(), (torch.randn(1, 3, 12, 12),))


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("holds", [False, True])
def test_random_weights_are_the_same_numbers_in_every_type(own: torch.dtype, holds: bool) -> None:
    model = nn.Sequential(nn.Linear(70, 5000), nn.LayerNorm(5000), nn.Linear(5000, 3)).to(own)
    pruned = irprune.prune(model.eval(), (torch.randn(2, 70, dtype=own),), proof=False)
    kept = pruned.graph.kept
    assert kept is not None
    for numbers in (redrawn, with_random_numbers):
        twin = with_weights(pruned.graph, numbers, 0, holds)
        for weight in twin.weights.values():
            plain = weight.load().clone()
            assert plain.dtype == own and plain.unique().numel() > 1
            wide = load_typed(weight, torch.float64)
            assert wide.dtype == torch.float64 and torch.equal(wide, plain.double())
            silent = zeroed(weight, kept, torch.float64)
            assert torch.equal(silent, zeroed(weight, kept).double())
            assert torch.equal(silent[silent != 0], plain.double()[silent != 0])
            wide.zero_()  # it is the caller's own
            assert torch.equal(weight.load(), plain)
