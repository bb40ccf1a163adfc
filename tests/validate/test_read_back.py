"""What is written is read again by loaders that are not irprune's: a fault in writing or in reading
is seen before anybody gets the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import irprune
from irprune.errors import CheckFailed, IrpruneError
from irprune.ops.registry import load_table
from irprune.testing.mutants import see
from irprune.testing.onnx_subjects import onnx_faults, onnx_subjects
from irprune.testing.planted import FAULTS, seen


def test_a_file_is_read_back(tmp_path: Path) -> None:
    from irprune.testing.works import made_file

    onnx.save(
        made_file(True),
        str(tmp_path / "in.onnx"),
        save_as_external_data=True,
        location="in.data",
        size_threshold=1000,
    )
    pruned = irprune.prune(str(tmp_path / "in.onnx"))
    pruned.onnx(tmp_path / "out.onnx")
    (found,) = pruned.report.read_back
    assert found.passed and found.file == "out.onnx" and found.error == 0
    assert f"read back   {found}" in str(pruned.report)
    assert pruned.report.as_dict()["read_back"][0].keys() >= {"file", "by", "error", "passed"}
    assert "seconds" in pruned.report.as_dict(timings=True)["read_back"][0]


def test_a_large_file_is_read_back_without_holding_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tensors are compared one by one, and onnxruntime loads it as it lies there."""
    from irprune.testing.works import made_file
    from irprune.validate import onnx_read_back

    asked = []
    real = onnx_read_back.session

    def session(*args: object, **how: object) -> object:
        asked.append((args[0], how["mapped"], how["optimise"]))
        return real(*args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_read_back, "session", session)
    monkeypatch.setattr(onnx_read_back, "_RUN", 1000)
    pruned = irprune.prune(made_file(False), proof=False)
    pruned.onnx(tmp_path / "out.onnx")
    assert asked == [(tmp_path / "out.onnx", True, False)]
    (found,) = pruned.report.read_back
    assert found.passed

    def other(tensor: onnx.TensorProto, data: object) -> object:
        array = array_of(tensor, data)
        return array + 1 if tensor.name == "w0" else array

    array_of = onnx_read_back._array
    monkeypatch.setattr(onnx_read_back, "_array", other)
    with pytest.raises(CheckFailed, match="'w0' holds other numbers"):
        pruned.onnx(tmp_path / "out.onnx")


def test_a_file_that_runs_no_more_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime takes the original and not what was written of it, as it stands there."""
    from irprune.testing.works import made_file
    from irprune.validate.onnx_read_back import Emitter

    def emit(emitter: Emitter) -> onnx.ModelProto:
        made = real(emitter)
        made.graph.node[0].attribute.append(onnx.helper.make_attribute("transA_", 1))
        return made

    real = Emitter.emit
    monkeypatch.setattr(Emitter, "emit", emit)
    with pytest.raises(
        CheckFailed, match=r"onnxruntime refuses the model.*This is an invalid model"
    ):
        irprune.prune(made_file(False), proof=False).onnx(tmp_path / "out.onnx")


def test_a_file_that_stops_at_its_inputs_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from irprune.testing.works import made_file
    from irprune.validate.onnx_read_back import Emitter

    def emit(emitter: Emitter) -> onnx.ModelProto:
        made = real(emitter)
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 11]), "to"))
        made.graph.node.append(onnx.helper.make_node("Reshape", ["x", "to"], ["more"]))
        made.graph.output.append(
            onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["a", "b"])
        )
        return made

    real = Emitter.emit
    monkeypatch.setattr(Emitter, "emit", emit)
    with pytest.raises(CheckFailed, match="onnxruntime fails on the input"):
        irprune.prune(made_file(False), proof=False).onnx(tmp_path / "out.onnx")


def test_a_file_that_never_ran_passes(tmp_path: Path) -> None:
    """onnxruntime has no kernel for the original either."""
    weights = [
        onnx.helper.make_tensor(n, onnx.TensorProto.BFLOAT16, shape, np.ones(shape).ravel())
        for n, shape in (("a", (4, 8)), ("b", (8, 3)))
    ]
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.BFLOAT16, shape)
        for n, shape in (("x", (2, 4)), ("y", (2, 3)))
    ]
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "a"], ["h"]),
        onnx.helper.make_node("MatMul", ["h", "b"], ["y"]),
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "bf16", ends[:1], ends[1:], weights),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=10,
    )
    pruned = irprune.prune(model, proof=False)
    pruned.onnx(tmp_path / "out.onnx")
    (found,) = pruned.report.read_back
    assert found.passed
    assert onnx.load(str(tmp_path / "out.onnx")).graph.initializer[0].dims == [4, 4]


def test_a_folder_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    pruned = irprune.prune(model, (torch.randn(4, 6),))
    pruned.save(tmp_path / "out")
    assert [r.file for r in pruned.report.read_back] == ["model.py", "model.pt2"]
    assert all(r.passed for r in pruned.report.read_back)
    assert "read back   model.pt2 equal" in str(pruned.report)
    pruned.program(tmp_path / "again.pt2")
    made = torch.export.load(str(tmp_path / "again.pt2")).module()
    x = torch.randn(4, 6)
    assert torch.allclose(made(x), pruned.module(x))


def test_a_file_has_no_program(tmp_path: Path) -> None:
    from irprune.testing.works import made_file

    pruned = irprune.prune(made_file(False), proof=False)
    with pytest.raises(IrpruneError, match=r"a \.pt2 program is made of a PyTorch model"):
        pruned.program(tmp_path / "out.pt2")


SAMPLE = (
    ("writing", "an offset that is too small"),
    ("writing", "the bytes of a tensor moved"),
    ("writing", "a loader that reads late"),
    ("writing", "a tensor under another name"),
    ("writing", "a program of other weights"),
    ("reading", "an offset beside the file that is too small"),
    ("reading", "an offset in the file that is too small"),
    ("emission of a file", "tensors swapped"),
    ("emission of a module", "operands swapped"),
    ("capture", "another slope"),
)


@pytest.mark.parametrize(("kind", "name"), SAMPLE)
def test_a_fault_that_is_planted_by_hand_is_seen_by_the_proof(kind: str, name: str) -> None:
    (fault,) = (f for f in FAULTS if (f.kind, f.name) == (kind, name))
    by, said = seen(fault)
    assert by == "proof", said


def test_faults_of_the_rules_are_seen_in_files() -> None:
    entry = load_table()["conv"]
    model = next(iter(onnx_subjects(entry)))
    seen_by = [see(mutant, model).by for mutant in onnx_faults(entry)]
    assert "nothing" not in seen_by


def test_a_cut_that_stops_is_a_failed_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    from irprune.passes import slice as slicing

    real = slicing.kept_indices

    def wrong(value: object, kept: object) -> list[object]:
        found: list[object] = list(real(value, kept))  # type: ignore[arg-type]
        if getattr(value, "name", "") == "0.bias":
            found[0] = found[0][1:]  # type: ignore[index]
        return found

    monkeypatch.setattr(slicing, "kept_indices", wrong)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with pytest.raises(CheckFailed, match="the cut model stops where the original runs"):
        irprune.prune(model, (torch.randn(4, 6),))
