"""The proof of an ONNX file says what the file computes: halves and onnxruntime's optimiser do not
blur it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import info, model_of, node, tensor

import irprune
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.validate import onnx_proof, onnx_random_weights_proof

HALVES = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def convolutions(kind: int, between: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A convolution, what stands ``between`` ``a`` and ``b``, another and a mean, all of element
    type ``kind``."""
    draw = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (4, 16, 3, 3), "b2": (4,)}
    tensors = [
        numpy_helper.from_array(draw.standard_normal(s).astype(dtype), n)
        for n, s in weights.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"]),
        *between,
        helper.make_node("Conv", ["b", "w2", "b2"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=kind),
        helper.make_node("GlobalAveragePool", ["d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [2, 3, 10, 10])],
        [helper.make_tensor_value_info("y", kind, [2, 4, 1, 1])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize("kind", HALVES)
def test_halves_are_proven_in_float32(kind: str, tmp_path: Path) -> None:
    branch = [
        helper.make_node(
            "Constant", [], ["two"], value=helper.make_tensor("v", HALVES[kind], [1], [2.0])
        ),
        helper.make_node("Mul", ["a", "two"], ["m"]),
        helper.make_node("Relu", ["m"], ["b"]),
    ]
    onnx.save(convolutions(HALVES[kind], branch), tmp_path / "m.onnx")
    pruned = irprune.prune(str(tmp_path / "m.onnx"), ratio=0.5)
    proof = pruned.report.proof
    assert proof is not None and proof.passed and proof.max_error < 1e-5
    assert ("no kernels" in proof.notes[0]) == (kind == "bf16")
    pruned.onnx(tmp_path / "out.onnx")
    small = {
        t.name: (t.data_type, tuple(t.dims))
        for t in onnx.load(tmp_path / "out.onnx").graph.initializer
    }
    assert small["w1"] == (HALVES[kind], (8, 3, 3, 3)) and small["w2"] == (
        HALVES[kind],
        (4, 8, 3, 3),
    )


def test_what_the_optimiser_misreads_is_proven_as_written() -> None:
    """onnxruntime folds a Pad with zeros into a MaxPool, which then pads with the least number."""
    pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "p")
    between = [
        helper.make_node("Constant", [], ["p"], value=pads),
        helper.make_node("Pad", ["a", "p"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    model = convolutions(TensorProto.FLOAT, between)
    # Mostly negative: the zeros win
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full(16, -8, np.float32), "b1"))
    proof = irprune.prune(model, ratio=0.5).report.proof
    assert proof is not None and proof.passed
    assert "optimiser" in proof.notes[0]


def test_a_wrong_cut_of_halves_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other channels than those that were chosen."""
    silenced = onnx_proof.silenced_model

    def other(graph: Graph, kept: Selection, inputs: dict[str, np.ndarray]) -> object:
        return silenced(
            graph,
            Selection(
                {a: np.setdiff1d(np.arange(a.size), index) for a, index in kept.choice.items()}
            ),
            inputs,
        )

    monkeypatch.setattr(onnx_proof, "silenced_model", other)
    with pytest.raises(IrpruneError, match="the proof fails"):
        irprune.prune(
            convolutions(TensorProto.FLOAT16, [helper.make_node("Relu", ["a"], ["b"])]), ratio=0.5
        )


def test_what_the_optimiser_changes_in_the_cut_alone_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = onnx_proof.run_model

    def spoilt(
        model: onnx.ModelProto, inputs: object, optimise: bool = True, data: object = None
    ) -> list[np.ndarray]:
        made = run(model, inputs, optimise, data)  # type: ignore[arg-type]
        small = next(t for t in model.graph.initializer if t.name == "w1").dims[0] == 8
        return [x * 2 for x in made] if optimise and small else made

    monkeypatch.setattr(onnx_proof, "run_model", spoilt)
    with pytest.raises(IrpruneError, match="the proof fails"):
        irprune.prune(
            convolutions(TensorProto.FLOAT, [helper.make_node("Relu", ["a"], ["b"])]), ratio=0.5
        )


def constant(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights that are one number all over, some of them made by nodes."""
    for t in list(model.graph.initializer):
        if t.name in ("w1", "b2"):
            t.CopyFrom(numpy_helper.from_array(np.full(tuple(t.dims), 0.5, np.float32), t.name))
        else:
            model.graph.initializer.remove(t)
            shape = numpy_helper.from_array(np.array(t.dims, np.int64), f"{t.name}.shape")
            model.graph.initializer.append(shape)
            model.graph.node.insert(
                0,
                helper.make_node(
                    "ConstantOfShape",
                    [shape.name],
                    [t.name],
                    value=numpy_helper.from_array(np.zeros(1, np.float32)),
                ),
            )
    return model


def test_constant_weights_are_proven_with_random_ones(tmp_path: Path) -> None:
    model = constant(convolutions(TensorProto.FLOAT, [helper.make_node("Relu", ["a"], ["b"])]))
    pruned = irprune.prune(model, ratio=0.5)
    proof = pruned.report.proof
    assert proof is not None and proof.passed and proof.random_weights and not proof.vacuous
    made = onnx.load(pruned.onnx(tmp_path / "m.onnx"))
    (w1,) = (t for t in made.graph.initializer if t.name == "w1")
    assert tuple(w1.dims) == (8, 3, 3, 3) and (numpy_helper.to_array(w1) == 0.5).all()


def test_a_wrong_cut_of_constant_weights_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights alone do not show it: the random ones do."""
    silenced = onnx_random_weights_proof.silenced_model

    def other(
        graph: Graph, kept: Selection, inputs: dict[str, np.ndarray], asked: object
    ) -> object:
        return silenced(
            graph,
            Selection(
                {a: np.setdiff1d(np.arange(a.size), index) for a, index in kept.choice.items()}
            ),
            inputs,
            asked,
        )

    monkeypatch.setattr(onnx_random_weights_proof, "silenced_model", other)
    with pytest.raises(
        IrpruneError, match=r"the proof fails: FAILED: error .* with random weights"
    ):
        irprune.prune(
            constant(convolutions(TensorProto.FLOAT, [helper.make_node("Relu", ["a"], ["b"])])),
            ratio=0.5,
        )


def test_what_onnxruntime_cannot_run_is_told_apart() -> None:
    between = [
        helper.make_node("Own", ["a"], ["o"], domain="my.own"),
        helper.make_node("Relu", ["o"], ["b"]),
    ]
    model = convolutions(TensorProto.FLOAT, between)
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    with pytest.raises(
        IrpruneError,
        match=r"no proof is possible: onnxruntime refuses the model that came in.*proof=False",
    ):
        irprune.prune(model, ratio=0.5)


@pytest.mark.parametrize("target", ["MatMulInteger", "com.microsoft::QGemm", "QLinearMatMul"])
def test_zeros_of_quantised_weights_are_their_zero_points(target: str) -> None:
    """The judge zeroes the numbers, not the integers that stand for them."""
    _proven(target)


@pytest.mark.parametrize("target", ["GroupNormalization", "Attention"])
def test_what_rounds_inside_is_not_called_a_fault(target: str) -> None:
    _proven(target)


@pytest.mark.parametrize("target", ["Reciprocal", "Log", "Div", "ReduceLogSum"])
def test_zeros_that_give_infinities_do_not_judge(target: str) -> None:
    _proven(target)


def _proven(target: str) -> None:
    from irprune.ops.onnx.importer import SPELLINGS
    from irprune.ops.registry import load_table
    from irprune.testing.onnx_subjects import file_around

    load_table()
    proof = irprune.prune(file_around(SPELLINGS[target], SPELLINGS[target].samples[0])).report.proof
    assert proof is not None and proof.passed and proof.second_pass is not None


def test_products_with_stored_matrices_are_judged() -> None:
    proof = irprune.prune(_products()).report.proof
    assert proof is not None and proof.second_pass is not None
    assert proof.second_pass.judged == 1


def _products() -> onnx.ModelProto:
    numbers = np.random.default_rng(0)
    weights = {"a": (6, 32), "b": (32, 24), "c": (24, 3)}
    held = [
        numpy_helper.from_array(numbers.normal(size=s).astype(np.float32), n)
        for n, s in weights.items()
    ]
    node = onnx.helper.make_node
    nodes = [
        node("MatMul", ["x", "a"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "b"], ["i"]),
        node("Tanh", ["i"], ["t"]),
        node("MatMul", ["t", "c"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "products",
        [info("x", onnx.TensorProto.FLOAT, [4, 6])],
        [info("y", onnx.TensorProto.FLOAT, [4, 3])],
        held,
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


def test_two_uses_of_one_array_that_are_cut_alike() -> None:
    """One of them is then not judged, by the product with a transposed copy; nor is the other,
    since zeros in the array stand in both."""
    model = model_of(
        [
            node("MatMul", "x w", "a"),
            node("Relu", "a", "b"),
            node("Transpose", "w", "t", perm=[1, 0]),
            node("MatMul", "b t", "c"),
            node("MatMul", "c w", "d"),
            node("MatMul", "d v", "y"),
        ],
        [info("x", "n", 8)],
        [info("y", "n", 4)],
        [tensor("w", 8, 16), tensor("v", 16, 4)],
    )
    kept = [2, 3, 5, 6, 7, 8, 11, 15]
    pruned = irprune.prune(model, keep_indices={"w:1": kept, "v:0": kept})
    proof = pruned.report.proof
    assert proof is not None and proof.passed and pruned.report.params.left == 0.5
