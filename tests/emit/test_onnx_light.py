"""The nine small models that ship inside the onnx package: captured, cut, written, run, and proven
on onnxruntime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from shared import analysed_file, cut_file

from irprune.emit.onnx.emitter import emit_onnx
from irprune.frontend.onnx.reader import capture_onnx
from irprune.ir.graph import Graph
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.validate.onnx_oracle import silenced_onnx
from irprune.validate.onnx_run import run_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from onnx_light import lively

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
QUICK = ("densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet")
HEAVY = ("bvlc_alexnet", "vgg19", "zfnet512")  # hundreds of megabytes once their weights are made


def parameters(graph: Graph) -> int:
    return sum(int(np.prod(w.shape)) for w in graph.weights.values())


@pytest.mark.parametrize("name", QUICK + HEAVY)
def test_nothing_dropped_gives_the_same_bytes(name: str) -> None:
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    again = emit_onnx(capture_onnx(model))
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("name", QUICK)
def test_light_models_are_proven(name: str) -> None:
    model = lively(name)
    graph = analysed_file(model)
    x = random_inputs(graph)
    whole = run_model(model, x)
    left = []
    for ratio in (0.3, 0.5, 0.7) if name in ("squeezenet", "shufflenet") else (0.5,):
        small = cut_file(graph, ratio)
        emitted = emit_onnx(small)
        onnx.checker.check_model(emitted, full_check=True)
        ours, silent = run_model(emitted, x), silenced_onnx(graph, graph.kept, x)
        assert relative_error(ours, silent) < 1e-4
        assert relative_error(whole, silent) > 1e-3, (
            "the cut changes nothing, so the proof says nothing"
        )
        left.append(parameters(small) / parameters(graph))
    assert left == sorted(left, reverse=True)
    # Coprime groups before and after a shuffle cannot be cut
    assert left[len(left) // 2] < (0.4 if name == "shufflenet" else 0.36)


def test_a_heavy_model_is_proven() -> None:
    """The other two are as deep and slower: ``tools/onnx_light.py`` proves them."""
    model = lively("bvlc_alexnet")
    graph = analysed_file(model)
    x = random_inputs(graph)
    emitted = emit_onnx(cut_file(graph, 0.5))
    onnx.checker.check_model(emitted, full_check=True)
    assert relative_error(run_model(emitted, x), silenced_onnx(graph, graph.kept, x)) < 1e-4


def test_a_wrong_slice_is_found() -> None:
    """The proof sees one channel taken for another."""
    graph = analysed_file(lively("squeezenet"))
    x = random_inputs(graph)
    small = cut_file(graph, 0.5)
    emitted = emit_onnx(small)
    kernel = next(
        n.attribute[0].t
        for n in emitted.graph.node
        if n.op_type == "Constant" and len(n.attribute[0].t.dims) == 4
    )
    array = onnx.numpy_helper.to_array(kernel)
    kernel.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array[::-1]), kernel.name))
    assert relative_error(run_model(emitted, x), silenced_onnx(graph, graph.kept, x)) > 1e-2


def test_torch_is_not_imported() -> None:
    import subprocess

    code = (
        "import sys; from irprune.frontend.onnx.reader import capture_onnx; from irprune.passes.infer_axes import InferAxes; "
        f"g = capture_onnx({str(FOLDER / 'light_squeezenet.onnx')!r}); InferAxes().run(g); "
        "print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
