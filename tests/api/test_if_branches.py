"""A file with a net in each branch of an If, through the doors that users take: budgets, patterns,
plans, calibration data and reports count both branches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import info, model_of, node, tensor

import irprune
import irprune.cli

RATES = (16000, 8000)


def net(name: str, width: int) -> onnx.GraphProto:
    nodes = [
        node("Conv", f"x {name}1", f"{name}a", kernel_shape=[9], pads=[4, 4]),
        node("Relu", f"{name}a", f"{name}b"),
        node("Conv", f"{name}b {name}2", f"{name}y", kernel_shape=[1]),
    ]
    tensors = [tensor(f"{name}1", width, 1, 9), tensor(f"{name}2", 4, width, 1)]
    return helper.make_graph(nodes, name, [], [info(f"{name}y", 1, 4, 64)], tensors)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    nodes = [
        node("Equal", "rate known", "q"),
        node("If", "q", "y", then_branch=net("t", 32), else_branch=net("e", 16)),
    ]
    inputs = [info("x", 1, 1, 64), info("rate", kind=TensorProto.INT64)]
    known = numpy_helper.from_array(np.array(RATES[0]), "known")
    onnx.save(model_of(nodes, inputs, [info("y", 1, 4, 64)], [known]), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def weights(path: Path) -> dict[str, list[int]]:
    """What the branches of the file hold."""
    bodies = [a.g for n in onnx.load(path).graph.node for a in n.attribute if a.HasField("g")]
    return {t.name: list(t.dims) for g in bodies for t in g.initializer}


def test_the_report_counts_what_the_file_holds(file: Path, tmp_path: Path) -> None:
    pruned = irprune.prune(file, ratio=0.5)
    out = pruned.onnx(tmp_path / "small.onnx")
    held = weights(out)
    assert held == {"t1": [16, 1, 9], "t2": [4, 16, 1], "e1": [8, 1, 9], "e2": [4, 8, 1]}
    report = pruned.report
    for count, each in ((report.params, 1), (report.macs, 64)):
        assert (count.before, count.after) == (48 * 13 * each, 24 * 13 * each)
    assert any("all branches of its Ifs" in note for note in report.notes)


def test_budgets_hold_for_both_together(file: Path) -> None:
    for name in ("macs", "params"):
        pruned = irprune.prune(file, budget={name: 0.4})
        count = getattr(pruned.report, name)
        assert 0.3 < count.after / count.before <= 0.4 and len(pruned.report.groups) == 2


def test_patterns_and_plans(file: Path, tmp_path: Path) -> None:
    pruned = irprune.prune(file, ratio=0.5, keep=["t*"])
    first = pruned.onnx(tmp_path / "a.onnx")
    assert weights(first)["t1"] == [32, 1, 9] and weights(first)["e1"] == [8, 1, 9]
    again = irprune.apply_plan(file, pruned.plan).onnx(tmp_path / "b.onnx")
    assert again.read_bytes() == first.read_bytes()


def test_inspect_explain_and_opt(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert irprune.cli.run(["inspect", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["params"] == 48 * 13 and said["macs"] == 48 * 13 * 64
    assert irprune.cli.run(["explain", str(file), "e1"]) == 0
    assert "e2:1" in capsys.readouterr().out
    out = tmp_path / "o.onnx"
    call = ["opt", str(file), "-p", "prepare,analyse,score,choose{ratio=0.5},cut", "-o", str(out)]
    assert irprune.cli.run(call) == 0
    assert weights(out)["e1"] == [8, 1, 9]


def data(rates: tuple[int, ...]) -> list[dict[str, Any]]:
    """Positive inputs for the first rate, negative ones for the other."""
    draw = np.random.default_rng(0).random
    return [
        {"x": (1 - 2 * (rate != RATES[0])) * draw((1, 1, 64), "f4"), "rate": np.array(rate)}
        for rate in rates
        for _ in "abcd"
    ]


def test_each_branch_learns_from_the_inputs_that_take_it(file: Path) -> None:
    """Even channels are zero for positive inputs, odd ones for negative ones, so that each branch
    can lose other ones."""
    model = onnx.load(file)
    for body in (a.g for n in model.graph.node for a in n.attribute if a.HasField("g")):
        array = abs(numpy_helper.to_array(body.initializer[0])) + 0.1
        array[::2] *= -1
        body.initializer[0].CopyFrom(numpy_helper.from_array(array, body.initializer[0].name))
    onnx.save(model, file)
    for kind in ("flap", "taylor", "wanda", "contribution"):
        pruned = irprune.prune(file, ratio=0.5, calibration=data(RATES), importance=kind)
        assert {c.name: list(c.kept) for c in pruned.plan.choices} == {
            "t1:0": list(range(1, 32, 2)),
            "e1:0": list(range(0, 16, 2)),
        }
        assert pruned.report.proof.passed  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["flap", "taylor", "osscar", "reconstruction"])
def test_data_that_take_one_branch_alone_are_refused(file: Path, kind: str) -> None:
    assert irprune.prune(file, calibration=data(RATES), importance=kind).report.groups
    with pytest.raises(irprune.IrpruneError, match="never take the else branch of the If"):
        irprune.prune(file, calibration=data(RATES[:1]), importance=kind)


def test_inputs_are_not_made_up(file: Path) -> None:
    with pytest.raises(irprune.IrpruneError, match="they decide which branch"):
        irprune.prune(file, calibration="synthetic")
