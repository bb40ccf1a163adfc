"""ONNX files as they come: what is nobody's business stays, shared tensors are cut or copied, bad
files get one clear line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import decorated, info, int64, model_of, node, numbers, proven, shapes, tensor
from shared import analysed_file, cut_file

import irprune
from irprune.emit.onnx.emitter import emit_onnx, write_onnx
from irprune.frontend.onnx.file import locations
from irprune.frontend.onnx.reader import capture_onnx
from irprune.ir.group import groups_of
from irprune.ir.selection import Selection
from irprune.passes.slice import Slice
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.validate.onnx_oracle import silenced_onnx
from irprune.validate.onnx_run import run_model

# -- what stays ------------------------------------------------------------------------------------


def test_only_what_pruning_changed_is_edited() -> None:
    model = decorated()
    _, emitted = proven(model)
    assert shapes(emitted) == {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (5, 4, 1, 1), "b2": (5,)}
    restored = onnx.ModelProto()
    restored.CopyFrom(emitted)
    for ours, theirs in zip(restored.graph.initializer, model.graph.initializer, strict=True):
        assert ours.doc_string == theirs.doc_string
        ours.CopyFrom(theirs)
    for v in restored.graph.value_info:
        assert v.type.tensor_type.shape.dim[1].dim_value == 4
        v.type.tensor_type.shape.dim[1].dim_value = 8
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    del expected.graph.node[3]  # nobody reads it, and what it reads has changed
    del expected.graph.value_info[2]
    assert restored.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


def test_a_sparse_initializer_is_cut_and_one_that_is_not_stays() -> None:
    up, down = numbers("up").standard_normal((8, 16)), tensor("w2", 16, 4)
    up[up < 0.5] = 0
    at = np.flatnonzero(up)
    values = numpy_helper.from_array(up.ravel()[at].astype(np.float32), "w1")
    indices = numpy_helper.from_array(at.astype(np.int64), "w1_at")
    nodes = [node("MatMul", "x w1", "a"), node("Relu", "a", "b"), node("MatMul", "b w2", "y")]
    model = model_of(nodes, [info("x", "n", 8)], [info("y", "n", 4)], [down])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8, 16]))
    cut = irprune.prune(model, ratio=0.5)
    assert cut.report.proof is not None and cut.report.proof.second_pass is not None
    made = emit_onnx(cut.cut).graph
    assert not made.sparse_initializer and {t.name for t in made.initializer} == {"w1_pruned", "w2"}
    whole = emit_onnx(irprune.prune(model, ratio=0.0).cut).graph
    assert [t.values.name for t in whole.sparse_initializer] == ["w1"]


def test_the_model_given_is_not_changed() -> None:
    model = decorated()
    before = model.SerializeToString(deterministic=True)
    emit_onnx(cut_file(analysed_file(model)))
    assert model.SerializeToString(deterministic=True) == before


def test_the_same_call_twice_gives_the_same_bytes() -> None:
    model = decorated()
    made = [
        emit_onnx(cut_file(analysed_file(model))).SerializeToString(deterministic=True)
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_initializers_that_are_inputs_too() -> None:
    nodes = [node("Conv", "x w1", "a"), node("Relu", "a", "r"), node("Conv", "r w2", "y")]
    model = model_of(
        nodes,
        [info("x", 1, 3, 8, 8), info("w1", 8, 3, 3, 3), info("w2", 5, 8, 1, 1)],
        [info("y", 1, 5, 6, 6)],
        [tensor("w1", 8, 3, 3, 3), tensor("w2", 5, 8, 1, 1)],
        opset=9,
        ir=3,
    )
    _, emitted = proven(model)
    given = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in emitted.graph.input
    }
    assert given == {"x": [1, 3, 8, 8], "w1": [4, 3, 3, 3], "w2": [5, 4, 1, 1]}


# -- weights that are not plain initializers -------------------------------------------------------


@pytest.mark.parametrize(
    "behind", ["Constant", "Identity", "Cast", "Transpose", "Reshape", "Unsqueeze"]
)
def test_weights_behind_a_node(behind: str) -> None:
    w = numbers("w").standard_normal((8, 6)).astype(np.float32)
    tensors = [tensor("v", 5, 8), tensor("b", 8)]
    first = {
        "Constant": [node("Constant", "", "w", value=numpy_helper.from_array(w, "inside"))],
        "Identity": [node("Identity", "w0", "w")],
        "Cast": [node("Cast", "w0", "w", to=TensorProto.FLOAT)],
        "Transpose": [node("Transpose", "w0", "w", perm=[1, 0])],
        "Reshape": [node("Reshape", "w0 s", "w")],
        "Unsqueeze": [node("Unsqueeze", "w0 s", "u"), node("Squeeze", "u s", "w")],
    }[behind]
    stored = {
        "Cast": w.astype(np.float16),
        "Transpose": np.ascontiguousarray(w.T),
        "Reshape": w.reshape(8, 2, 3),
    }.get(behind, w)
    tensors += [] if behind == "Constant" else [numpy_helper.from_array(stored, "w0")]
    tensors += (
        [numpy_helper.from_array(np.array([8, 6] if behind == "Reshape" else [0], np.int64), "s")]
        if behind in ("Reshape", "Unsqueeze")
        else []
    )
    nodes = [
        *first,
        node("Gemm", "x w b", "a", transB=1),
        node("Relu", "a", "r"),
        node("Gemm", "r v", "y", transB=1),
    ]
    graph, emitted = proven(model_of(nodes, [info("x", "n", 6)], [info("y", "n", 5)], tensors))
    assert any(not g.frozen and g.size == 8 for g in groups_of(graph))
    assert shapes(emitted)["v"] == (5, 4)
    assert len(emitted.graph.node) == len(nodes)


def test_quantised_weights_with_a_scale_per_channel() -> None:
    w = numbers("q1").integers(-100, 100, (8, 3, 3, 3)).astype(np.int8)
    tensors = [
        numpy_helper.from_array(w, "q1"),
        numpy_helper.from_array(numbers("s1").uniform(0.01, 0.02, 8).astype(np.float32), "s1"),
        numpy_helper.from_array(np.zeros(8, np.int8), "z1"),
        tensor("w2", 5, 8, 1, 1),
    ]
    nodes = [
        node("DequantizeLinear", "q1 s1 z1", "w1", axis=0),
        node("Conv", "x w1", "a"),
        node("Relu", "a", "r"),
        node("Conv", "r w2", "y"),
    ]
    _, emitted = proven(model_of(nodes, [info("x", 1, 3, 8, 8)], [info("y", 1, 5, 6, 6)], tensors))
    assert shapes(emitted) == {"q1": (4, 3, 3, 3), "s1": (4,), "z1": (4,), "w2": (5, 4, 1, 1)}


# -- shape arithmetic ------------------------------------------------------------------------------


def test_heads_split_by_computed_shapes() -> None:
    """Batch and length are read at run time; heads and head_dim are constants, one of them kept in
    a shared tensor."""
    nodes = [
        node("MatMul", "x wq", "q"),
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Gather", "s one", "t"),
        node("Unsqueeze", "n axes", "n1"),
        node("Unsqueeze", "t axes", "t1"),
        node("Concat", "n1 t1 heads dim", "target", axis=0),
        node("Reshape", "q target", "q4"),
        node("Transpose", "q4", "qt", perm=[0, 2, 1, 3]),
        node("Transpose", "q4", "kt", perm=[0, 2, 3, 1]),
        node("MatMul", "qt kt", "p"),
        node("Softmax", "p", "m", axis=-1),
        node("MatMul", "m qt", "o"),
        node("Transpose", "o", "o4", perm=[0, 2, 1, 3]),
        node("Concat", "n1 t1 width", "flat", axis=0),
        node("Reshape", "o4 flat", "z"),
        node("MatMul", "z wo", "y"),
    ]
    tensors = [
        tensor("wq", 6, 24),
        tensor("wo", 24, 6),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array(1), "one"),
        int64("axes", 0),
        int64("heads", 4),
        int64("dim", 6),
        int64("width", 24),
    ]
    model = model_of(nodes, [info("x", "n", "t", 6)], [info("y", "n", "t", 6)], tensors)
    graph, emitted = proven(model, sizes={"n": 2, "t": 5})
    assert shapes(emitted)["wq"] == (6, 12)
    x = random_inputs(graph, {"n": 3, "t": 9})
    assert relative_error(run_model(emitted, x), silenced_onnx(graph, graph.kept, x)) < 1e-4


def test_a_number_computed_from_a_size_stays_what_it_was() -> None:
    """The scale 1/sqrt(head_dim), read from the shape of what shrinks, must not follow it."""
    nodes = [
        node("MatMul", "x w", "q"),
        node("Shape", "q", "s", start=2, end=3),
        node("Cast", "s", "f", to=TensorProto.FLOAT),
        node("Sqrt", "f", "r"),
        node("Div", "q r", "d"),
        node("MatMul", "d v", "y"),
    ]
    model = model_of(
        nodes, [info("x", 1, 4, 6)], [info("y", 1, 4, 3)], [tensor("w", 6, 16), tensor("v", 16, 3)]
    )
    proven(model)


def test_a_slice_and_a_split_move_with_what_is_dropped() -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Slice", "h from to last", "a"),
        node("Split", "h", "p q", axis=-1),
        node("Mul", "p q", "m"),
        node("MatMul", "a v", "y1"),
        node("MatMul", "m u", "y2"),
        node("Add", "y1 y2", "y"),
    ]
    tensors = [
        tensor("w", 6, 16),
        tensor("v", 5, 3),
        tensor("u", 8, 3),
        int64("from", 4),
        int64("to", 9),
        int64("last", -1),
    ]
    _, emitted = proven(model_of(nodes, [info("x", 2, 6)], [info("y", 2, 3)], tensors))
    assert shapes(emitted)["w"][1] < 16


@pytest.mark.parametrize("length", [8, "n"], ids=["static", "dynamic"])
def test_bounds_of_a_slice_keep_their_element_type(length: int | str) -> None:
    """Bounds in int32, as tf2onnx writes them: over a cut dimension they are written anew, and all
    four inputs of Slice must have one type."""
    nodes = [
        node("Conv", "x w1", "h", kernel_shape=[1]),
        node("Shape", "h", "s"),
        node("Cast", "s", "end", to=TensorProto.INT32),
        node("Slice", "h from end dims unit", "a"),
        node("Slice", "a from last dims unit", "b"),
        node("Conv", "b w2", "y", kernel_shape=[1]),
    ]
    tensors = [tensor("w1", 16, 3, 1), tensor("w2", 5, 16, 1)]
    for name, values in (
        ("from", [0, 0, 0]),
        ("last", [10**9, 16, 10**9]),
        ("dims", [0, 1, 2]),
        ("unit", [1, 1, 1]),
    ):
        tensors.append(numpy_helper.from_array(np.array(values, np.int32), name))
    model = model_of(nodes, [info("x", 2, 3, length)], [info("y", 2, 5, length)], tensors)
    _, emitted = proven(model)
    assert shapes(emitted)["w2"][1] == 8
    types = {t.name: t.data_type for t in emitted.graph.initializer}
    second = next(n for n in emitted.graph.node if n.output[0] == "b")
    assert {types[name] for name in second.input[1:]} == {TensorProto.INT32}


# -- files -----------------------------------------------------------------------------------------


def test_external_data_stays_outside_and_is_cut(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    model = decorated()
    outside = onnx.ModelProto()
    outside.CopyFrom(model)
    onnx.save(
        outside, source / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0
    )
    graph = analysed_file(source / "m.onnx")
    out = write_onnx(cut_file(graph), tmp_path / "out.onnx")
    (beside,) = locations(out)
    assert re.fullmatch(r"out\.onnx\.[0-9a-f]{16}\.data", beside)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out.onnx", beside}
    x = random_inputs(graph)
    inside = emit_onnx(cut_file(analysed_file(model)))
    assert relative_error(run_model(out, x), run_model(inside, x)) == 0
    onnx.checker.check_model(str(out), full_check=True)


# -- what is not understood ------------------------------------------------------------------------


def test_a_custom_operator_is_kept_and_freezes() -> None:
    nodes = [
        node("Conv", "x w1", "a"),
        helper.make_node("Mystery", ["a"], ["m"], domain="my.domain", level=3, name="odd"),
        node("Conv", "m w2", "c"),
        node("Relu", "c", "r"),
        node("Conv", "r w3", "y"),
    ]
    tensors = [tensor("w1", 8, 3, 1, 1), tensor("w2", 8, 8, 1, 1), tensor("w3", 5, 8, 1, 1)]
    model = model_of(nodes, [info("x", 1, 3, 4, 4)], [info("y", 1, 5, 4, 4)], tensors)
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    model.graph.value_info.append(info("m", 1, 8, 4, 4))
    graph = analysed_file(model)
    frozen = {g.name: g.frozen for g in groups_of(graph) if g.frozen}
    assert "no rule for my.domain::Mystery at odd" in frozen.values()
    emitted = emit_onnx(cut_file(graph))
    assert shapes(emitted) == {"w1": (8, 3, 1, 1), "w2": (4, 8, 1, 1), "w3": (5, 4, 1, 1)}
    assert emitted.graph.node[1] == model.graph.node[1]


def test_values_that_a_subgraph_reads_are_frozen() -> None:
    body = helper.make_graph([node("Relu", "a", "inner")], "then", [], [info("inner", 1, 8, 4, 4)])
    other = helper.make_graph(
        [node("Neg", "a", "inner2")], "else", [], [info("inner2", 1, 8, 4, 4)]
    )
    nodes = [
        node("Conv", "x w1", "a"),
        helper.make_node("If", ["flag"], ["m"], then_branch=body, else_branch=other, name="choice"),
        node("Conv", "m w2", "c"),
        node("Relu", "c", "r"),
        node("Conv", "r w3", "y"),
    ]
    tensors = [tensor("w1", 8, 3, 1, 1), tensor("w2", 8, 8, 1, 1), tensor("w3", 5, 8, 1, 1)]
    _, emitted = proven(
        model_of(
            nodes,
            [info("x", 1, 3, 4, 4), info("flag", kind=TensorProto.BOOL)],
            [info("y", 1, 5, 4, 4)],
            tensors,
        )
    )
    assert shapes(emitted) == {"w1": (8, 3, 1, 1), "w2": (4, 8, 1, 1), "w3": (5, 4, 1, 1)}


def test_local_functions_let_axes_pass() -> None:
    function = helper.make_function(
        "my.domain",
        "Gate",
        ["a"],
        ["b"],
        [node("Sigmoid", "a", "s"), node("Mul", "a s", "b")],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        node("Conv", "x w1", "a"),
        helper.make_node("Gate", ["a"], ["m"], domain="my.domain"),
        node("Conv", "m w2", "y"),
    ]
    model = model_of(
        nodes,
        [info("x", 1, 3, 4, 4)],
        [info("y", 1, 5, 4, 4)],
        [tensor("w1", 8, 3, 1, 1), tensor("w2", 5, 8, 1, 1)],
        functions=[function],
    )
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    _, emitted = proven(model)
    assert shapes(emitted) == {"w1": (4, 3, 1, 1), "w2": (5, 4, 1, 1)}


@pytest.mark.parametrize("dtype", [np.float16])
def test_half_precision_stays(dtype: type) -> None:
    tensors = [tensor("w1", 6, 16, dtype=dtype), tensor("w2", 16, 4, dtype=dtype)]
    model = model_of(
        [node("MatMul", "x w1", "a"), node("Relu", "a", "r"), node("MatMul", "r w2", "y")],
        [info("x", 2, 6, kind=TensorProto.FLOAT16)],
        [info("y", 2, 4, kind=TensorProto.FLOAT16)],
        tensors,
    )
    graph = analysed_file(model)
    emitted = emit_onnx(cut_file(graph))
    x = random_inputs(graph)
    assert shapes(emitted) == {"w1": (6, 8), "w2": (8, 4)}
    assert {t.data_type for t in emitted.graph.initializer} == {TensorProto.FLOAT16}
    assert relative_error(run_model(emitted, x), silenced_onnx(graph, graph.kept, x)) < 4e-3


def test_bfloat16_weights_are_cut() -> None:
    array = (
        numbers("w1")
        .standard_normal((6, 16))
        .astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    )
    tensors = [numpy_helper.from_array(array, "w1"), tensor("w2", 16, 4)]
    nodes = [
        node("Cast", "w1", "w", to=TensorProto.FLOAT),
        node("MatMul", "x w", "a"),
        node("Relu", "a", "r"),
        node("MatMul", "r w2", "y"),
    ]
    _, emitted = proven(model_of(nodes, [info("x", 2, 6)], [info("y", 2, 4)], tensors))
    assert emitted.graph.initializer[0].data_type == TensorProto.BFLOAT16 and shapes(emitted)[
        "w1"
    ] == (6, 8)


# -- fused operators -------------------------------------------------------------------------------


def fused(kind: str) -> onnx.ModelProto:
    x, tensors = info("x", 2, 5, 12), [tensor("wo", 24, 3)]
    gamma, beta = tensor("g", 24), tensor("e", 24)
    lead = [node("MatMul", "x w", "h")]
    tensors += [tensor("w", 12, 24)]
    if kind == "SkipLayerNormalization":
        tensors += [gamma, beta, tensor("ws", 12, 24)]
        body = [node("MatMul", "x ws", "k"), node(kind, "h k g e", "o", domain="com.microsoft")]
    elif kind == "Attention":
        tensors += [tensor("wp", 24, 72), tensor("bp", 72)]
        body = [node(kind, "h wp bp", "o", domain="com.microsoft", num_heads=4)]
    elif kind == "MultiHeadAttention":
        tensors += [tensor("wk", 12, 24), tensor("wv", 12, 24)]
        body = [
            node("MatMul", "x wk", "k"),
            node("MatMul", "x wv", "v"),
            node(kind, "h k v", "o", domain="com.microsoft", num_heads=4),
        ]
    else:
        body = [node(kind, "h", "o", domain="com.microsoft")]
    return model_of([*lead, *body, node("MatMul", "o wo", "y")], [x], [info("y", 2, 5, 3)], tensors)


@pytest.mark.parametrize(
    "kind",
    ["SkipLayerNormalization", "Attention", "MultiHeadAttention", "Gelu", "QuickGelu", "FastGelu"],
)
def test_fused_operators_of_onnxruntime(kind: str) -> None:
    model = fused(kind)
    graph = analysed_file(model)
    emitted = emit_onnx(cut_file(graph))
    x = random_inputs(graph)
    assert relative_error(run_model(emitted, x), silenced_onnx(graph, graph.kept, x)) < 1e-4
    assert shapes(emitted)["wo"][0] < 24


def test_own_choice_is_kept_as_it_is() -> None:
    """Indices chosen by hand are those that the file keeps."""
    model = decorated()
    graph = analysed_file(model)
    group = next(g for g in groups_of(graph) if not g.frozen)
    graph.kept = Selection({group.axis: [1, 4, 6]})
    small = graph.copy()
    Slice().run(small)
    emitted = emit_onnx(small)
    whole = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    ours = {t.name: numpy_helper.to_array(t) for t in emitted.graph.initializer}
    assert np.array_equal(ours["w1"], whole["w1"][[1, 4, 6]]) and np.array_equal(
        ours["w2"], whole["w2"][:, [1, 4, 6]]
    )


def test_start_is_light() -> None:
    names = "irprune.frontend.onnx.reader, irprune.emit.onnx.emitter, irprune.validate.onnx_oracle"
    code = f"import sys, {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_part_of_a_split_that_nobody_reads_is_a_part_all_the_same() -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Split", "h", "p q r", axis=-1),
        node("Mul", "p q", "m"),
        node("MatMul", "m v", "y"),
    ]
    _, emitted = proven(
        model_of(
            nodes, [info("x", 2, 6)], [info("y", 2, 3)], [tensor("w", 6, 24), tensor("v", 8, 3)]
        )
    )
    assert shapes(emitted)["v"] == (4, 3) and shapes(emitted)["w"][1] < 24


def test_half_of_a_size_taken_out_of_a_dynamic_shape_is_a_whole_number() -> None:
    """Channels split in two by arithmetic on a shape whose batch is symbolic: 9 // 2 is 4, an
    integer."""
    nodes = [
        node("Conv", "x w1", "h"),
        node("Shape", "h", "s"),
        node("Gather", "s one", "c", axis=0),
        node("Add", "c unit", "c1"),
        node("Div", "c1 two", "half"),
        node("Slice", "h zero half unit", "a"),
        node("Slice", "h half c unit", "b"),
        node("Add", "a b", "m"),
        node("Conv", "m w2", "y"),
    ]
    tensors = [
        tensor("w1", 8, 3, 1, 1),
        tensor("w2", 5, 4, 1, 1),
        int64("one", 1),
        int64("unit", 1),
        int64("two", 2),
        int64("zero", 0),
    ]
    model = model_of(nodes, [info("x", "n", 3, 4, 4)], [info("y", "n", 5, 4, 4)], tensors)
    graph = capture_onnx(model)
    assert [n.out.shape[1] for n in graph.nodes if n.op == "slice"] == [4, 4]
    _, emitted = proven(model)
    assert shapes(emitted)["w2"] == (5, 2, 1, 1)


def test_a_tensor_of_which_only_the_shape_is_read_follows_no_wrong_size() -> None:
    """Heads are merged by a Reshape whose result is used for its shape alone, as onnxsim writes
    it."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Shape", "h", "hs"),
        node("Gather", "hs first", "batch", axis=0),
        node("Concat", "batch heads dim", "apart", axis=0),
        node("Reshape", "h apart", "h3"),
        node("Relu", "h3", "r3"),
        node("Concat", "batch width", "flat", axis=0),
        node("Reshape", "r3 flat", "only_its_shape"),
        node("Shape", "only_its_shape", "s"),
        node("Gather", "s first", "rows", axis=0),
        node("Concat", "rows minus", "target", axis=0),
        node("Reshape", "r3 target", "z"),
        node("MatMul", "z v", "y"),
    ]
    tensors = [
        tensor("w", 6, 24),
        tensor("v", 24, 3),
        int64("first", 0),
        int64("heads", 4),
        int64("dim", 6),
        int64("width", 24),
    ]
    model = model_of(
        nodes, [info("x", "n", 6)], [info("y", "n", 3)], [*tensors, int64("minus", -1)]
    )
    _, emitted = proven(model)
    assert shapes(emitted)["w"] == (6, 12)
