"""Tensors of a file that several nodes read: one where they agree, copies where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnx_models import info, model_of, node, proven, shapes, tensor

import irprune


def test_a_vector_shared_by_two_layers_gets_a_copy_where_they_disagree() -> None:
    nodes = [
        node("Conv", "x w1 b", "a"),
        node("Relu", "a", "r"),
        node("Conv", "r w2 b", "c"),
        node("Relu", "c", "d"),
        node("Conv", "d w3", "y"),
    ]
    tensors = [
        tensor("w1", 8, 3, 1, 1),
        tensor("w2", 8, 8, 1, 1),
        tensor("w3", 5, 8, 1, 1),
        tensor("b", 8),
    ]
    model = model_of(nodes, [info("x", 1, 3, 4, 4)], [info("y", 1, 5, 4, 4)], tensors)
    _graph, emitted = proven(model)
    biases = [n.input[2] for n in emitted.graph.node if len(n.input) == 3]
    assert len(set(biases)) == 2 and "b" in biases
    assert all(shapes(emitted)[name] == (4,) for name in biases)


def test_a_vector_shared_by_layers_that_agree_stays_one() -> None:
    nodes = [
        node("Conv", "x w1 b", "a"),
        node("Conv", "x w2 b", "c"),
        node("Add", "a c", "s"),
        node("Conv", "s w3", "y"),
    ]
    tensors = [
        tensor("w1", 8, 3, 1, 1),
        tensor("w2", 8, 3, 1, 1),
        tensor("w3", 5, 8, 1, 1),
        tensor("b", 8),
    ]
    _, emitted = proven(model_of(nodes, [info("x", 1, 3, 4, 4)], [info("y", 1, 5, 4, 4)], tensors))
    assert shapes(emitted) == {
        "w1": (4, 3, 1, 1),
        "w2": (4, 3, 1, 1),
        "w3": (5, 4, 1, 1),
        "b": (4,),
    }


def test_tied_embeddings_stay_tied() -> None:
    nodes = [
        node("Gather", "e ids", "a"),
        node("MatMul", "a w", "c"),
        node("Transpose", "e", "et", perm=[1, 0]),
        node("MatMul", "c et", "y"),
    ]
    tensors = [tensor("e", 20, 8), tensor("w", 8, 8)]
    _, emitted = proven(
        model_of(
            nodes, [info("ids", 1, "t", kind=TensorProto.INT64)], [info("y", 1, "t", 20)], tensors
        ),
        sizes={"t": 7},
    )
    assert shapes(emitted)["e"] == (20, 4) and list(shapes(emitted)) == ["e", "w"]


def twice(*between: onnx.NodeProto) -> onnx.ModelProto:
    """``w`` in front of a ReLU and once more in front of the output; ``v`` between them."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Relu", "a", "b"),
        node("MatMul", "b v", "c"),
        node("Relu", "c", "d"),
        *between,
        node("MatMul", "d w", "y"),
    ]
    return model_of(
        nodes, [info("x", 2, 16)], [info("y", 2, 16)], [tensor("w", 16, 16), tensor("v", 16, 16)]
    )


def test_an_array_whose_uses_disagree_is_copied(tmp_path: Path) -> None:
    pruned = irprune.prune(twice(), ratio=0.5)
    made = onnx.load(pruned.onnx(tmp_path / "m.onnx"))
    onnx.checker.check_model(made, full_check=True)
    sizes = shapes(made)
    first, last = (
        next(n for n in made.graph.node if out in n.output).input[1] for out in ("a", "y")
    )
    assert (
        first == "w"
        and first != last
        and sizes[first] == (16, 8)
        and sizes[last] == (8, 16)
        and sizes["v"] == (8, 8)
    )
    assert (
        pruned.report.params.before == 2 * 16 * 16
        and pruned.report.params.after == 2 * 8 * 16 + 8 * 8
    )
    kept = {
        name: [None if k is None else list(k) for k in dims] for name, dims in pruned.kept.items()
    }
    whole = {t.name: onnx.numpy_helper.to_array(t) for t in twice().graph.initializer}
    now = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    assert np.array_equal(now[first], whole["w"][:, kept["w"][1]]) and np.array_equal(
        now[last], whole["w"][kept["v"][1]]
    )


def test_an_array_whose_uses_agree_stays_one(tmp_path: Path) -> None:
    """A table read by row and as the last matrix: nothing would be gained by two of them."""
    nodes = [
        node("Gather", "w ids", "e"),
        node("MatMul", "e v", "a"),
        node("Relu", "a", "b"),
        node("MatMul", "b u", "c"),
        node("Transpose", "w", "t", perm=[1, 0]),
        node("MatMul", "c t", "y"),
    ]
    model = model_of(
        nodes,
        [info("ids", 5, kind=TensorProto.INT64)],
        [info("y", 5, 20)],
        [tensor("w", 20, 16), tensor("v", 16, 32), tensor("u", 32, 16)],
    )
    pruned = irprune.prune(model, ratio=0.5)
    assert {
        n: s for n, s in shapes(onnx.load(pruned.onnx(tmp_path / "m.onnx"))).items() if n in "wvu"
    } == {"w": (20, 8), "v": (8, 16), "u": (16, 8)}
    assert pruned.report.params.before == 20 * 16 + 2 * 16 * 32
