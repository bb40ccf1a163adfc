"""Readable Python source of a graph: a module class with real submodules under their original names.

``write(graph)`` gives the text and the list of modules it declares; ``irprune.emit.module`` instantiates it.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from irprune.emit.layers import Layer, layer_for
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.size import Sym
from irprune.ops.call import bind, substitute

__all__ = ["Source", "write"]

_HEADER = '''"""{name}, pruned by irprune. Needs only torch; the weights lie beside this file."""

import torch
import torch.nn.functional as F
from torch import nn


class Part(nn.Module):
    """A named place in the tree of modules; ``part[0]`` is its child "0"."""

    def __getitem__(self, key):
        return getattr(self, str(key))


def put(root, path, item):
    """Hang ``item`` (a module, a parameter, or a (buffer, persistent) pair) into the tree below ``root``."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, Part())
        root = getattr(root, parent)
    if isinstance(item, nn.Module):
        root.add_module(name, item)
    elif isinstance(item, nn.Parameter):
        root.register_parameter(name, item)
    else:
        root.register_buffer(name, item)


'''


@dataclass
class Source:
    """The text and what it needs: ``names`` of the state (our key -> weight), ties (key -> key of the same tensor)."""

    text: str
    weights: dict[str, Weight]
    ties: dict[str, str] = field(default_factory=dict)


def write(graph: Graph) -> Source:
    """Source of a class ``Model`` whose ``forward`` computes ``graph`` from its flat inputs to its flat outputs."""
    return _Writer(graph).write()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names: dict[Value, str] = {}
        self.taken = {"self", "torch", "F", "nn", "put", "Part", "Model", "device"} | set(keyword.kwlist)
        self.layers: dict[str, Layer] = {}
        self.layer_of: dict[Node, str] = {}

    def write(self) -> Source:
        graph = self.graph
        self._find_layers()
        loose = {w.name: w for w in graph.weights.values() if not any(w.name in (f"{o}.weight", f"{o}.bias") or w.name in layer.state.values()
                                                                    for o, layer in self.layers.items() if w.name.startswith(o))}
        head = [f"class Model(nn.Module):\n    def __init__(self):\n        super().__init__()"]
        for owner, layer in self.layers.items():
            head.append(f"        put(self, {owner!r}, {layer.code})")
        for w in loose.values():
            shape = list(w.shape)
            made = f"torch.empty({shape}, dtype={_dtype(w.dtype)})"
            if w.kind == "parameter":
                made = f"nn.Parameter({made}, requires_grad={w.trainable})"
            head.append(f"        put(self, {w.name!r}, {made})")
        ties = {alias: w.name for w in graph.weights.values() for alias in w.aliases}
        for alias, name in ties.items():
            head.append(f"        put(self, {alias!r}, {_path(name)})")
        body = self._forward()
        weights = {w.name: w for w in graph.weights.values()}
        return Source(_HEADER.format(name=graph.name) + "\n".join(head) + "\n\n" + body, weights, ties)

    # -- submodules ----------------------------------------------------------------------------------------------

    def _find_layers(self) -> None:
        """Weights that every reader uses as the same standard layer become that layer."""
        claims: dict[str, list[tuple[Node, Layer]]] = {}
        for node in self.graph.nodes:
            layer = layer_for(node, self.graph)
            if layer is not None:
                claims.setdefault(layer.owner, []).append((node, layer))
        for owner, made in claims.items():
            first = made[0][1]
            if any(layer != first for _, layer in made):
                continue
            readers = {n for name in first.state.values() for n in self.graph.weights[name].users}
            if readers - {n for n, _ in made} or any(not first.whole(self.graph, name) for name in first.state.values()):
                continue
            self.layers[owner] = first
            self.layer_of.update(dict.fromkeys((n for n, _ in made), owner))

    # -- forward -------------------------------------------------------------------------------------------------

    def _name(self, value: Value) -> str:
        if value not in self.names:
            if isinstance(value, Weight):
                self.names[value] = _path(value.name)
            else:
                name = value.name if value.name.isidentifier() else "v_" + "".join(c if c.isalnum() else "_" for c in value.name)
                while name in self.taken:
                    name += "_"
                self.taken.add(name)
                self.names[value] = name
        return self.names[value]

    def _forward(self) -> str:
        graph = self.graph
        inputs = [self._name(v) for v in graph.inputs]
        lines = [f"    def forward(self, {', '.join(inputs)}):" if inputs else "    def forward(self):"]
        last = _last_uses(graph)
        code = [self._line(node) for node in graph.nodes]
        lines += self._prologue("\n".join(code))
        for i, (node, text) in enumerate(zip(graph.nodes, code, strict=True)):
            dead = [self._name(v) for v in last.get(i, ())]
            lines.append(f"        {text}" + (f"; del {', '.join(dead)}" if dead else ""))
        results = ", ".join(self._name(v) for v in graph.outputs)
        lines.append(f"        return ({results}{',' if len(graph.outputs) == 1 else ''})")
        return "\n".join(lines) + "\n"

    def _prologue(self, code: str) -> Iterable[str]:
        """Names for the device and for the sizes known at run time."""
        bound: set[str] = set()
        for v in self.graph.inputs:
            for d, s in enumerate(v.shape):
                if isinstance(s, Sym) and s.expr.isidentifier() and s.expr not in bound:
                    bound.add(s.expr)
                    yield f"        {s.expr} = {self._name(v)}.shape[{d}]"
        if "device" in code and self.graph.inputs:
            yield f"        device = {self._name(self.graph.inputs[0])}.device"

    def _line(self, node: Node) -> str:
        names = [self._name(v) for v in node.outputs]
        left = names[0] if len(names) == 1 else ", ".join(names)
        return f"{left} = {self._expression(node)}"

    def _expression(self, node: Node) -> str:
        if node in self.layer_of:
            return f"{_path(self.layer_of[node])}({self._name(node.operand(0))})"
        call = bind(node)
        if node.op == "dropout":
            kind = "F.dropout" if "feature" not in call.target else "F.dropout2d"
            return f"{kind}({self._name(node.operand(0))}, {node.attrs['p']}, self.training)"

        def show(x: Any) -> str:
            return _literal(substitute(x, lambda k: _Code(self._name(node.operand(k))), lambda s: _Code(s.expr), _Code("device")))

        args = [show(a) for a in call.args] + [f"{k}={show(v)}" for k, v in call.kwargs.items()]
        space, name, overload = call.target.split(".")
        return f"torch.ops.{space}.{name}.{overload}({', '.join(args)})"


class _Code(str):
    """Text that is code already."""


def _literal(x: Any) -> str:
    if isinstance(x, _Code):
        return str(x)
    if isinstance(x, (list, tuple)):
        return "[" + ", ".join(map(_literal, x)) + "]"
    if isinstance(x, float) and (x != x or x in (float("inf"), float("-inf"))):
        return f'float("{x}")'
    return repr(x)


def _dtype(name: str) -> str:
    from irprune.capture.dtypes import TO_TORCH

    return str(TO_TORCH[name])


def _path(name: str) -> str:
    """``layer1.0.conv1`` as ``self.layer1[0].conv1``."""
    out = "self"
    for part in name.split("."):
        out += f".{part}" if part.isidentifier() and not keyword.iskeyword(part) else f"[{part}]" if part.isdigit() and out != "self" else ""
        if not (part.isidentifier() and not keyword.iskeyword(part)) and not (part.isdigit() and out != "self"):
            out = f"getattr({out}, {part!r})"
    return out


def _last_uses(graph: Graph) -> dict[int, list[Value]]:
    """For each node, by position, the values that nothing reads afterwards (inputs and weights stay)."""
    at: dict[Value, int] = {}
    for i, node in enumerate(graph.nodes):
        for v in node.outputs:
            at[v] = i
        for v in node.inputs:
            if v is not None and v.producer is not None:
                at[v] = i
    outputs = {id(v) for v in graph.outputs}
    out: dict[int, list[Value]] = {}
    for v, i in at.items():
        if id(v) not in outputs:
            out.setdefault(i, []).append(v)
    return out
