"""Whole small models around operators of ONNX that need care: pruned with proof, and the same in
torch."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import tensor as random_tensor
from shared import analysed_file, cut_file

import irprune
from irprune.emit.bridge.onnx_module import module_from_onnx
from irprune.emit.onnx.emitter import emit_onnx
from irprune.frontend.onnx.reader import capture_onnx
from irprune.ir.graph import Graph
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.validate.onnx_proof import prove_onnx
from irprune.validate.onnx_run import run_model

FLOAT = TensorProto.FLOAT
node = helper.make_node


tensor = partial(random_tensor, scale=0.4)


def held(name: str, values: object, kind: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def model_of(
    nodes: list[onnx.NodeProto],
    x: list[int],
    y: list[int],
    tensors: list[onnx.TensorProto],
    opset: int = 17,
) -> onnx.ModelProto:
    given, made = (
        helper.make_tensor_value_info("x", FLOAT, x),
        helper.make_tensor_value_info("y", FLOAT, y),
    )
    graph = helper.make_graph(nodes, "g", [given], [made], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def image(
    middle: list[onnx.NodeProto],
    tensors: list[onnx.TensorProto],
    channels: int = 16,
    opset: int = 17,
    size: int = 8,
) -> onnx.ModelProto:
    """A convolution to 16 channels, ``middle`` from ``a`` to ``b``, a convolution of
    ``channels``."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        *middle,
        node("Conv", ["b", "w2"], ["y"]),
    ]
    tensors = [
        tensor("w1", 16, 3, 3, 3),
        tensor("b1", 16),
        tensor("w2", 5, channels, 1, 1),
        *tensors,
    ]
    return model_of(nodes, [2, 3, 8, 8], [2, 5, size, size], tensors, opset)


def text(
    middle: list[onnx.NodeProto], tensors: list[onnx.TensorProto], width: int = 24, opset: int = 17
) -> onnx.ModelProto:
    """A matrix to 24 features, ``middle`` from ``a`` to ``b``, a matrix of ``width`` rows."""
    nodes = [node("MatMul", ["x", "w1"], ["a"]), *middle, node("MatMul", ["b", "w2"], ["y"])]
    return model_of(
        nodes, [2, 5, 6], [2, 5, 3], [tensor("w1", 6, 24), tensor("w2", width, 3), *tensors], opset
    )


def attention(rotated: bool, flat: bool) -> onnx.ModelProto:
    """Attention of opset 23 with four heads in one dimension, or in two with two key heads for
    them."""
    groups = 4 if flat else 2
    nodes = [
        node("MatMul", ["x", "wq"], ["q"]),
        node("MatMul", ["x", "wk"], ["k"]),
        node("MatMul", ["x", "wv"], ["v"]),
    ]
    tensors = [
        tensor("wq", 6, 32),
        tensor("wk", 6, 8 * groups),
        tensor("wv", 6, 8 * groups),
        tensor("w2", 32, 3),
    ]
    if not flat:
        for n, h in (("q", 4), ("k", groups), ("v", groups)):
            tensors.append(held(f"shape_{n}", [2, 5, h, 8]))
            nodes += [
                node("Reshape", [n, f"shape_{n}"], [f"{n}4"]),
                node("Transpose", [f"{n}4"], [f"{n}h"], perm=[0, 2, 1, 3]),
            ]
    names = ["q", "k", "v"] if flat else ["qh", "kh", "vh"]
    if rotated:
        tensors += [tensor("cos", 5, 4), tensor("sin", 5, 4), held("ids", [[0, 1, 2, 3, 4]] * 2)]
        for i, heads in ((0, 4), (1, groups)):
            more = {"num_heads": heads} if flat else {}
            nodes.append(
                node("RotaryEmbedding", [names[i], "cos", "sin", "ids"], [f"{names[i]}r"], **more)
            )
            names[i] = f"{names[i]}r"
    nodes.append(
        node(
            "Attention",
            names,
            ["o"],
            is_causal=1,
            **({"q_num_heads": 4, "kv_num_heads": groups} if flat else {}),
        )
    )
    if not flat:
        tensors.append(held("back", [2, 5, 32]))
        nodes += [
            node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
            node("Reshape", ["ot", "back"], ["of"]),
        ]
    nodes.append(node("MatMul", ["o" if flat else "of", "w2"], ["y"]))
    return model_of(nodes, [2, 5, 6], [2, 5, 3], tensors, 23)


def recurrent(kind: str, both: bool = False, **attrs: object) -> onnx.ModelProto:
    gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if both else 1
    if kind == "GRU":
        attrs["linear_before_reset"] = 1
    if both:
        attrs["direction"] = "bidirectional"
    tensors = [
        tensor("W", ways, gates * 10, 24),
        tensor("R", ways, gates * 10, 10),
        tensor("B", ways, 2 * gates * 10),
    ]
    many = [
        node("Transpose", ["a"], ["t"], perm=[1, 0, 2]),
        node(kind, ["t", "W", "R", "B"], ["s"], hidden_size=10, **attrs),
    ]
    many += [
        node("Transpose", ["s"], ["s2"], perm=[2, 0, 1, 3]),
        node("Reshape", ["s2", "joined"], ["b"]),
    ]
    return text(many, [*tensors, held("joined", [2, 5, -1])], width=ways * 10)


MODELS = {
    "LRN": image(
        [
            node("LRN", ["a"], ["n"], size=3),
            node("Conv", ["n", "w3"], ["c"]),
            node("Relu", ["c"], ["b"]),
        ],
        [tensor("w3", 16, 16, 1, 1)],
    ),
    "InstanceNormalization": image(
        [node("InstanceNormalization", ["a", "g", "e"], ["b"])], [tensor("g", 16), tensor("e", 16)]
    ),
    "GroupNormalization": image(
        [node("GroupNormalization", ["a", "g", "e"], ["b"], num_groups=4)],
        [tensor("g", 16), tensor("e", 16)],
        opset=21,
    ),
    "ConvTranspose": image(
        [node("ConvTranspose", ["a", "up", "ub"], ["b"], strides=[2, 2])],
        [tensor("up", 16, 12, 2, 2), tensor("ub", 12)],
        12,
        size=16,
    ),
    "ConvTranspose in groups": image(
        [node("ConvTranspose", ["a", "up"], ["b"], strides=[2, 2], group=4)],
        [tensor("up", 16, 3, 2, 2)],
        12,
        size=16,
    ),
    "Resize": image(
        [node("Resize", ["a", "", "", "sizes"], ["b"], mode="linear")],
        [held("sizes", [2, 16, 12, 12])],
        size=12,
    ),
    "ScatterND": image(
        [
            node("Transpose", ["a"], ["t"], perm=[2, 3, 0, 1]),
            node("ScatterND", ["t", "at", "new"], ["u"]),
            node("Transpose", ["u"], ["b"], perm=[2, 3, 0, 1]),
        ],
        [held("at", [[0, 1], [3, 4]]), tensor("new", 2, 2, 16)],
    ),
    "Einsum": text(
        [node("Einsum", ["a", "core"], ["b"], equation="bsi,ijk->bsj")],
        [tensor("core", 24, 12, 4)],
        12,
    ),
    "Attention": attention(False, False),
    "Attention in one dimension": attention(False, True),
    "RotaryEmbedding": attention(True, False),
    "RotaryEmbedding in one dimension": attention(True, True),
    "LSTM": recurrent("LSTM"),
    "LSTM both ways": recurrent("LSTM", both=True),
    "GRU": recurrent("GRU"),
    "GRU both ways": recurrent("GRU", both=True),
    "RNN": recurrent("RNN", activations=["Relu"]),
}
LEFT = {
    "LRN": 0.8,  # neighbouring channels stay
    "Attention": 0.6,
    "Attention in one dimension": 0.55,
    "RotaryEmbedding": 0.6,
    "RotaryEmbedding in one dimension": 0.55,
    "ConvTranspose in groups": 0.6,
}


def parameters(graph: Graph) -> int:
    return sum(int(np.prod(w.shape)) for w in graph.weights.values() if w.trainable)


def in_torch(module: torch.nn.Module, graph: Graph, x: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        return [module(*(torch.from_numpy(x[v.name]) for v in graph.inputs)).numpy()]


@pytest.mark.parametrize("name", MODELS)
def test_small_models_are_proven(name: str) -> None:
    model = MODELS[name]
    onnx.checker.check_model(model, full_check=True)
    graph = analysed_file(model)
    small = cut_file(graph)
    emitted = emit_onnx(small)
    onnx.checker.check_model(emitted, full_check=True)
    proof = prove_onnx(graph, small)
    assert proof.max_error < 1e-4 and not proof.vacuous
    x = random_inputs(graph)
    assert relative_error(run_model(model, x), run_model(emitted, x)) > 1e-3, (
        "the cut changes nothing, so the proof says nothing"
    )
    assert parameters(small) <= LEFT.get(name, 0.52) * parameters(graph)
    assert relative_error(in_torch(module_from_onnx(small), small, x), run_model(emitted, x)) < 1e-5


@pytest.mark.parametrize(
    ("name", "kind"), [(n, n.split()[0]) for n in MODELS if n.split()[0] in ("LSTM", "GRU", "RNN")]
)
def test_recurrent_nodes_are_torchs_layers(name: str, kind: str) -> None:
    graph = capture_onnx(MODELS[name])
    module = module_from_onnx(graph)
    layers = [m for m in module.modules() if isinstance(m, getattr(torch.nn, kind))]
    assert len(layers) == 1 and layers[0].bidirectional == ("both" in name)
    assert not {"W", "R", "B"} & set(module.state_dict())
    x = random_inputs(graph)
    assert relative_error(in_torch(module, graph, x), run_model(MODELS[name], x)) < 1e-5
    before = layers[0].weight_hh_l0.detach().clone()
    module.train()
    module(torch.from_numpy(x["x"])).square().mean().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert not torch.equal(before, layers[0].weight_hh_l0)


@pytest.mark.parametrize(
    "attrs", [{"clip": 0.3}, {"activations": ["Tanh"] * 3}, {"direction": "reverse"}]
)
def test_what_torch_has_no_layer_for_is_computed_all_the_same(attrs: dict[str, object]) -> None:
    model = recurrent("LSTM", **attrs)
    graph = capture_onnx(model)
    module = module_from_onnx(graph)
    assert not any(isinstance(m, torch.nn.LSTM) for m in module.modules())
    x = random_inputs(graph)
    assert relative_error(in_torch(module, graph, x), run_model(model, x)) < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_recurrent_layer_exports_again(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    graph = capture_onnx(MODELS["LSTM both ways"])
    x = random_inputs(graph)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        torch.onnx.export(
            module_from_onnx(graph),
            (torch.from_numpy(x["x"]),),
            str(tmp_path / "again.onnx"),
            dynamo=True,
            external_data=False,
        )
    again = onnx.load(tmp_path / "again.onnx")
    assert (
        relative_error(
            run_model(again, {again.graph.input[0].name: x["x"]}),
            run_model(MODELS["LSTM both ways"], x),
        )
        < 1e-5
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_file_holds_what_was_trained(name: str, tmp_path: Path) -> None:
    pruned = irprune.prune(MODELS[name], ratio=0.5, proof=False)
    untrained = pruned.onnx(tmp_path / "before.onnx").read_bytes()
    module, x = pruned.module, random_inputs(pruned.graph)
    assert pruned.onnx(tmp_path / "same.onnx").read_bytes() == untrained
    module.train()
    module(*(torch.from_numpy(x[v.name]) for v in pruned.graph.inputs)).square().mean().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    module.eval()
    path = pruned.onnx(tmp_path / "after.onnx")
    assert relative_error(in_torch(module, pruned.graph, x), run_model(path, x)) < 1e-5
    assert path.read_bytes() != untrained
    assert shapes_of(path) == shapes_of(tmp_path / "before.onnx")


def shapes_of(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    return [(t.name, tuple(t.dims)) for t in onnx.load(path).graph.initializer]
