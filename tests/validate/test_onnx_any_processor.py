"""The proof of a quantised file is the same on every processor: also where products of integers
saturate, as simulated here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import irprune
from irprune.emit.onnx.emitter import Emitter
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.validate import onnx_proof, saturation
from irprune.validate.onnx_oracle import silenced_model
from irprune.validate.onnx_run import run_model
from irprune.validate.onnx_unrounded import unrounded

Array = np.ndarray
FLOAT = TensorProto.FLOAT
HOW = ["QDQ", "operators", "dynamic"]


def two_layers(tmp_path: Path) -> Path:
    """Weights that use the whole range of eight bits, as most are as large as the largest."""
    random = np.random.default_rng(0)
    arrays = {
        n: np.sign(random.standard_normal(s)) * random.uniform(0.7, 1, s) / 8
        for n, s in (("w1", (64, 48)), ("w2", (48, 10)))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, FLOAT, [8, k]) for n, k in (("x", 64), ("y", 10))]
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "whole.onnx")
    return tmp_path / "whole.onnx"


def quantised(tmp_path: Path, how: str, reduce_range: bool = False) -> Path:
    quantization = pytest.importorskip("onnxruntime.quantization")
    random, made = np.random.default_rng(1), tmp_path / "quantised.onnx"
    samples = [{"x": random.standard_normal((8, 64)).astype(np.float32)} for _ in range(4)]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Array] | None:
            return samples.pop() if samples else None

    logging.disable(logging.WARNING)
    try:
        if how == "dynamic":
            quantization.quantize_dynamic(two_layers(tmp_path), made, reduce_range=reduce_range)
        else:
            form = {
                "QDQ": quantization.QuantFormat.QDQ,
                "operators": quantization.QuantFormat.QOperator,
            }[how]
            quantization.quantize_static(
                two_layers(tmp_path), made, Reader(), quant_format=form, per_channel=how == "QDQ"
            )
    finally:
        logging.disable(logging.NOTSET)
    return made


class MatMulInteger(OpRun):  # type: ignore[misc]
    """Two products at a time in sixteen bits, as VPMADDUBSW adds them up."""

    op_domain = ""
    precise = False

    def _run(
        self, a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None
    ) -> tuple[Array]:
        x, y = a.astype(np.int64), b.astype(np.int64)
        pairs = np.einsum("mpk,pkn->mpn", x.reshape(len(x), -1, 2), y.reshape(-1, 2, y.shape[1]))
        sums = (
            pairs if self.precise or b.dtype != np.int8 else pairs.clip(-(2**15), 2**15 - 1)
        ).sum(1)
        p, q = (0 if z is None else z.astype(np.int64) for z in (a_zero, b_zero))
        return (
            (sums - p * y.sum(0) - x.sum(1, keepdims=True) * q + len(y) * p * q).astype(np.int32),
        )


class Precise(MatMulInteger):
    """As processors with VNNI do."""

    precise = True


Precise.__name__ = "MatMulInteger"  # by which the evaluator knows what it is for


def without_vnni(
    model: onnx.ModelProto,
    inputs: Mapping[str, Array],
    optimise: bool = True,
    data: Any = None,
    precise: bool = False,
) -> list[Array]:
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for t in whole.graph.initializer:
        if data and t.name in data:
            t.CopyFrom(numpy_helper.from_array(data[t.name](), t.name))
    evaluator = ReferenceEvaluator(whole, new_ops=[Precise if precise else MatMulInteger])
    return evaluator.run(None, {i.name: inputs[i.name] for i in whole.graph.input})


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (onnx_proof, saturation):
        monkeypatch.setattr(module, "run_model", without_vnni)
    saturation.products_saturate.cache_clear()
    yield
    saturation.products_saturate.cache_clear()


def test_the_simulation_saturates(tmp_path: Path, old_processor: None) -> None:
    """As it stands the file is no longer what it is silenced: what a proof by these kernels would
    take for a wrong cut."""
    pruned = irprune.prune(quantised(tmp_path, "dynamic"), ratio=0.5, proof=False)
    inputs = random_inputs(pruned.graph)
    assert pruned.graph.kept is not None
    model, data = silenced_model(pruned.graph, pruned.graph.kept, inputs)
    emitter = Emitter(pruned.cut)
    made = emitter.emit()
    silent, cut = (
        without_vnni(m, inputs, data=d) for m, d in ((model, data), (made, emitter.data))
    )
    assert relative_error(cut, silent) > 1e-3
    silent, cut = (
        without_vnni(m, inputs, data=d, precise=True)
        for m, d in ((model, data), (made, emitter.data))
    )
    assert relative_error(cut, silent) < 1e-6
    assert saturation.products_saturate()


def test_a_cut_is_proven_where_kernels_saturate(tmp_path: Path, old_processor: None) -> None:
    report = irprune.prune(quantised(tmp_path, "dynamic"), ratio=0.5).report
    assert report.proof is not None and report.proof.passed and report.proof.max_error < 1e-5
    assert "saturate" in report.proof.notes[1] and "reduce_range=True" in report.proof.notes[1]
    assert report.proof.notes[1] in str(report)


def test_nothing_is_said_of_weights_within_half_the_range(
    tmp_path: Path, old_processor: None
) -> None:
    report = irprune.prune(quantised(tmp_path, "dynamic", reduce_range=True), ratio=0.5).report
    assert report.proof is not None and report.proof.passed
    assert not any("saturate" in note for note in report.proof.notes)


def test_what_onnxruntime_cannot_compare_is_said_by_its_types(
    tmp_path: Path, old_processor: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: Any, precise: bool = False, **kwargs: Any) -> Any:
        if precise:
            raise IrpruneError("onnxruntime refuses the model")
        return without_vnni(*args, **kwargs)

    monkeypatch.setattr(saturation, "run_model", refuses)
    report = irprune.prune(quantised(tmp_path, "dynamic"), ratio=0.5).report
    assert report.proof is not None and "may do so" in report.proof.notes[1]


@pytest.mark.parametrize(
    ("left", "right", "mixed"), [("u8", "i8", True), ("i8", "i8", False), ("u8", "u8", False)]
)
def test_which_products_may_saturate(left: str, right: str, mixed: bool) -> None:
    kinds = {"u8": np.uint8, "i8": np.int8}
    stored = {"z": np.zeros((), kinds[left]), "w": np.zeros((4, 4), kinds[right])}
    nodes = [helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"])]
    tensors = [numpy_helper.from_array(a, n) for n, a in stored.items()]
    assert (
        saturation.mixes_signs(helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)))
        is mixed
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", HOW)
def test_a_cut_is_proven_here(how: str, tmp_path: Path) -> None:
    """With this machine's own kernels, whichever they are."""
    proof = irprune.prune(quantised(tmp_path, how), ratio=0.5).report.proof
    assert (
        proof is not None
        and proof.passed
        and proof.max_error < 1e-5
        and "without rounding" in proof.notes[0]
    )


def other_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph, kept: Selection, inputs: Mapping[str, Array]) -> object:
        return silenced_model(
            graph,
            Selection(
                {a: np.setdiff1d(np.arange(a.size), index) for a, index in kept.choice.items()}
            ),
            inputs,
        )

    monkeypatch.setattr(onnx_proof, "silenced_model", wrong)


def changed(
    pick: Callable[[str, Array], bool], change: Callable[[Array], Array]
) -> Callable[[pytest.MonkeyPatch], None]:
    """The file that goes out with ``change`` made to the stored tensors that ``pick`` takes."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        emit = Emitter.emit

        def wrong(self: Emitter) -> onnx.ModelProto:
            model = emit(self)
            for t in model.graph.initializer:
                load = self.data.get(t.name)
                array = np.asarray(load() if load is not None else numpy_helper.to_array(t))
                if pick(t.name, array):
                    t.CopyFrom(
                        numpy_helper.from_array(
                            np.ascontiguousarray(change(array)).astype(array.dtype), t.name
                        )
                    )
                    self.data = {k: v for k, v in self.data.items() if k != t.name}
            return model

        monkeypatch.setattr(Emitter, "emit", wrong)

    return plant


FAULTS = {
    "other channels": other_channels,
    "columns of a matrix in another order": changed(
        lambda n, a: n.startswith("w1") and a.ndim == 2, lambda a: np.roll(a, 1, 1)
    ),
    "another zero point": changed(lambda n, a: n == "w1_zero_point", lambda a: a + 3),
    "scales in another order": changed(
        lambda n, a: n == "w1_scale" and a.size > 1, lambda a: a[::-1]
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "fault"),
    [
        *((h, f) for h in HOW for f in list(FAULTS)[:3]),
        ("QDQ", "scales in another order"),
    ],
)
def test_a_wrong_cut_is_seen(
    how: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS[fault](monkeypatch)
    with pytest.raises(IrpruneError, match="the proof fails"):
        irprune.prune(quantised(tmp_path, how), ratio=0.5)


def test_a_wrong_cut_is_seen_where_kernels_saturate(
    tmp_path: Path, old_processor: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_channels(monkeypatch)
    with pytest.raises(IrpruneError, match="the proof fails"):
        irprune.prune(quantised(tmp_path, "dynamic"), ratio=0.5)


def test_numbers_on_the_edge_between_two_integers() -> None:
    """Of 160,000 sums some fall to the next integer in another order, a step far above the
    tolerance: no fault of the cut."""
    random = np.random.default_rng(2)
    arrays = {
        "w1": random.standard_normal((64, 768)).astype(np.float32),
        "w2": random.standard_normal((768, 40)).astype(np.float32),
        "w3": random.standard_normal((40, 3)).astype(np.float32),
        "s": np.float32(0.5),
        "z": np.int16(0),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w3"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, FLOAT, [4096, k]) for n, k in (("x", 64), ("y", 3))]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    proof = irprune.prune(model, ratio=0.5).report.proof
    assert proof is not None and proof.passed and proof.max_error < 1e-5


def test_the_bounds_of_integers_take_part() -> None:
    """What lies beyond them is cut off without rounding too: a model whose numbers all do gives the
    bounds."""
    stored = {"s": np.float32(0.5), "z": np.int8(0), "w": np.full((2, 2), 1000, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, FLOAT, [1, 2]) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    for x, y in ((1, 63.5), (-1, -64.0)):
        (made,) = run_model(unrounded(model), {"x": np.full((1, 2), x, np.float32)}, optimise=False)
        assert (made == y).all()
