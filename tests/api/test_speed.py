"""A file that is written is timed beside the original, and a doubt is said."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from onnx_models import info, int64, model_of, node, tensor
from torch import nn

import irprune
import irprune.cli
from irprune.api.speed import Speed
from irprune.run.timing import Timing


def speed(low: float, median: float, high: float) -> Speed:
    one = Timing(1.0, 0.9, 1.1, 9)
    return Speed(one, one, Timing(median, low, high, 9), "CPUExecutionProvider", 1)


def test_what_is_said_of_a_file() -> None:
    assert speed(0.5, 0.6, 0.7).faster is True and not speed(0.5, 0.6, 0.7).warning
    assert speed(1.05, 1.1, 1.2).faster is False
    assert "is not faster (1.10 of the original's time)" in speed(1.05, 1.1, 1.2).warning
    assert speed(0.98, 1.0, 1.02).faster is False
    assert speed(0.7, 0.95, 1.4).faster is None
    assert "noisy (0.70 to 1.40" in speed(0.7, 0.95, 1.4).warning


def test_a_file_of_a_module_and_of_a_file_are_timed(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU())
    model = nn.Sequential(wide, nn.Linear(2048, 8))
    call = (torch.randn(64, 64),)
    first = irprune.prune(model, call, ratio=0.9, bench=True, proof=False, dynamic="none")
    first.onnx(tmp_path / "a.onnx")
    found = first.report.speed
    assert found is not None and found.ratio.median < 0.6
    assert f"latency     {found.before}" in str(first.report)
    assert "speed" not in first.report.as_dict() and first.report.as_dict(timings=True)["speed"]
    second = irprune.prune(onnx.load(tmp_path / "a.onnx"), ratio=0.5, bench=True, proof=False)
    second.onnx(tmp_path / "b.onnx")
    assert second.report.speed is not None
    plain = irprune.prune(model, call, ratio=0.5, proof=False)
    plain.onnx(tmp_path / "c.onnx")
    assert plain.report.speed is None


def test_files_that_take_more_than_memory_are_not_timed(tmp_path: Path) -> None:
    deep = nn.Sequential(*(x for _ in range(6) for x in (nn.Linear(32, 32), nn.ReLU())))
    irprune.prune(deep, (torch.randn(2, 32),), ratio=0.0, proof=False).onnx(tmp_path / "a.onnx")
    for allowed, timed in (("10kB", False), (None, True)):
        made = irprune.prune(
            str(tmp_path / "a.onnx"), ratio=0.5, bench=True, proof=False, memory=allowed
        )
        made.onnx(tmp_path / "b.onnx")
        assert (made.report.speed is not None) is timed
        said = [n for n in made.report.notes if n.startswith("not timed: onnxruntime would hold")]
        assert bool(said) is not timed


def stateful(tmp_path: Path, state: list[int | str]) -> Path:
    """Two layers, and a state that an If, which stays as it is, joins to what they give."""
    bodies = [
        helper.make_graph(
            [helper.make_node("Concat", order, [out], axis=2)],
            out,
            [],
            [info(out, None, None, None)],
        )
        for out, order in (("t", ["rows", "state"]), ("e", ["state", "rows"]))
    ]
    nodes = [
        node("MatMul", "x w", "a"),
        node("Relu", "a", "b"),
        node("MatMul", "b v", "c"),
        node("Unsqueeze", "c zero", "rows"),
        node("If", "p", "y", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    inputs = [info("x", "n", 8), info("state", *state), info("p", kind=TensorProto.BOOL)]
    tensors = [tensor("w", 8, 32), tensor("v", 32, 16), int64("zero", 0)]
    model = model_of(nodes, inputs, [info("y", None, None, None)], tensors)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_state_has_the_batch_of_the_other_inputs(tmp_path: Path) -> None:
    file, out = stateful(tmp_path, [1, "m", 16]), tmp_path / "small.onnx"
    pruned = irprune.prune(file, ratio=0.5, bench=True)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    pruned.onnx(out)
    assert pruned.report.speed is not None
    assert irprune.cli.run(["validate", str(file), str(file)]) == 0
    assert irprune.cli.run(["bench", str(file), "--against", str(out), "--seconds", "0.01"]) == 0


def test_a_file_that_runs_at_no_size_is_not_timed(tmp_path: Path) -> None:
    """A state of 77 rows, which no batch is tried with."""
    pruned = irprune.prune(stateful(tmp_path, [1, 77, 16]), ratio=0.5, bench=True, proof=False)
    pruned.onnx(tmp_path / "small.onnx")
    assert pruned.report.speed is None
    assert any("not timed: onnxruntime fails on the input" in n for n in pruned.report.notes)
