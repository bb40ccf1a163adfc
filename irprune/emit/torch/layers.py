"""Which nodes are calls of a standard ``nn`` layer, and how that layer is written.

A layer is recognised by what the node computes and by the names of the weights it reads, never by
the user's class: a subclass of ``nn.Linear`` that computes a plain product comes out as
``nn.Linear``. The exceptions are layers that do something else in training (batch norm, dropout):
there the user's module must be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from irprune.emit.torch.code import Code, call, literal, tuple_of
from irprune.frontend.torch.source import find_torch_source
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ops.registry import is_fixed_norm, lookup, operand_as
from irprune.ops.torch.layer_classes import dropout_name, is_batch_norm
from irprune.ops.traits import Options

__all__ = ["LayerCall", "layer_for"]


@dataclass(frozen=True)
class LayerCall:
    """A layer that hangs at ``owner``, an instance of ``torch.nn.kind`` made with ``args`` and
    ``options``; ``state`` pairs its own state names with weights of the graph."""

    owner: str
    kind: str
    args: tuple[Any, ...]
    options: Options
    state: tuple[tuple[str, str], ...] = ()

    @property
    def code(self) -> Code:
        """The call that makes the layer."""
        return call(
            f"nn.{self.kind}", map(_plural, self.args), {k: _plural(v) for k, v in self.options}
        )


def _plural(x: Any) -> Any:
    return tuple_of(map(literal, x)) if isinstance(x, tuple) else x


def layer_for(node: Node, graph: Graph) -> LayerCall | None:
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
    if _holds_more(owner, entry.nn_layer.names(node), {name for name, _ in given}, graph):
        return None  # the layer would read what the node does not
    found = {name: value for name, value in given if isinstance(value, Weight)}
    made = entry.nn_layer.made(node, found) if entry.nn_layer.needs in found else None
    if made is None:
        return None
    options = made.options
    if operand_as(node, "mean") is not None:
        if not is_fixed_norm(node) or not _counts(owner, graph):
            return None
        options = _own_momentum(options, owner, graph)
    state = tuple((k, v.name) for k, v in found.items())
    return LayerCall(owner, made.kind, made.args, options, state)


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


def _holds_more(owner: str, names: Sequence[str], read: set[str], graph: Graph) -> bool:
    """Whether the model holds at ``owner`` what the layer has a name for and is not ``read``, as
    the bias of a layer of which forward takes the weight alone."""
    source = find_torch_source(graph)
    if source is None:
        return False
    there = {f"{owner}.{name}" for name in names if name and name not in read}
    return any(name in source.state and name not in graph.removed for name in there)


def _counts(owner: str, graph: Graph) -> bool:
    """Whether the module counts its batches: only such a one updates its statistics in training as
    ``nn.BatchNorm2d`` does."""
    source = find_torch_source(graph)
    return source is None or f"{owner}.num_batches_tracked" in source.state


def _own_momentum(options: Options, owner: str, graph: Graph) -> Options:
    """``options`` with the momentum of the user's own module, which a captured node may not
    hold."""
    source = find_torch_source(graph)
    if source is None or source.module is None:
        return options
    norm = source.module.get_submodule(owner)
    if not is_batch_norm(norm):
        return options  # a program of torch.export, whose call says it
    momentum: Any = norm.momentum
    at = next((i for i, (k, _) in enumerate(options) if k == "affine"), len(options))
    rest = tuple(pair for pair in options[:at] if pair[0] != "momentum")
    own: Options = () if momentum == 0.1 else (("momentum", momentum),)
    return (*rest, *own, *options[at:])


def _dropout(node: Node, graph: Graph) -> LayerCall | None:
    source = find_torch_source(graph)
    kind = source.module_types.get(node.origin.scope) if source is not None else None
    name = dropout_name(kind)
    if not node.origin.scope or not name:
        return None
    return LayerCall(node.origin.scope, name, (node.attrs["p"],), ())
