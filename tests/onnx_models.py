"""Small ONNX models, said in few words, and their proof."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from shared import analysed_file, cut_file

from irprune.emit.onnx.emitter import emit_onnx
from irprune.ir.graph import Graph
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.validate.onnx_oracle import silenced_onnx
from irprune.validate.onnx_run import run_model


def numbers(name: str) -> np.random.Generator:
    """Random numbers that depend on ``name`` alone, so that tests do not depend on their order."""
    return np.random.default_rng(crc32(name.encode()))


def tensor(
    name: str, *shape: int, dtype: type = np.float32, scale: float = 1.0
) -> onnx.TensorProto:
    made = numbers(name).standard_normal(shape) * scale
    return numpy_helper.from_array(made.astype(dtype), name)


def info(name: str, *shape: int | str | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def int64(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tensors: list[onnx.TensorProto],
    opset: int = 17,
    ir: int = 8,
    **rest: object,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=ir,
        **rest,
    )


def node(kind: str, inputs: str, outputs: str, **attrs: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attrs)


def proven(
    model: onnx.ModelProto, ratio: float = 0.5, sizes: dict[str, int] | None = None
) -> tuple[Graph, onnx.ModelProto]:
    """Prune, check, run, compare with the silenced original; returns the analysed graph and the
    file."""
    graph = analysed_file(model)
    emitted = emit_onnx(cut_file(graph, ratio))
    onnx.checker.check_model(emitted, full_check=True)
    x = random_inputs(graph, sizes, default=7)
    silent = silenced_onnx(graph, graph.kept, x)
    assert relative_error(run_model(emitted, x), silent) < 1e-4
    assert relative_error(run_model(model, x), silent) > 1e-3
    return graph, emitted


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def decorated() -> onnx.ModelProto:
    """Two convolutions, with everything around them that a plain import and export through
    graphsurgeon loses."""
    nodes = [
        node("Conv", "x w1 b1", "a", name="first", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", "a", "r", name="act"),
        node("Conv", "r w2 b2", "y", name="second"),
        node("Identity", "r", "unused", name="nobody"),
    ]
    nodes[0].doc_string = "the first of all"
    nodes[0].metadata_props.add(key="pkg", value="mine")
    model = model_of(
        nodes,
        [info("x", "n", 3, 8, 8)],
        [info("y", "n", 5, 8, 8)],
        [tensor("w1", 8, 3, 3, 3), tensor("b1", 8), tensor("w2", 5, 8, 1, 1), tensor("b2", 5)],
        producer_name="tester",
        producer_version="9",
        doc_string="a model",
        functions=[],
    )
    model.metadata_props.add(key="author", value="somebody")
    model.graph.doc_string = "a graph"
    model.graph.metadata_props.add(key="k", value="v")
    model.graph.value_info.extend(
        [info("a", "n", 8, 8, 8), info("r", "n", 8, 8, 8), info("unused", "n", 8, 8, 8)]
    )
    model.graph.initializer[0].doc_string = "weights"
    model.graph.input[0].doc_string = "an image"
    mark = model.graph.quantization_annotation.add()
    mark.tensor_name = "a"
    mark.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b1")
    return model
