"""A file with another basis in one of its widths: new tensors, and the nodes that need others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from irprune.frontend.onnx.proto import tensor_of
from irprune.frontend.onnx.source import OnnxSource

__all__ = ["FileBasis", "FileNorm", "with_basis"]


@dataclass(frozen=True)
class FileNorm:
    """A layer norm of the file that becomes a root mean square norm: the number of its node, its
    epsilon, and the tensor of its scale."""

    node: int
    eps: float
    scale: str


@dataclass
class FileBasis:
    """What changes in a file.

    ``tensors`` are the arrays by the names of initializers, ``copies`` gives operands (node,
    position) a tensor of another name, ``biases`` adds a vector of this name to what a node gives.
    A node of ``passed`` gives its input of this position as it is; those that are ``unread`` then
    go."""

    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    copies: dict[tuple[int, int], str] = field(default_factory=dict)
    biases: dict[int, str] = field(default_factory=dict)
    norms: list[FileNorm] = field(default_factory=list)
    passed: dict[int, int] = field(default_factory=dict)
    unread: list[int] = field(default_factory=list)


def with_basis(
    source: OnnxSource, basis: FileBasis, tensors: Mapping[str, NDArray[Any]] | None = None
) -> onnx.ModelProto:
    """The model behind ``source`` with what ``basis`` says; ``tensors`` may stand in for its
    own."""
    arrays = basis.tensors if tensors is None else tensors
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    graph = model.graph
    norms = {norm.node: norm for norm in basis.norms}
    taken = {t for n in graph.node for t in (*n.input, *n.output)}
    nodes: list[onnx.NodeProto] = []
    kinds = {t.name: t.data_type for t in graph.initializer}
    added: dict[str, int] = {}
    given: dict[str, str] = {}  # results that are other tensors
    for number, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if name in given:
                node.input[slot] = given[name]
        if number in basis.passed:
            given[node.output[0]] = node.input[basis.passed[number]]
            continue
        if number in basis.unread:
            continue
        for (at, slot), name in basis.copies.items():
            if at == number:
                kinds.setdefault(name, kinds.get(node.input[slot], TensorProto.FLOAT))
                node.input[slot] = name
        if number in norms:
            nodes += _root_mean_square(node, norms[number], taken, source.opset(""), graph)
        elif number in basis.biases:
            nodes += _with_bias(node, basis.biases[number], taken)
            weight = next((t for t in node.input if t in kinds), "")
            added[basis.biases[number]] = kinds.get(weight, TensorProto.FLOAT)
        else:
            nodes.append(node)
    made = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(made)
    kept = [
        TensorProto.FromString(t.SerializeToString())
        for t in graph.initializer
        if t.name not in arrays
    ]
    for name, array in arrays.items():
        kept.append(tensor_of(name, array, kinds.get(name, added.get(name, TensorProto.FLOAT))))
    read = {t for n in graph.node for t in n.input} | {v.name for v in graph.output}
    del graph.initializer[:]
    graph.initializer.extend(t for t in kept if t.name in read)
    return model


def _root_mean_square(
    node: onnx.NodeProto, norm: FileNorm, taken: set[str], opset: int, graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """The norm written out in operators that every version has."""
    x, result = node.input[0], node.output[0]
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    square, mean, more, root, whole = (
        _fresh(f"{result}.{part}", taken) for part in ("square", "mean", "more", "root", "whole")
    )
    eps = _fresh(f"{result}.epsilon", taken)
    kind = next((t.data_type for t in graph.initializer if t.name == norm.scale), TensorProto.FLOAT)
    graph.initializer.append(tensor_of(eps, np.array(norm.eps), kind))
    if opset >= 18:
        axes = _fresh(f"{result}.axes", taken)
        graph.initializer.append(numpy_helper.from_array(np.array([axis], dtype=np.int64), axes))
        reduced = helper.make_node("ReduceMean", [square, axes], [mean], keepdims=1)
    else:
        reduced = helper.make_node("ReduceMean", [square], [mean], axes=[axis], keepdims=1)
    return [
        helper.make_node("Mul", [x, x], [square], name=f"{result}.square"),
        reduced,
        helper.make_node("Add", [mean, eps], [more]),
        helper.make_node("Sqrt", [more], [root]),
        helper.make_node("Div", [x, root], [whole]),
        helper.make_node("Mul", [whole, node.input[1]], [result], name=node.name),
    ]


def _with_bias(node: onnx.NodeProto, bias: str, taken: set[str]) -> list[onnx.NodeProto]:
    result = node.output[0]
    plain = _fresh(f"{result}.product", taken)
    node.output[0] = plain
    return [node, helper.make_node("Add", [plain, bias], [result])]


def _fresh(name: str, taken: set[str]) -> str:
    made, n = name, 2
    while made in taken:
        made, n = f"{name}.{n}", n + 1
    taken.add(made)
    return made
