"""Which nodes are calls of a standard ``nn`` layer, and how that layer is written.

A layer is recognised by what the node computes and by the names of the weights it reads, never by
the user's class: a subclass of ``nn.Linear`` that computes a plain product comes out as
``nn.Linear``. The exceptions are layers that do something else in training (batch norm, dropout):
there the user's module must be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ops.registry import is_fixed_norm, lookup, operand_as

__all__ = ["Layer", "layer_for"]


@dataclass(frozen=True)
class Layer:
    """A layer that hangs at ``owner``, made by ``code``; ``state`` pairs its own state names with
    weights of the graph."""

    owner: str
    code: str
    state: tuple[tuple[str, str], ...] = ()


def layer_for(node: Node, graph: Graph) -> Layer | None:
    """The layer that ``node`` is a call of, or None."""
    entry = lookup(node)
    if entry is None:
        return None
    if entry.drops:
        return _dropout(node, graph)
    if entry.nn_layer is None:
        return None
    given = entry.nn_layer.held(node)
    owner = _owner(given, node.origin.scope)
    if owner is None:
        return None
    found = {name: value for name, value in given if isinstance(value, Weight)}
    if entry.nn_layer.needs not in found:
        return None
    code = entry.nn_layer.code(node, found)
    if code is not None and operand_as(node, "mean") is not None:
        code = _tracking(code, node, owner, graph) if is_fixed_norm(node) else None
    return (
        None if code is None else Layer(owner, code, tuple((k, v.name) for k, v in found.items()))
    )


def _owner(given: Sequence[tuple[str, Value]], scope: str) -> str | None:
    """The module that holds every weight in ``given`` under its layer's own name; the one the node
    ran in where there are several."""
    places: list[str] | None = None
    for name, value in given:
        if not isinstance(value, Weight) or value.kind == "constant":
            return None
        own = [
            x.rpartition(".")[0]
            for x in (value.name, *value.aliases)
            if x.rpartition(".")[2] == name and "." in x
        ]
        places = own if places is None else [x for x in places if x in own]
    if not places:
        return None
    return scope if scope in places else places[0]


def _tracking(code: str, node: Node, owner: str, graph: Graph) -> str | None:
    """Only a module that counts its batches updates its statistics in training as
    ``nn.BatchNorm2d`` does; how fast is its own."""
    state = graph.structure.state if graph.structure is not None else None
    if state is not None and f"{owner}.num_batches_tracked" not in state:
        return None
    momentum = node.attrs["momentum"]
    if graph.structure is not None and graph.structure.module is not None:
        momentum = graph.structure.module.get_submodule(owner).momentum
    return code if momentum == 0.1 else f"{code[:-1]}, momentum={momentum!r})"


def _dropout(node: Node, graph: Graph) -> Layer | None:
    from torch import nn

    kind = (
        graph.structure.module_types.get(node.origin.scope) if graph.structure is not None else None
    )
    if not node.origin.scope or kind is None or not issubclass(kind, nn.modules.dropout._DropoutNd):
        return None
    name = kind.__name__ if kind.__module__ == nn.Dropout.__module__ else "Dropout"
    return Layer(node.origin.scope, f"nn.{name}({node.attrs['p']})")
