"""Nodes of files as calls of ``torch.nn`` layers, where torch has what they compute.

ONNX multiplies by matrices that lie as the formula has them, reads tables by a general gather, and
keeps both directions of a recurrent network in one tensor, with its gates in another order (i o f c
and z r h, where torch has i f g o and r z n) and a dimension of their own for the directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from irprune.ir.graph import Graph, Node, Origin, TensorType, Value, Weight
from irprune.ops.registry import is_sum, role_of

__all__ = ["as_embedding", "as_linear", "as_recurrent"]

Owner = Callable[[Node, list[tuple[str, Value]]], str]

_ORDER = {"onnx_lstm": (0, 2, 3, 1), "onnx_gru": (1, 0, 2), "onnx_rnn": (0,)}
_DEFAULT = {
    "onnx_lstm": ["Sigmoid", "Tanh", "Tanh"],
    "onnx_gru": ["Sigmoid", "Tanh"],
    "onnx_rnn": ["Tanh"],
}


def as_recurrent(graph: Graph, node: Node, owner: Owner) -> None:
    """An LSTM, GRU or RNN as a layer of ATen with its weights under ``owner``, where torch has such
    a layer."""
    target = _target(node)
    if not target:
        return
    ways, width = (
        (2 if node.attrs["direction"] == "bidirectional" else 1),
        node.attrs["hidden_size"],
    )
    place = owner(node, [("weight", node.operand(1))])
    params = _parameters(graph, node, place, ways, width)
    stored = [v for v in node.inputs[1:4] if isinstance(v, Weight)]
    x, kind = node.operand(0), node.operand(0).dtype
    time, batch = x.shape[:2]
    states = 2 if node.op == "onnx_lstm" else 1
    held: list[Value] = []
    for k in range(states):
        given = node.inputs[5 + k] if node.has(5 + k) else None
        if given is None:
            attrs = {
                "size": [ways, batch, width],
                "fill_value": 0.0,
                "dtype": kind,
                "device": "cpu",
            }
            shape = TensorType(kind, (ways, batch, width))
            given = graph.add(
                "full", [], attrs, [(f"{node.out.name}.state{k}", shape)], before=node
            ).out
        held.append(given)
    attrs = {
        "has_biases": node.has(3),
        "num_layers": 1,
        "dropout": 0.0,
        "train": False,
        "bidirectional": ways == 2,
        "batch_first": False,
    }
    first = 1 + states
    layout = (
        ("input", 0),
        ("hx", tuple(range(1, first)) if states == 2 else 1),
        ("params", tuple(range(first, first + len(params)))),
    )
    types = [
        TensorType(kind, (time, batch, ways * width)),
        *[TensorType(kind, (ways, batch, width))] * states,
    ]
    names = [f"{node.out.name}.run", *(f"{node.out.name}.last{k}" for k in range(states))]
    origin = Origin("aten", target, layout, place)
    made = graph.add(
        target.split(".")[1],
        [x, *held, *params],
        attrs,
        list(zip(names, types, strict=True)),
        origin,
        before=node,
    )
    whole = TensorType(kind, (time, ways, batch, width))
    if ways == 1:
        spread = graph.add(
            "unsqueeze", [made.out], {"dim": 1}, [(f"{node.out.name}.each", whole)], before=node
        ).out
    else:
        open_ = TensorType(kind, (time, batch, ways, width))
        parts = graph.add(
            "reshape",
            [made.out],
            {"shape": [*open_.known]},
            [(f"{node.out.name}.parts", open_)],
            before=node,
        ).out
        spread = graph.add(
            "permute",
            [parts],
            {"dims": [0, 2, 1, 3]},
            [(f"{node.out.name}.each", whole)],
            before=node,
        ).out
    for old, new in zip(node.outputs, [spread, *made.outputs[1:]], strict=False):
        graph.replace(old, new)
    graph.remove(node)
    for old in stored:
        if not old.users and not any(v is old for v in graph.outputs):
            del graph.weights[old.name]


def _target(node: Node) -> str:
    """The ATen layer that computes ``node``; "" where there is none."""
    a = node.attrs
    ways = 2 if a["direction"] == "bidirectional" else 1
    used = a["activations"] or _DEFAULT[node.op] * ways
    if (
        a["direction"] == "reverse"
        or a["layout"]
        or a["clip"] is not None
        or a.get("input_forget")
        or node.has(4)
        or node.has(7)
    ):
        return ""
    if not all(
        isinstance(node.operand(i), Weight) and len(node.operand(i).users) == 1
        for i in (1, 2, 3)
        if node.has(i)
    ):
        return ""
    if node.op == "onnx_rnn" and used in (["Tanh"] * ways, ["Relu"] * ways):
        return f"aten.rnn_{used[0].lower()}.input"
    if used != _DEFAULT[node.op] * ways or (node.op == "onnx_gru" and not a["linear_before_reset"]):
        return ""
    return "aten.lstm.input" if node.op == "onnx_lstm" else "aten.gru.input"


def _parameters(graph: Graph, node: Node, place: str, ways: int, width: int) -> list[Value]:
    """The layer's parameters in torch's order, made of the stored ones."""
    order = _ORDER[node.op]
    rows = len(order) * width
    made: list[Value] = []
    for way in range(ways):
        end = "_l0" + "_reverse" * way
        for i, name in ((1, "weight_ih"), (2, "weight_hh")):
            stored = node.operand(i)
            assert isinstance(stored, Weight)
            kind = TensorType(stored.dtype, (rows, stored.shape[2]))
            made.append(
                _weight(
                    graph,
                    f"{place}.{name}{end}",
                    kind,
                    stored,
                    _gates(stored, way, 0, order, width),
                )
            )
        if node.has(3):
            stored = node.operand(3)
            assert isinstance(stored, Weight)
            for k, name in enumerate(("bias_ih", "bias_hh")):
                load = _gates(stored, way, k * rows, order, width)
                made.append(
                    _weight(
                        graph,
                        f"{place}.{name}{end}",
                        TensorType(stored.dtype, (rows,)),
                        stored,
                        load,
                    )
                )
    return made


def _weight(
    graph: Graph, name: str, kind: TensorType, stored: Weight, load: Callable[[], Any]
) -> Weight:
    return graph.add_weight(
        Weight(
            name, kind, load, "parameter", trainable=stored.trainable or stored.kind == "parameter"
        )
    )


def _gates(
    stored: Weight, way: int, start: int, order: tuple[int, ...], width: int
) -> Callable[[], Any]:
    """The rows of direction ``way`` from ``start`` on, gates in torch's ``order``."""

    def load() -> Any:
        array = np.asarray(stored.load())[way]
        return np.concatenate([array[start + g * width : start + (g + 1) * width] for g in order])

    return load


# -- products and tables ---------------------------------------------------------------------------


def _plain(node: Node) -> bool:
    """Whether the node is a matrix product, perhaps with a vector added."""
    a = node.attrs
    return (
        not a.get("trans_a")
        and not a.get("trans_b")
        and a.get("alpha", 1) == 1
        and (not node.has(2) or (a["beta"] == 1 and node.operand(2).rank == 1))
    )


def as_linear(graph: Graph, node: Node, owner: Owner) -> None:
    """``x @ W`` with a stored matrix that nobody else reads, and the bias that is added next."""
    outputs = {id(v) for v in graph.outputs}
    if not (
        _plain(node)
        and node.has(1)
        and isinstance(node.operand(1), Weight)
        and node.operand(1).rank == 2
        and node.operand(0).rank > 1
    ):
        return
    w = node.operand(1)
    if len(w.users) > 1 or id(w) in outputs:
        return
    assert isinstance(w, Weight)
    rows, columns = w.shape
    weight = Weight(
        w.name,
        TensorType(w.dtype, (columns, rows)),
        _transposed(w.load),
        w.kind,
        w.aliases,
        w.trainable,
    )
    graph.weights[w.name] = weight
    node.op, node.attrs = "linear", {}
    node.set_inputs([node.operand(0), weight, *node.inputs[2:]])
    if node.has(2):
        return
    added = (
        next(iter(node.out.users))
        if len(node.out.users) == 1 and id(node.out) not in outputs
        else None
    )
    if added is None or not is_sum(added):
        return
    bias = added.operand(1) if added.operand(0) is node.out else added.operand(0)
    if isinstance(bias, Weight) and bias.shape == (columns,) and added.out.shape == node.out.shape:
        node.set_inputs([node.operand(0), weight, bias])
        added.set_inputs([])
        for value in (node.out,):
            added.out.replace_all_uses(value)
            graph.outputs = [value if v is added.out else v for v in graph.outputs]
        node.out.name = added.out.name
        graph.remove(added)


def _transposed(load: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: load().T


def as_embedding(graph: Graph, node: Node, owner: Owner) -> None:
    """Indices of a stored table count from the front: exporters write lookups so."""
    if role_of(node, 0) != "table":
        return
    node.op, node.attrs = (
        "embedding",
        {"padding_idx": -1, "scale_grad_by_freq": False, "sparse": False},
    )
