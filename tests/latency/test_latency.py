"""Latency: tables of times, what is predicted from them, the knapsack, and the loop that measures.

Times are made up but in the last tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latency_stairs import DENSE, IMAGE, STAIRS, WHOLE, Net, counts, left, scored, stairs, table, up
from torch import Tensor, nn

import irprune
import models
from irprune import api
from irprune.analysis.sizes import example_symbols
from irprune.choice.budget import read_latency_budget
from irprune.errors import IrpruneError
from irprune.ir.group import groups_of
from irprune.latency.kernels import measure, one_node
from irprune.latency.operators import Operator, works_of
from irprune.latency.predict import Parts, Predictor
from irprune.latency.table import Table
from irprune.passes.choose import Choose
from irprune.passes.score import Score


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# -- the table -------------------------------------------------------------------------------------


def test_the_step_is_found_in_the_times() -> None:
    found = table()
    assert (found.step("conv"), found.step("depthwise"), found.step("matrix")) == (16, 16, 1)
    assert Table(lambda operator, a, b: up(b, 8) * 1e-6).step("matrix") == 8
    assert Table(lambda operator, a, b: up(b, 32) * 1e-6).step("conv") == 32
    assert Table(lambda operator, a, b: 1e-6).step("conv") == 1, (
        "what never gets quicker has no steps"
    )


# Microseconds of onnxruntime's convolution and matrix product at so many channels: AVX-512 on an
# EPYC, AVX2 emulated by QEMU.
MEASURED = {
    ("conv", 16): {64: 211, 63: 211, 57: 212, 56: 211, 49: 214, 48: 167, 33: 167, 32: 119},
    ("matrix", 16): {64: 97, 63: 98, 57: 97, 56: 97, 49: 97, 48: 75, 33: 75, 32: 49},
    ("conv", 8): {
        64: 87441,
        63: 93342,
        57: 91091,
        56: 78951,
        49: 78703,
        48: 66985,
        33: 55627,
        32: 44886,
    },
    ("matrix", 8): {
        64: 40872,
        63: 43188,
        57: 43145,
        56: 36467,
        49: 36621,
        48: 30607,
        33: 26107,
        32: 20699,
    },
}


@pytest.mark.parametrize(("kind", "step"), MEASURED)
def test_the_step_of_several_processors(kind: str, step: int) -> None:
    assert Table(lambda operator, a, b: MEASURED[kind, step][b] * 1e-6).step(kind) == step


@pytest.mark.parametrize("step", [1, 8, 16, 32])
@pytest.mark.parametrize("overhead", [0.0, 0.4])
def test_the_step_is_found_in_noise(step: int, overhead: float) -> None:
    """Two hundredths of noise, and up to two fifths of the time in what does not shrink."""
    for seed in range(20):
        random = np.random.default_rng(seed)

        def noisy(operator: object, a: int, b: int, draw: np.random.Generator = random) -> float:
            return float((overhead * 64 + (1 - overhead) * up(b, step)) * draw.uniform(1, 1.02))

        assert Table(noisy).step("conv") == step


def test_between_measured_sizes_lie_stairs_or_lines() -> None:
    found = table(steps=STAIRS)
    most = (128, 128)
    for a, b in ((128, 128), (64, 128), (32, 32), (48, 96), (16, 16), (100, 37)):
        assert found.time(DENSE, a, b, most) == pytest.approx(stairs(DENSE, up(a), up(b)))
        assert found.time(WHOLE, a, b, most) == pytest.approx(stairs(WHOLE, a, b))
    assert found.time(DENSE, 64, 49, most) == found.time(DENSE, 64, 64, most), "49 is as slow as 64"
    assert found.measured <= 2 * 9


def test_few_sizes_are_measured_and_none_twice(tmp_path: Path) -> None:
    asked: list[str] = []

    def watched(operator: Operator, a: int, b: int) -> float:
        asked.append(operator.key(a, b))
        return stairs(operator, a, b)

    file = tmp_path / "deep" / "times.json"
    graph = scored(Net())
    first = Predictor(graph, Table(watched, file, STAIRS))
    assert len(set(asked)) == len(asked) <= 9 * len(works_of(graph, {}))
    assert json.loads(file.read_text()).keys() == set(asked)
    asked.clear()
    again = Predictor(graph, Table(watched, file, STAIRS))
    assert not asked and again.at({}) == first.at({})


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"a": "b"}'])
def test_a_broken_file_is_measured_anew(tmp_path: Path, text: str) -> None:
    file = tmp_path / "times.json"
    file.write_text(text)
    found = Table(stairs, file, STAIRS)
    assert found.exact(WHOLE, 4, 4) == stairs(WHOLE, 4, 4)
    found.save()
    assert list(json.loads(file.read_text())) == [WHOLE.key(4, 4)]


# -- predictions -----------------------------------------------------------------------------------


def test_operators_have_the_sizes_of_the_model() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.Sequential(
                nn.Conv2d(3, 24, 3, stride=2, padding=1),
                nn.Conv2d(24, 24, 3, groups=24),
                nn.Conv2d(24, 36, 1, groups=3),
                nn.ConvTranspose2d(36, 6, 2, stride=2),
            )
            self.fc = nn.Linear(6, 7)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.fc(self.convs(x).mean((2, 3))) @ y

    graph = api.analyse(
        api.capture(
            Many(), (torch.randn(2, 3, 16, 16), torch.randn(4, 2, 7, 5))[:1] + (torch.randn(7, 5),)
        )
    )
    symbols = example_symbols(graph)
    found = [
        (w.operator.kind, w.sizes({}, symbols, {}), w.operator.fixed)
        for w in works_of(graph, symbols)
    ]
    assert [f[:2] for f in found] == [
        ("conv", (3, 24, 1.0)),
        ("depthwise", (24, 1, 1.0)),
        ("conv", (8, 12, 1.0)),
        ("conv_transpose", (36, 6, 1.0)),
        ("matrix", (6, 7, 1.0)),
        ("matrix", (7, 5, 1.0)),
    ]
    assert found[0][2] == (2, 1, (16, 16), (3, 3), (2, 2), (1, 1), (1, 1)) and found[2][2][1] == 3
    assert found[4][2] == (1, 2, 1) and found[5][2] == (1, 2, 0), "the last factor is no weight"


@pytest.mark.parametrize(
    "name", ["resnext50", "mobilenetv3", "vit_b16", "llama", "unet", "lstm_tagger"]
)
def test_what_is_predicted_is_what_the_cut_graph_costs(name: str) -> None:
    """The counts of the choice put into the whole graph's operators, and those of the graph that
    was cut: the same operators."""
    case = models.get(name)
    args, kwargs = case.example_inputs(small=True)
    graph = api.analyse(api.capture(case.build(small=True).eval(), args, kwargs))
    Score().run(graph)
    Choose(ratio=0.5).run(graph)
    assert graph.kept is not None
    chosen = {a: k.shape[-1] for a, k in graph.kept.choice.items()}
    symbols = Predictor(graph, table(steps=STAIRS)).symbols
    cut = api.analyse(api.cut_graph(graph))
    if cut.nodes[0].out.axes is None or any(v.axes is None for v in cut.values()):
        from irprune.passes.infer_axes import InferAxes

        InferAxes().run(cut)
    before = [
        (w.operator.kind, *w.sizes(chosen, symbols, {})[:2]) for w in works_of(graph, symbols)
    ]
    after = [(w.operator.kind, *w.sizes({}, symbols, {})[:2]) for w in works_of(cut, symbols)]
    assert before == after and len(before) > 3


def test_parts_of_the_whole_are_kept() -> None:
    graph = scored(Net())
    found = Predictor(
        graph, table(steps=STAIRS), Parts(products=8e-3, rest=1.5e-3, overhead=0.5e-3)
    )
    assert found.at({}) == pytest.approx(10e-3)
    halves = {g.axis: g.size // 2 for g in groups_of(graph) if not g.frozen}
    assert 0.5e-3 + 1.5e-3 / 2 < found.at(halves) < 5.5e-3
    now = 10e-3
    so_far: dict[Any, int] = {}
    for leaf, n in halves.items():
        now += found.change(leaf, so_far, {**so_far, leaf: n})
        so_far[leaf] = n
    assert now == pytest.approx(found.at(halves))


# -- the knapsack ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_latency_budget_is_met_on_the_stairs(scope: str, share: float) -> None:
    graph = scored(Net())
    Choose(budget={"latency": share}, scope=scope, times=table(steps=STAIRS)).run(graph)
    assert share - 0.05 < left(graph, table(steps=STAIRS)) <= share
    found = counts(graph)
    assert all(
        n % 16 == 0 for name, n in found.items() if "head.0" not in name and "block.3" not in name
    ), found


def test_stairs_are_kept_to_their_edge_without_being_told() -> None:
    """With a step of 1 the search may stop anywhere: it stops where the next channel would cost."""
    graph = scored(Net())
    Choose(budget={"latency": 0.5}, round_to=1, times=table(steps=STAIRS)).run(graph)
    convs = {n for name, n in counts(graph).items() if name.startswith("block.0")}
    assert all(n % 16 == 0 for n in convs)


def test_what_costs_time_is_cut_and_what_costs_none_stays() -> None:
    """Two equal layers, one at four times the positions: it gives more."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slow = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 3, 1))
            self.fast = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.fast(nn.functional.avg_pool2d(self.slow(x), 4))

    graph = scored(Two(), torch.randn(1, 3, 16, 16))
    Choose(budget={"latency": 0.6}, times=table(steps=STAIRS)).run(graph)
    found = counts(graph)
    slow, fast = (
        next(n for name, n in found.items() if name.startswith(k)) for k in ("slow", "fast")
    )
    assert slow < fast == 64


def test_no_single_exchange_would_be_better_for_the_best_of_all() -> None:
    """On a net small enough to try everything, the loss is within a tenth of the least."""
    from itertools import product

    from irprune.analysis.widths import widths_of
    from irprune.choice.counts import Limits, Rounder
    from irprune.choice.ranking import Loss

    graph = scored(Net(48))
    times = Predictor(graph, table(steps=STAIRS))
    Choose(budget={"latency": 0.4}, times=times, round_to=16, scope="global").run(graph)
    groups = {g.axis: g for g in groups_of(graph) if not g.frozen and g.axis in graph.scores}
    sizes = {x: g.size for x, g in groups.items()}
    loss = Loss("global", graph.scores, groups)
    assert graph.kept is not None
    mine = sum(loss(x, int(graph.kept.size(x))) for x in sizes)  # type: ignore[arg-type]
    levels = Rounder(sizes, widths_of(graph, sizes), Limits(), 16)
    every = [
        dict(zip(sizes, chosen, strict=True))
        for chosen in product(*(levels.levels(x) for x in sizes))
    ]
    best = min(
        sum(loss(x, n) for x, n in one.items())
        for one in every
        if times.at(one) <= 0.4 * times.at({})
    )
    assert best <= mine <= 1.1 * best


def test_several_budgets_hold_together() -> None:
    from irprune.analysis.cost import cost
    from irprune.ir.selection import Selection

    graph = scored(Net())
    Choose(budget={"latency": 0.6, "params": 0.35}, times=table(steps=STAIRS)).run(graph)
    assert left(graph, table(steps=STAIRS)) <= 0.6
    assert 0.25 < cost(graph).params / cost(graph, Selection({})).params <= 0.35


def test_caps_and_kept_groups_hold_in_the_knapsack() -> None:
    graph = scored(Net())
    Choose(
        budget={"latency": 0.6},
        keep=("head.0.weight:0",),
        max_ratio=0.5,
        min_channels=40,
        times=table(steps=STAIRS),
    ).run(graph)
    found = counts(graph)
    assert all(n >= 40 for n in found.values()) and found["block.0.weight:0"] >= 64, found
    assert found["head.0.weight:0"] == 200


def test_a_latency_out_of_reach_says_what_holds_it_up() -> None:
    graph = scored(Net())
    with pytest.raises(IrpruneError) as refused:
        Choose(budget={"latency": 0.001}, keep=("block.0",), times=table(steps=STAIRS)).run(graph)
    text = str(refused.value)
    assert "latency cannot be met: the smallest reachable is" in text and "ms" in text
    assert "what holds it up: block.0.weight" in text and "\n" not in text


def test_auto_aligns_convolutions_alone() -> None:
    graph = scored(Net())
    Choose(ratio=0.4, round_to="auto", times=table(steps=STAIRS)).run(graph)
    found = counts(graph)
    assert found["block.0.weight:0"] == 80 and found["head.0.weight:0"] == 120, found


def test_the_same_budget_gives_the_same_choice() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        graph = scored(Net())
        Choose(budget={"latency": 0.45}, times=table(steps=STAIRS)).run(graph)
        assert graph.kept is not None
        made.append([k.tolist() for k in graph.kept.choice.values()])
    assert made[0] == made[1]


# -- asking ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "means"),
    [
        (0.5, (0.5, False)),
        (1, (1.0, False)),
        ("0.25", (0.25, False)),
        ("3ms", (0.003, True)),
        ("0.5 s", (0.5, True)),
        ("800us", (800e-6, True)),
        ("1e-2s", (0.01, True)),
    ],
)
def test_shares_and_times(given: Any, means: tuple[float, bool]) -> None:
    assert read_latency_budget(given) == pytest.approx(means)


@pytest.mark.parametrize(
    "given", [0, -1, 1.5, 3, "3", "fast", "ms", "-3ms", "0ms", float("nan"), "1.2.3ms"]
)
def test_latencies_that_make_no_sense(given: Any) -> None:
    with pytest.raises(IrpruneError, match="the budget on latency is") as refused:
        irprune.prune(Net(), (IMAGE,), budget={"latency": given})
    assert "3ms" in refused.value.hint


# -- measured --------------------------------------------------------------------------------------


def test_one_operator_is_measured_once_and_read_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    first = Table.here("cpu", 1)
    taken = first.exact(DENSE, 16, 32)
    assert 0 < taken < 1 and first.measured == 1
    first.save()
    again = Table.here("cpu", 1)
    assert again.exact(DENSE, 16, 32) == taken and again.measured == 0
    assert (
        again.file is not None
        and again.file.parent == tmp_path / "irprune"
        and "1-threads" in again.file.name
    )
    assert Table.here("cpu", 2).file != again.file


def test_processors_of_one_name_have_tables_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clouds call every generation of a processor the same, and Arm gives no name."""
    files = []
    for flags in (
        "flags : fpu avx2 fma",
        "flags : fpu avx2 avx512f avx512_vnni",
        "Features : fp asimd sve",
        "nothing: known",
    ):
        (tmp_path / "cpuinfo").write_text(
            f"model name\t: AMD EPYC\n{flags}\n" if "flags" in flags else f"{flags}\n"
        )
        monkeypatch.setattr("irprune.latency.table._CPUINFO", tmp_path / "cpuinfo")
        file = Table.here("cpu", 1).file
        assert file is not None
        files.append(file.name)
    assert (
        len(set(files)) == 4
        and "epyc-avx2-avx512f-avx512-vnni-1-" in files[1]
        and "asimd-sve" in files[2]
    )


@pytest.mark.parametrize(
    "operator",
    [
        DENSE,
        WHOLE,
        Operator("matrix", (3, 4, 0)),
        Operator("depthwise", (1, 1, (8, 8), (3, 3), (2, 2), (1, 1), (1, 1))),
        Operator("conv", (2, 4, (9,), (3,), (1,), (1,), (2,))),
        Operator("conv_transpose", (1, 2, (4, 4), (2, 2), (2, 2), (0, 0), (1, 1))),
    ],
)
def test_every_kind_of_operator_runs(operator: Operator) -> None:
    import onnx

    model = one_node(operator, 8, 2)
    onnx.checker.check_model(model, full_check=True)
    assert 0 < measure(operator, 8, 2, threads=1) < 1


def test_cuts_are_made_in_the_file_that_was_exported_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is timed has the shapes of what an export of the cut would have; nothing is exported
    twice."""
    import onnx

    from irprune.api import latency_whole as whole
    from irprune.emit.bridge import torch_onnx

    graph = scored(Net())
    Choose(ratio=0.5).run(graph)
    expected = onnx.load(whole.write(api.cut_graph(graph), tmp_path / "cut" / "m.onnx"))
    exports: list[Any] = []
    export = torch_onnx.export_onnx
    monkeypatch.setattr(
        torch_onnx, "export_onnx", lambda *a, **k: exports.append(a) or export(*a, **k)
    )
    with whole.WholeModel(graph, "cpu", 1, 0.01) as both:
        before, after = both.beside(graph, api.cut_graph)
        found = onnx.load(Path(both.folder.name) / "cut" / "model.onnx")
    assert len(exports) == 1 and before.runs == after.runs
    assert sorted(tuple(w.dims) for w in found.graph.initializer) == sorted(
        tuple(w.dims) for w in expected.graph.initializer
    )
    assert [n.op_type for n in found.graph.node] == [n.op_type for n in expected.graph.node]


def test_a_model_is_cut_to_a_latency_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From end to end, from a file; what comes out is proven, and the report says what was asked,
    predicted and measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = irprune.prune(
        Net(96).eval(), (torch.randn(1, 3, 24, 24),), ratio=0.0, proof=False, dynamic="none"
    ).onnx(tmp_path / "net.onnx", parity=False)
    pruned = irprune.prune(str(whole), budget={"latency": 0.5}, device="cpu", threads=1)
    found = pruned.report.latency
    assert found is not None and pruned.report.proof is not None and pruned.report.proof.passed
    assert found.left < 0.85, "half was asked; a busy machine may miss it"
    assert (
        found.predicted < found.before.median
        and found.provider == "CPUExecutionProvider"
        and found.threads == 1
    )
    assert pruned.report.macs.left < 0.9
    told = json.loads(pruned.report.to_json())["latency"]
    assert told["asked_s"] == found.asked and told["after"]["median_s"] == found.after.median
    assert "asked" in str(pruned.report) and "Latency:" in pruned.report.to_html()
    code = (
        f"import sys, irprune; r = irprune.prune({str(whole)!r}, budget={{'latency': 0.5}}, device='cpu', threads=1).report; "
        "print(r.latency.left < 0.85, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"], "files need no torch"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--macs", "0.0001"], "the budget of "),
        (["--latency", "1us"], "latency cannot be met: the smallest reachable is"),
        (["--latency", "soon"], "the budget on latency is 'soon'"),
        (["--round-to", "some"], "--round-to is 'some', no number"),
        (["--latency", "0.5", "--ratio", "0.5"], "--ratio 0.5 and --latency 0.5 are both given"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    from irprune.cli import run

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 40, 3)).eval()
    whole = irprune.prune(net, (IMAGE,), ratio=0.0, proof=False, dynamic="none").onnx(
        tmp_path / "net.onnx", parity=False
    )
    assert (
        run(
            [
                "prune",
                str(whole),
                "-o",
                str(tmp_path / "out.onnx"),
                "--threads",
                "1",
                "--device",
                "cpu",
                *options,
            ]
        )
        == 2
    )
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last and not (tmp_path / "out.onnx").exists()
    assert "--macs" not in options or "what holds it up" in last


def test_channels_of_convolutions_are_aligned_with_a_budget() -> None:
    wide = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 24, 3), nn.ReLU(), nn.Conv2d(24, 10, 3), nn.ReLU(),
        nn.Conv2d(10, 40, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 30), nn.ReLU(),
        nn.Linear(30, 5),
    )  # fmt: skip
    call = (torch.randn(1, 3, 20, 20),)
    pruned = irprune.prune(wide, call, budget={"macs": 0.6}, proof=False)
    assert pruned.options.round_to == "aligned" and pruned.report.macs.left <= 0.6
    assert pruned.module.get_submodule("0").out_channels % 8 == 0
    assert pruned.module.get_submodule("2").out_channels % 4 == 0
    free = irprune.prune(wide, call, budget={"macs": 0.6}, round_to=1, proof=False)
    assert any(free.module.get_submodule(k).out_channels % 4 for k in ("0", "2"))
    assert irprune.prune(wide, call, ratio=0.3, proof=False).options.round_to is None
