"""nn.Module out of ONNX: a graph that came from a file, with the layers that torch has in the place
of what ONNX writes.

Weights get the names of layers (``conv1.weight``), a product with a stored matrix becomes
``nn.Linear``, a table that is read by row an ``nn.Embedding``; everything else is a call. The
result differentiates, moves between devices and exports again."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from irprune.emit.bridge.state_names import StateNames
from irprune.errors import IrpruneError
from irprune.ir.body import Body
from irprune.ir.graph import Graph, Node, TensorType, Value, Weight
from irprune.ops.arrays import as_numpy
from irprune.ops.bodies import put_into_bodies
from irprune.ops.registry import lookup, operand_as
from irprune.ops.traits import Role

if TYPE_CHECKING:
    from torch import nn

__all__ = ["module_from_onnx", "with_layers", "with_trained_weights"]

_NUMBERED = re.compile(r"val_(\d+)")
_BUFFERS = ("running_mean", "running_var")
_STATISTICS: tuple[Role, ...] = ("mean", "variance")


def module_from_onnx(graph: Graph) -> nn.Module:
    """A trainable ``nn.Module`` that computes ``graph``, captured from ONNX; called with the inputs
    in the file's order.

    Raises IrpruneError for an operator that the table does not know.
    """
    from irprune.emit.torch.module import emit_module

    return emit_module(with_layers(graph))


def with_layers(graph: Graph) -> Graph:
    """A copy of ``graph`` in which stored matrices, tables and parameters stand as torch's layers
    have them. Axes are not kept."""
    twin = graph.copy()
    twin.source = None
    put_into_bodies(twin)
    for node in list(twin.nodes):
        entry = lookup(node)
        if entry is not None and entry.layered is not None:
            entry.layered(
                twin,
                node,
                lambda n, held: _beside(twin, held).free(_owner(n, held)),
            )
        _place(node)
        for role in _STATISTICS:
            weight = operand_as(node, role)
            if isinstance(weight, Weight):
                weight.kind, weight.trainable = "buffer", False
    _name_layers(twin)
    return twin


def with_trained_weights(graph: Graph, module: nn.Module) -> Graph:
    """A copy of ``graph`` with what ``module``, made of it by ``module_from_onnx``, holds now, as
    the file stores it.

    Where a number of the file stands in the module is read off a graph whose weights hold their own
    places. Raises IrpruneError where the module has other shapes."""
    out, places = graph.copy(), graph.copy()
    names, starts, end = list(places.weights), [], 1
    for w in places.weights.values():
        starts.append(end)
        shape = w.type.known
        w.load = partial(_counted, end, shape)
        end += int(np.prod(shape, dtype=np.int64))  # type: ignore[arg-type]
    held = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    stored: dict[str, Any] = {}
    for name, w in with_layers(places).weights.items():
        if (
            name not in held
            or not held[name].numel()
            or not (where := np.asarray(w.load()).reshape(-1)).any()
        ):
            continue  # a counter that the file does not have
        k = bisect_right(starts, int(where[0])) - 1
        now = as_numpy(held[name]).reshape(-1)
        if len(now) != len(where):
            raise IrpruneError(
                f"'{name}' has another shape than the pruned model",
                graph.name,
                "export the module itself",
            )
        own = out.weights[names[k]]
        if names[k] not in stored:
            stored[names[k]] = np.array(as_numpy(own.load()))
        flat = stored[names[k]].reshape(-1)
        flat[where - starts[k]] = now.astype(flat.dtype)
    for name, array in stored.items():
        own = out.weights[name]
        if not np.array_equal(array, as_numpy(own.load())):
            own.load = partial(_itself, array)
    return out


def _counted(start: int, shape: Any) -> Any:
    return np.arange(start, start + int(np.prod(shape, dtype=np.int64))).reshape(shape)


def _itself(array: Any) -> Any:
    return array


def _place(node: Node) -> None:
    """What is made from sizes alone is made where the model runs, in bodies too."""
    entry = lookup(node)
    if entry is not None and entry.free and not node.inputs:
        node.attrs.setdefault("device", "cpu")
    for key, body in node.attrs.items():
        if isinstance(body, Body):
            inside = body.graph.copy()
            for inner in inside.nodes:
                _place(inner)
            node.attrs[key] = Body(inside, body.outer)


# -- names -----------------------------------------------------------------------------------------


def _name_layers(graph: Graph) -> None:
    """Give the weights of each layer that owns them the names that torch uses."""
    taken = StateNames(graph.weights)
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        entry = lookup(node)
        if entry is None or entry.nn_layer is None:
            continue
        held = entry.nn_layer.held(node)
        if not all(isinstance(v, Weight) and len(v.users) == 1 for _, v in held) or not held:
            continue
        named = len({v.name.rpartition(".")[0] for _, v in held}) == 1 and all(
            v.name.rpartition(".")[2] == own and "." in v.name for own, v in held
        )
        owner = held[0][1].name.rpartition(".")[0] if named else _owner(node, held)
        for _, v in held:
            taken.remove(v.name)
        owner = taken.free(owner)  # a bias that another operator adds is none of the layer's
        if operand_as(node, "mean") is not None:
            counter = f"{owner}.num_batches_tracked"
            graph.add_weight(
                Weight(counter, TensorType("i64", ()), lambda: np.zeros((), np.int64), "buffer")
            )
        for own, v in held:
            renamed[v.name] = f"{owner}.{own}"
            taken.add(f"{owner}.{own}")
            v.name = f"{owner}.{own}"
            if own in _BUFFERS:
                assert isinstance(v, Weight)
                v.kind = "buffer"
    for name, w in graph.weights.items():
        # Torch's exporter gives these names anew
        if name not in renamed and (numbered := _NUMBERED.fullmatch(name)):
            renamed[name] = w.name = f"constant_{numbered[1]}"
    for name, w in graph.weights.items():
        if name not in renamed:
            taken.remove(name)
            renamed[name] = w.name = taken.free(name)
            taken.add(w.name)
    graph.weights = {renamed[name]: w for name, w in graph.weights.items()}


def _owner(node: Node, held: list[tuple[str, Value]]) -> str:
    """Where the layer hangs: by its weight's own name, by the node's path
    (``/layer1/layer1.0/conv1/Conv``), or by its result."""
    for own, v in held:
        place, _, last = v.name.rpartition(".")
        if place and last == own:
            return place
    parts: list[str] = []
    for part in [p for p in node.origin.scope.split("/")[:-1] if p]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    name = ".".join(parts) or f"{node.op}_{node.out.name}"
    return ".".join(
        "".join(c if c.isalnum() or c == "_" else "_" for c in piece) or "_"
        for piece in name.split(".")
    )


def _beside(graph: Graph, held: list[tuple[str, Value]]) -> StateNames:
    own = {v.name for _, v in held}
    return StateNames(name for name in graph.weights if name not in own)
