"""Opsets 7 to 23: the same network in the spelling of each, captured, pruned, written in that opset
and proven."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, version_converter
from onnx_models import info, model_of, node, proven, shapes, tensor

OPSETS = range(7, 24)


class Spelling:
    """Nodes whose attributes became inputs at some opset."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self, kind: str, inputs: str, outputs: str, since: dict[str, int], **attrs: object
    ) -> onnx.NodeProto:
        """``since`` says for each attribute, in the order of the inputs, from which opset on it is
        an input."""
        names = inputs.split()
        for name, opset in since.items():
            if self.opset >= opset and name in attrs:
                value = np.array(attrs.pop(name))
                names.append(
                    self.constant(value.astype(np.float32 if value.dtype.kind == "f" else np.int64))
                )
        return helper.make_node(kind, names, outputs.split(), **attrs)


def network(opset: int) -> onnx.ModelProto:
    """Convolutions with batch norm, a channel split, a slice of channels, padding, upsampling,
    squeeze and unsqueeze, means, heads."""
    s = Spelling(opset)
    s.tensors += [
        tensor("w1", 16, 3, 3, 3),
        tensor("w2", 16, 8, 3, 3),
        tensor("w3", 12, 16),
        tensor("b3", 12),
        tensor("w4", 12, 5),
    ]
    s.tensors += [tensor(name, 16) for name in ("scale", "shift", "mean")]
    s.tensors.append(numpy_helper.from_array(np.linspace(0.5, 1.5, 16, dtype=np.float32), "var"))
    resized = (
        s.node("Upsample", "e", "f", {"scales": 9}, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
        if opset < 10
        else s.node("Resize", "e", "f", {"scales": 10}, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    )
    if opset >= 11:  # the second input is a region of interest, which only opset 13 may leave out
        resized.input.insert(1, "" if opset >= 13 else s.constant(np.zeros(0, np.float32)))
    more = {"num_outputs": 2} if opset >= 18 else {}
    nodes = [
        s.node("Pad", "x", "p", {"pads": 11, "value": 11}, pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        node("Conv", "p w1", "a", kernel_shape=[3, 3]),
        node("BatchNormalization", "a scale shift mean var", "b"),
        s.node("Clip", "b", "c", {"min": 11, "max": 11}, min=-2.0, max=2.0)
        if opset < 11
        else helper.make_node(
            "Clip", ["b", s.constant(np.float32(-2)), s.constant(np.float32(2))], ["c"]
        ),
        helper.make_node("Split", ["c"], ["d1", "d2"], axis=1, **more),
        node("Mul", "d1 d2", "e"),
        resized,
        node("Conv", "f w2", "g", kernel_shape=[3, 3]),
        s.node(
            "Slice",
            "c",
            "h",
            {"starts": 10, "ends": 10, "axes": 10},
            starts=[4],
            ends=[16],
            axes=[1],
        ),
        s.node("ReduceMean", "h", "i", {"axes": 18}, axes=[2, 3], keepdims=0),
        node("GlobalAveragePool", "g", "j"),
        s.node("Squeeze", "j", "k", {"axes": 13}, axes=[2, 3]),
        node("Gemm", "k w3 b3", "l", transB=1),
        node("Add", "l i", "m"),
        s.node("Unsqueeze", "m", "n", {"axes": 13}, axes=[1]),
        helper.make_node("Softmax", ["n"], ["o"], axis=2),
        node("MatMul", "o w4", "y"),
    ]
    return model_of(
        nodes,
        [info("x", 2, 3, 8, 8)],
        [info("y", 2, 1, 5)],
        s.tensors,
        opset=opset,
        ir=3 if opset < 9 else 8,
    )


def with_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """IR 3 wants every initializer as an input too."""
    if model.ir_version < 4:
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
            for t in model.graph.initializer
        )
    return model


@pytest.mark.parametrize("opset", OPSETS)
def test_a_network_in_the_spelling_of_its_opset(opset: int) -> None:
    model = with_inputs(network(opset))
    onnx.checker.check_model(model, full_check=True)
    _, emitted = proven(model)
    assert [(o.domain, o.version) for o in emitted.opset_import] == [
        (o.domain, o.version) for o in model.opset_import
    ]
    assert emitted.ir_version == model.ir_version
    found = shapes(emitted)
    assert (
        found["w1"][0] < 16 and found["w2"][0] == 8 and found["w3"][1] == 8 and found["w4"][0] < 12
    )
    assert [n.op_type for n in emitted.graph.node] == [n.op_type for n in model.graph.node]


@pytest.mark.parametrize("opset", OPSETS)
def test_a_network_converted_to_the_opset(opset: int) -> None:
    """The converter of the onnx package spells it in its own way: a dense network with a residual
    connection and a classifier."""
    nodes = [
        node("Conv", "x w1 b1", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Conv", "b w2", "c"),
        node("Add", "b c", "d"),
        node("MaxPool", "d", "e", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "e", "f"),
        node("Flatten", "f", "g"),
        node("Gemm", "g w3 b3", "y", transB=1),
    ]
    tensors = [
        tensor("w1", 16, 3, 3, 3),
        tensor("b1", 16),
        tensor("w2", 16, 16, 1, 1),
        tensor("w3", 5, 16),
        tensor("b3", 5),
    ]
    model = with_inputs(
        model_of(nodes, [info("x", 2, 3, 8, 8)], [info("y", 2, 5)], tensors, opset=9, ir=3)
    )
    del model.opset_import[1:]  # the converter knows ONNX's own domain
    converted = version_converter.convert_version(model, opset)
    assert converted.opset_import[0].version == opset
    _, emitted = proven(converted)
    found = shapes(emitted)
    assert {found[k] for k in ("w1", "b1", "w2", "w3")} == {
        (8, 3, 3, 3),
        (8,),
        (8, 8, 1, 1),
        (5, 8),
    }
