"""Large files: weights are read and written one by one; the file may be replaced meanwhile; what
lies outside stays outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import info, model_of, node

import irprune
from irprune.emit.onnx import file as onnx_file
from irprune.emit.onnx.emitter import emit_onnx
from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import locations, read_model
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.validate import onnx_random_weights_proof, onnx_run
from irprune.validate.onnx_run import run_model


def wide(path: Path, width: int = 64, layers: int = 3, dtype: type = np.float32) -> Path:
    """A residual MLP: ``layers`` times two matrices of ``width`` x ``4 * width``."""
    random = np.random.default_rng(0)
    nodes, tensors, x = [], [], "x"
    for k in range(layers):
        for name, shape in ((f"up{k}", (width, 4 * width)), (f"down{k}", (4 * width, width))):
            array = random.standard_normal(shape, dtype=np.float32) / width**0.5
            tensors.append(onnx.numpy_helper.from_array(array.astype(dtype), name))
        nodes += [
            node("MatMul", f"{x} up{k}", f"h{k}"),
            node("Relu", f"h{k}", f"r{k}"),
            node("MatMul", f"r{k} down{k}", f"d{k}"),
        ]
        nodes.append(node("Add", f"{x} d{k}", f"x{k}"))
        x = f"x{k}"
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = model_of(
        nodes, [info("x", 2, width, kind=kind)], [info(x, 2, width, kind=kind)], tensors
    )
    model.graph.initializer[0].doc_string = "the first of all"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_large_file_is_proven_weight_by_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wide(tmp_path / "m.onnx")
    whole = irprune.prune(path).report.proof
    for module in (onnx_run, onnx_random_weights_proof):
        monkeypatch.setattr(module, "APART", 1000)
    held = onnx_file.with_arrays
    monkeypatch.setattr(onnx_file, "with_arrays", None)
    monkeypatch.setattr(onnx_random_weights_proof, "with_arrays", None)
    made = irprune.prune(path).report.proof
    assert whole is not None and made is not None and held is not None
    assert whole.second_pass is not None and made.second_pass is not None
    assert made.passed and made.second_pass.weights == whole.second_pass.weights == "random"
    assert (
        (made.second_pass.judged, made.passes)
        == (whole.second_pass.judged, whole.passes)
        == (1, made.passes)
    )
    assert made.second_pass.error < 1e-12 and made.second_pass.judge_error < 1e-12
    assert made.max_error == pytest.approx(whole.max_error, abs=1e-6)


def test_a_file_is_read_without_its_weights(tmp_path: Path) -> None:
    path = wide(tmp_path / "m.onnx")
    light = read_model(path)
    assert light.ByteSize() < 10_000 < 300_000 < path.stat().st_size
    whole = onnx.load(path)
    for ours, theirs in zip(light.graph.initializer, whole.graph.initializer, strict=True):
        assert (ours.name, ours.dims, ours.doc_string) == (
            theirs.name,
            theirs.dims,
            theirs.doc_string,
        ) and not ours.raw_data
    graph = irprune.capture(path)
    for tensor in whole.graph.initializer:
        assert np.array_equal(graph.weights[tensor.name].load(), onnx.numpy_helper.to_array(tensor))


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_what_is_written_piece_by_piece_is_what_one_message_would_be(
    tmp_path: Path, ratio: float
) -> None:
    pruned = irprune.prune(wide(tmp_path / "m.onnx"), ratio=ratio, proof=False)
    written = pruned.onnx(tmp_path / "out.onnx").read_bytes()
    assert written == emit_onnx(pruned.cut).SerializeToString(deterministic=True)
    assert (written == (tmp_path / "m.onnx").read_bytes()) == (ratio == 0.0)


def test_a_file_may_be_replaced_by_its_own_pruned_self(tmp_path: Path) -> None:
    path = wide(tmp_path / "m.onnx")
    expected = irprune.prune(path, ratio=0.5).onnx(tmp_path / "other.onnx").read_bytes()
    pruned = irprune.prune(path, ratio=0.5, proof=False)
    pruned.onnx(path)
    assert path.read_bytes() == expected
    pruned.onnx(tmp_path / "again.onnx")  # what was read is still there
    assert (tmp_path / "again.onnx").read_bytes() == expected


def data_of(model: Path) -> Path:
    """The one file of external data of a model."""
    (name,) = locations(model)
    return model.parent / name


def test_a_message_that_would_be_too_large_goes_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = irprune.prune(wide(tmp_path / "m.onnx"), ratio=0.5)
    inside = pruned.onnx(tmp_path / "inside.onnx")
    monkeypatch.setattr(onnx_file, "LIMIT", 100_000)
    outside = pruned.onnx(tmp_path / "outside.onnx")
    assert outside.stat().st_size < 5_000 and data_of(outside).stat().st_size > 100_000
    onnx.checker.check_model(str(outside), full_check=True)
    x = random_inputs(pruned.graph)
    assert relative_error(run_model(inside, x), run_model(outside, x)) == 0
    with pytest.raises(IrpruneError, match="passes 2 GB"):
        emit_onnx(pruned.cut)
    # External data in, external data out, also where it would fit
    again = irprune.prune(outside, ratio=0.0)
    monkeypatch.undo()
    again.onnx(tmp_path / "again.onnx")
    assert relative_error(run_model(inside, x), run_model(tmp_path / "again.onnx", x)) == 0
    assert data_of(tmp_path / "again.onnx").read_bytes() == data_of(outside).read_bytes()


def test_external_data_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    onnx.save(
        onnx.load(wide(tmp_path / "in.onnx")),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.bin",
    )
    pruned = irprune.prune(tmp_path / "m.onnx", ratio=0.5, proof=False)
    data = tmp_path / "m.bin"
    data.write_bytes(data.read_bytes() + b"more")
    with pytest.raises(IrpruneError, match="changed since the model was read"):
        pruned.onnx(tmp_path / "out.onnx")
    assert not list(tmp_path.glob("*out.onnx*"))


@pytest.mark.parametrize("outside", [False, True])
def test_the_peak_is_far_below_the_file(tmp_path: Path, outside: bool) -> None:
    """A process that prunes a 60-MB file needs less than half of it more than one that prunes a
    tiny file."""
    small, large = wide(tmp_path / "small.onnx"), wide(tmp_path / "large.onnx", 512, 7)
    if outside:
        onnx.save(
            onnx.load(large),
            tmp_path / "outside.onnx",
            save_as_external_data=True,
            location="large.bin",
        )
        large = tmp_path / "outside.onnx"
    code = (
        "import resource, sys, irprune.cli as c; assert c.run(['prune', sys.argv[1], '-o', sys.argv[2], '--no-proof']) == 0; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for path in (small, large):
        command = [sys.executable, "-c", code, str(path), str(tmp_path / f"out-{path.name}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.strip().splitlines()[-1]) * 1024)
    assert peaks[1] - peaks[0] < 30e6
