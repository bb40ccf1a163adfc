"""Local functions of a file: axes pass through them; their calls come out as they came in wherever
nothing in the body changed."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper
from onnx_models import info, int64, model_of, node, proven, shapes, tensor

from irprune.emit.onnx.emitter import emit_onnx
from irprune.errors import IrpruneError
from irprune.frontend.onnx.reader import capture_onnx

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]


def call(name: str, inputs: str, outputs: str) -> onnx.NodeProto:
    made = helper.make_node(
        name, inputs.split(), outputs.split(), name=f"{name} of {inputs} to {outputs}", domain="my"
    )
    made.metadata_props.add(key="who", value="me")
    return made


def function(name: str, inputs: str, outputs: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("my", name, inputs.split(), outputs.split(), list(nodes), OPSETS)


def gated(*functions: onnx.FunctionProto, middle: str) -> onnx.ModelProto:
    """Two matrix products with a call between them."""
    nodes = [node("MatMul", "x w1", "a"), call(middle, "a", "m"), node("MatMul", "m w2", "y")]
    tensors = [tensor("w1", 6, 16), tensor("w2", 16, 4)]
    model = model_of(nodes, [info("x", 2, 6)], [info("y", 2, 4)], tensors, functions=functions)
    model.opset_import.append(helper.make_opsetid("my", 1))
    return model


GATE = function("Gate", "a", "b", node("Sigmoid", "a", "s"), node("Mul", "a s", "b"))
TWICE = function("Twice", "a", "b", call("Gate", "a", "t"), call("Gate", "t", "b"))
FOLD = function(
    "Fold",
    "a",
    "b",
    call("Gate", "a", "g"),
    node("Constant", "", "c", value=int64("c", 2, 4, 4)),
    node("Reshape", "g c", "r"),
    node("Relu", "r", "p"),
    node("Constant", "", "d", value=int64("d", 2, 16)),
    node("Reshape", "p d", "b"),
)
UNUSED = function("Unused", "a", "b", node("Relu", "a", "b"))


@pytest.mark.parametrize("middle", ["Gate", "Twice", "Fold"])
def test_nothing_dropped_gives_the_same_bytes(middle: str) -> None:
    model = gated(GATE, TWICE, FOLD, UNUSED, middle=middle)
    again = emit_onnx(capture_onnx(model))
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("middle", ["Gate", "Twice"])
def test_a_body_without_sizes_is_called_as_before(middle: str) -> None:
    model = gated(GATE, TWICE, UNUSED, middle=middle)
    _, emitted = proven(model)
    assert shapes(emitted) == {"w1": (6, 8), "w2": (8, 4)}
    assert list(emitted.graph.node) == list(model.graph.node)
    assert list(emitted.functions) == list(model.functions)
    assert list(emitted.opset_import) == list(model.opset_import)


def test_a_body_with_a_size_that_changes_is_opened_and_what_it_calls_is_not() -> None:
    model = gated(FOLD, GATE, UNUSED, middle="Fold")
    _, emitted = proven(model)
    assert shapes(emitted)["w1"] == (6, 8)
    kinds = [n.op_type for n in emitted.graph.node]
    assert kinds == [
        "MatMul",
        "Gate",
        "Constant",
        "Reshape",
        "Relu",
        "Constant",
        "Reshape",
        "MatMul",
    ]
    assert [f.name for f in emitted.functions] == ["Gate", "Unused"]


def test_one_call_is_opened_and_another_of_the_same_function_stays() -> None:
    fold = function(
        "Fold",
        "a w",
        "b",
        node("MatMul", "a w", "h"),
        node("Constant", "", "c", value=int64("c", 2, 2, 8)),
        node("Reshape", "h c", "r"),
        node("Relu", "r", "p"),
        node("Constant", "", "d", value=int64("d", 2, 16)),
        node("Reshape", "p d", "b"),
    )
    nodes = [call("Fold", "x w1", "m"), node("MatMul", "m w2", "n"), call("Fold", "n w3", "y")]
    tensors = [tensor("w1", 6, 16), tensor("w2", 16, 6), tensor("w3", 6, 16)]
    model = model_of(nodes, [info("x", 2, 6)], [info("y", 2, 16)], tensors, functions=[fold])
    model.opset_import.append(helper.make_opsetid("my", 1))
    _, emitted = proven(model)
    assert shapes(emitted)["w1"] == (6, 8) and shapes(emitted)["w3"] == (3, 16)
    assert [n.op_type for n in emitted.graph.node][-1] == "Fold" and len(emitted.functions) == 1


def test_types_in_a_function_that_would_be_wrong_open_it() -> None:
    gate = onnx.FunctionProto()
    gate.CopyFrom(GATE)
    gate.value_info.append(info("s", 2, 16))
    model = gated(gate, middle="Gate")
    model.ir_version = 10
    _, emitted = proven(model)
    assert [n.op_type for n in emitted.graph.node] == [
        "MatMul",
        "Sigmoid",
        "Mul",
        "MatMul",
    ] and not emitted.functions


def test_a_function_called_in_a_branch_stays() -> None:
    branch = helper.make_graph([call("Gate", "a", "o")], "b", [], [info("o", 2, 16)])
    other = helper.make_graph([node("Relu", "a", "p")], "c", [], [info("p", 2, 16)])
    nodes = [
        node("MatMul", "x w1", "a"),
        node("If", "c", "m", then_branch=branch, else_branch=other),
        node("MatMul", "m w2", "y"),
    ]
    inputs = [info("x", 2, 6), info("c", kind=onnx.TensorProto.BOOL)]
    model = model_of(
        nodes,
        inputs,
        [info("y", 2, 4)],
        [tensor("w1", 6, 16), tensor("w2", 16, 4)],
        functions=[GATE],
    )
    model.opset_import.append(helper.make_opsetid("my", 1))
    again = emit_onnx(capture_onnx(model))
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


def test_functions_that_call_each_other_in_a_ring_are_refused_or_kept() -> None:
    ping = function("Ping", "a", "b", call("Pong", "a", "b"))
    pong = function("Pong", "a", "b", call("Ping", "a", "b"))
    model = gated(ping, pong, middle="Ping")
    try:
        again = emit_onnx(capture_onnx(model))
    except IrpruneError as refused:
        assert "\n" not in str(refused)
    else:
        assert again == model
