"""One node of a file that is read as several steps: the steps are ordinary operators, and what is
written back is the one node."""

from __future__ import annotations

import onnx
import pytest
from onnx_models import info, model_of, node, proven, shapes, tensor

from irprune.analysis.layers import layers
from irprune.errors import IrpruneError
from irprune.frontend.onnx.reader import capture_onnx
from irprune.frontend.onnx.source import NodePlace

SAME = {"pads": [0, 0, 1, 1], "strides": [2, 2], "kernel_shape": [3, 3]}


def chain(kind: str, domain: str = "", **attrs: object) -> onnx.ModelProto:
    """Two convolutions of ``kind`` over an image of 16 × 16, and a matrix behind them."""
    nodes = [
        node(kind, "x w1 b1", "a", name="first", domain=domain, **attrs),
        node(kind, "a w2 b2", "b", name="second", domain=domain, **attrs),
        node("GlobalAveragePool", "b", "p", name="pool"),
        node("Flatten", "p", "f", name="flat"),
        node("Gemm", "f w3", "y", name="head", transB=1),
    ]
    tensors = [tensor("w1", 8, 3, 3, 3), tensor("b1", 8), tensor("w2", 8, 8, 3, 3)]
    tensors += [tensor("b2", 8), tensor("w3", 5, 8)]
    return model_of(nodes, [info("x", 2, 3, 16, 16)], [info("y", 2, 5)], tensors)


MODELS = {
    "unequal pads": chain("Conv", **SAME),
    "SAME": chain("Conv", auto_pad="SAME_UPPER", strides=[2, 2]),
    "an activation": chain("FusedConv", "com.microsoft", activation="Relu", **SAME),
    "an activation of three steps": chain(
        "FusedConv",
        "com.microsoft",
        activation="HardSigmoid",
        activation_params=[0.3, 0.4],
        pads=[1, 1, 1, 1],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_convolutions_are_layers_and_stay_one_node(name: str) -> None:
    model = MODELS[name]
    graph, emitted = proven(model)
    assert [layer.weight.name for layer in layers(graph)] == ["w1", "w2", "w3"]
    assert {n.op for n in graph.nodes} & {"conv"}
    for before, after in zip(model.graph.node, emitted.graph.node, strict=True):
        assert before == after, "only weights change"
    assert shapes(emitted)["w2"] == (4, 4, 3, 3)


def test_steps_know_their_place() -> None:
    steps = [n for n in capture_onnx(MODELS["unequal pads"]).nodes if n.origin.scope == "first"]
    places = [n.origin.raw for n in steps]
    assert [n.op for n in steps] == ["pad", "conv"]
    assert all(isinstance(p, NodePlace) and p.index == 0 and p.steps == 2 for p in places)
    assert [p.operands for p in places] == [(0,), (None, 1, 2)]


def test_an_activation_that_no_step_says_is_left_alone() -> None:
    odd = chain("FusedConv", "com.microsoft", activation="Elu", pads=[1, 1, 1, 1])
    assert capture_onnx(odd).nodes[0].op == "opaque"


def test_kernels_for_other_channels_are_refused() -> None:
    wrong = chain("FusedConv", "com.microsoft", activation="Relu", group=2, **SAME)
    with pytest.raises(IrpruneError, match="channels"):
        capture_onnx(wrong)
