"""Readable Python source of a graph: a module class with real submodules under their original
names.

``write(graph)`` gives the text and the weights that fill it; ``irprune.emit.torch.module`` makes
the module."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from irprune.emit.torch.layers import Layer, layer_for
from irprune.emit.torch.signature import Classes, Signature, pack
from irprune.emit.torch.spelling import Code, arguments, literal, spell
from irprune.errors import IrpruneError
from irprune.ir.body import Body
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.size import Sym, linear
from irprune.ir.symbols import names_in
from irprune.ops.call import bind, overload, substitute
from irprune.ops.dtypes import TO_TORCH, torch_attribute
from irprune.ops.onnx import functions
from irprune.ops.registry import lookup

__all__ = ["Source", "Tensor", "write"]

HEADER = '''\
"""{name}, pruned by irprune. Needs only torch; the weights lie beside this file."""

import collections
import math

import torch
import torch.nn.functional as F
from torch import nn


class Part(nn.Module):
    """A named place in the tree of modules; ``part[0]`` is its child "0"."""

    def __getitem__(self, key):
        return getattr(self, str(key))


def put(root, path, item, persistent=True):
    """Hang ``item`` (a module, a parameter or a buffer) into the tree below ``root``."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, Part())
        root = root._modules[parent]
    if isinstance(item, nn.Module):
        root.add_module(name, item)
    elif isinstance(item, nn.Parameter):
        root.register_parameter(name, item)
    else:
        root.register_buffer(name, item, persistent)


def fill(model, tensors):
    """Give every parameter and buffer of ``model`` its tensor; names that share one keep sharing it."""
    places, made = [], {{}}
    for path, module in model.named_modules():
        for name, old in (*module._parameters.items(), *module._buffers.items()):
            if old is not None:
                places.append((module, name, old))
                new = tensors.get(path + "." + name if path else name)
                if new is not None:
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    for module, name, old in places:
        setattr(module, name, made[id(old)])
    return model


def expect(name, value, captured):
    """Refuse a value that the graph was not captured with."""
    if value != captured:
        raise ValueError(f"{{name}}={{value!r}}: the model was captured with {{captured!r}}")


def require(name, value):
    """Refuse to go on without an argument that the graph was captured with."""
    if value is None:
        raise TypeError(f"missing argument {{name!r}}: the model was captured with it")


def record(name, fields):
    """A class of dictionaries with attributes, in place of one that is not installed here."""
    def init(self, **values):
        dict.__init__(self, {{k: v for k, v in values.items() if v is not None}})
        self.__dict__.update(values)

    return type(name, (dict,), {{"__init__": init, "__slots__": ("__dict__",)}})


'''


_RESERVED = (
    "self",
    "torch",
    "F",
    "nn",
    "put",
    "fill",
    "expect",
    "require",
    "record",
    "collections",
    "math",
    "Part",
    "Model",
    "device",
    "max",
    "min",
    "float",
    "int",
    "type",
)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the emitted state: ``load()`` gives its array, ``trainable`` whether it takes
    gradients."""

    load: Callable[[], Any]
    trainable: bool


@dataclass
class Source:
    """The text of the module; ``tensors`` are what fills it, by the name in its tree (of tied names
    the first).

    ``classes`` are the user's classes that the text names.
    """

    text: str
    tensors: dict[str, Tensor]
    classes: dict[str, Any] = field(default_factory=dict)


def write(graph: Graph) -> Source:
    """Source of a class ``Model`` that computes ``graph`` and is called as the captured model
    was."""
    return _Writer(graph).write()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names: dict[Value, str] = {}
        self.taken = {*_RESERVED, *keyword.kwlist}
        self.layers: dict[str, Layer] = {}
        self.layer_of: dict[Node, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.classes = Classes()
        self.functions: dict[
            str, str
        ] = {}  # of the operator table, in the order in which they are met

    def write(self) -> Source:
        self._find_layers()
        text = "class Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        text += "".join(f"        {line}\n" for line in self._tree())
        text += "\n" + self._forward()
        classes = "".join(f"{line}\n" for line in self.classes.lines)
        functions = "".join(f"{text}\n\n" for text in self.functions.values())
        head = (
            HEADER.format(name=self.graph.name) + functions + (classes + "\n\n" if classes else "")
        )
        return Source(head + text, self.tensors, self.classes.held)

    def _fresh(self, name: str) -> str:
        """``name``, or one like it that is a free identifier."""
        name = (
            name if name.isidentifier() else "v_" + "".join(c if c.isalnum() else "_" for c in name)
        )
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    # -- submodules --------------------------------------------------------------------------------

    def _find_layers(self) -> None:
        """The first call of a layer declares it; calls that differ from it read its weights by
        name."""
        for node in self.graph.nodes:
            layer = layer_for(node, self.graph)
            if layer is not None and self.layers.setdefault(layer.owner, layer) == layer:
                self.layer_of[node] = layer.owner

    def _tree(self) -> Iterator[str]:
        """Statements that build the tree, in the order of the user's own state."""
        graph = self.graph
        state = graph.structure.state if graph.structure is not None else {}
        by_name = {alias: w for w in graph.weights.values() for alias in (w.name, *w.aliases)}
        layer_at = {
            f"{owner}.{own}": layer
            for owner, layer in self.layers.items()
            for own, _ in layer.state
        }
        declared: set[str] = set()
        first: dict[int, str] = {}  # identity of what is held -> the name that holds it
        fixed: list[str] = []
        for name in dict.fromkeys((*state, *by_name)):
            weight, entry = by_name.get(name), state.get(name)
            held = _held(weight, entry)
            layer = layer_at.get(name)
            inside = layer is not None or self._counts_batches(name)
            if layer is not None and layer.owner not in declared:
                declared.add(layer.owner)
                yield f"put(self, {layer.owner!r}, {layer.code})"
            if held.key in first:
                yield f"put(self, {name!r}, {path_of(first[held.key])})"
                continue
            first[held.key] = name
            self.tensors[name] = Tensor(held.load, held.trainable)
            if not inside:
                yield self._loose(name, held)
            elif held.kind == "parameter" and not held.trainable:
                fixed.append(name)
        for owner, layer in self.layers.items():
            if owner not in declared:
                yield f"put(self, {owner!r}, {layer.code})"
        for name in fixed:
            yield f"{path_of(name)}.requires_grad_(False)"

    def _counts_batches(self, name: str) -> bool:
        owner, _, own = name.rpartition(".")
        return own == "num_batches_tracked" and owner in self.layers

    def _loose(self, name: str, held: _Held) -> str:
        """A parameter or buffer that no layer declares."""
        made = f"torch.empty({held.shape}{'' if held.dtype == 'torch.float32' else f', dtype={held.dtype}'})"
        if held.kind == "parameter":
            return f"put(self, {name!r}, nn.Parameter({made}{'' if held.trainable else ', requires_grad=False'}))"
        return f"put(self, {name!r}, {made}{'' if held.persistent else ', persistent=False'})"

    # -- forward -----------------------------------------------------------------------------------

    def _name(self, value: Value) -> str:
        if value not in self.names:
            self.names[value] = (
                path_of(value.name) if isinstance(value, Weight) else self._fresh(value.name)
            )
        return self.names[value]

    def _forward(self) -> str:
        graph, structure = self.graph, self.graph.structure
        lines: list[str] = []
        if structure is not None:
            signature = Signature(structure, self._fresh)
            self.names.update((graph.inputs[i], name) for i, name in signature.names.items())
            head = f"self, {signature.head}" if signature.head else "self"
            lines += signature.lines
        else:
            head = ", ".join(["self", *map(self._name, graph.inputs)])
        body: list[str] = []
        last = _last_uses(graph)
        wanted = {name for node in graph.nodes for name in names_in(list(node.attrs.values()))}
        bound: set[str] = set()
        prologue = list(self._bind_sizes(graph.inputs, wanted, bound))
        scope = ""
        for i, node in enumerate(graph.nodes):
            if node.origin.scope != scope and node.origin.scope:
                body.append(f"# {node.origin.scope}")
            scope = node.origin.scope
            single = node in self.layer_of and dict(node.origin.layout).get("hx") is None
            dead = [self._name(v) for v in last.get(i, ()) if not (single and v.producer is node)]
            body += [
                self._line(node),
                *self._bind_sizes([v for v in node.outputs if v.dtype != "none"], wanted, bound),
            ]
            body[-1] += f"; del {', '.join(dead)}" if dead else ""
        if any("device" in line for line in body):
            lines.append(f"device = {self._device()}")
        if wanted - bound:
            raise IrpruneError(
                f"the size {min(wanted - bound)} follows from no input",
                "",
                "give dynamic_shapes that name every dynamic size",
            )
        lines += prologue + body
        lines.append(f"return {self._result()}")
        return f"    def forward({head}):\n" + "".join(f"        {line}\n" for line in lines)

    def _device(self) -> str:
        if self.graph.inputs:
            return f"{self._name(self.graph.inputs[0])}.device"
        trained = any(w.kind == "parameter" for w in self.graph.weights.values())
        return "next(self.parameters()).device" if trained else "torch.device('cpu')"

    def _result(self) -> str:
        graph, structure = self.graph, self.graph.structure
        if structure is None:
            return ", ".join(map(self._name, graph.outputs))
        leaves = (
            self._name(graph.outputs[p]) if isinstance(p, int) else literal(p[0])
            for p in structure.outputs
        )
        return pack(structure.out_spec, leaves, self.classes)

    def _bind_sizes(self, values: list[Value], wanted: set[str], bound: set[str]) -> Iterator[str]:
        """Statements for symbols that stand in the shapes of ``values``, alone or in ``k * s +
        c``."""
        for v in values:
            if v.producer is not None and isinstance(symbol := v.producer.attrs.get("symbol"), Sym):
                bound.add(symbol.name)
                yield f"{symbol} = {self._name(v)}"
        for exact in (True, False):
            for v in values:
                for d, s in enumerate(v.type.shape or ()):
                    if not isinstance(s, Sym):
                        continue
                    names = list(dict.fromkeys(names_in(s)))
                    if (
                        len(names) != 1
                        or (name := names[0]) in bound
                        or name not in wanted
                        or exact != (s.name == name)
                    ):
                        continue
                    solved = _solve(s, name, f"{self._name(v)}.shape[{d}]")
                    if solved:
                        bound.add(name)
                        yield f"{name} = {solved}"

    def _line(self, node: Node) -> str:
        names = [self._name(v) for v in node.outputs]
        owner = self.layer_of.get(node)
        if owner is not None and dict(node.origin.layout).get("hx") is not None:
            return self._recurrent(node, owner, names)
        if owner is not None:
            names = names[:1]
        elif len(names) == 1 and _is_list(node):
            return f"({names[0]},) = {self._expression(node)}"
        return f"{', '.join(names)} = {self._expression(node)}"

    def _recurrent(self, node: Node, owner: str, names: list[str]) -> str:
        state = dict(node.origin.layout)["hx"]
        held = [
            self._name(node.operand(k))
            for k in (state if isinstance(state, tuple) else (state,))
            if k is not None
        ]
        x = self._name(node.operand(0))
        if len(held) == 2:
            return f"{names[0]}, ({names[1]}, {names[2]}) = {path_of(owner)}({x}, ({held[0]}, {held[1]}))"
        return f"{names[0]}, {names[1]} = {path_of(owner)}({x}, {held[0]})"

    def _body(self, node: Node, kind: str, body: Body) -> Code:
        """A function of a body's own inputs; the source has the body as a function of its own
        inputs and those outside."""
        inner = _Writer(body.graph)
        inner.functions = self.functions
        name = self._fresh(f"{kind}_{node.out.name}")
        while name in self.functions:
            name += "_"
        self.functions[name] = ""
        head, *lines = inner._forward().splitlines()
        given = head.partition("(self")[2].removeprefix(", ")
        *rest, last = (line[4:] for line in lines)
        self.functions[name] = (
            "\n".join(
                [
                    f"def {name}({given}",
                    *rest,
                    f"    return [{last.strip().removeprefix('return ')}]",
                ]
            )
            + "\n"
        )
        outside = ", ".join(self._name(node.operand(int(k))) for k in body.outer)
        return Code(f"lambda *own: {name}(*own{', ' if outside else ''}{outside})")

    def _function(self, node: Node) -> str | None:
        """The call of a function that the operator table has for ``node``; the emitted source
        carries it."""
        entry = lookup(node)
        if entry is None or (name := getattr(entry.run, "function", None)) is None:
            return None
        for needed in (*functions.HELPERS.get(name, ()), name):
            self.functions.setdefault(needed, inspect.getsource(getattr(functions, needed)))
        self.taken.add(name)
        given = [
            Code(self._name(v)) if v is not None else None
            for v in node.inputs[: node.attrs.get("own")]
        ]

        def show(x: Any) -> Any:
            return substitute(
                x,
                lambda k: Code(self._name(node.operand(k))),
                lambda s: Code(str(s)),
                Code("device"),
            )

        attrs = {
            k: Code("device")
            if k == "device"
            else self._body(node, k, v)
            if isinstance(v, Body)
            else show(torch_attribute(k, v))
            for k, v in node.attrs.items()
            if k != "own"
        }
        made, named = getattr(entry.run, "results", 1), len(node.outputs)
        return f"{name}({arguments(given, attrs)})" + (
            "" if made <= named else "[0]" if named == 1 else f"[:{named}]"
        )

    def _expression(self, node: Node) -> str:
        if node in self.layer_of:
            entry = lookup(node)
            layer = entry.nn_layer if entry is not None else None
            data = layer.data(node) if layer is not None else 0
            return f"{path_of(self.layer_of[node])}({self._name(node.operand(data))})"
        try:
            call = bind(node)
        except LookupError:
            if (written := self._function(node)) is not None:
                return written
            raise IrpruneError(
                f"{node.op} cannot be written in torch yet",
                node.where,
                "give the operator an ATen spelling in its family file",
            ) from None
        entry = lookup(node)
        if entry is not None and entry.trains:  # what was off was off for being captured in eval
            *options, on = [node.attrs[k] for k in entry.trains]
            given = [
                self._name(node.operand(0)),
                *map(str, options),
                "True" if on else "self.training",
            ]
            return f"torch.{call.target.split('.')[1]}({', '.join(given)})"

        def show(x: Any) -> Any:
            return substitute(
                x,
                lambda k: Code(self._name(node.operand(k))),
                lambda s: Code(str(s)),
                Code("device"),
            )

        rank = node.operand(0).rank if node.has(0) and node.operand(0).type.shape is not None else 0
        return spell(
            call.target,
            [show(a) for a in call.args],
            {k: show(v) for k, v in call.kwargs.items()},
            rank,
        )


def _is_list(node: Node) -> bool:
    """Whether the operator gives a list of tensors, be it of one: ``unbind``, ``split`` and their
    like."""
    try:
        returns = overload(bind(node).target)._schema.returns
    except LookupError:
        return False
    return len(returns) == 1 and str(returns[0].type) == "List[Tensor]"


@dataclass(frozen=True)
class _Held:
    """What stands at a name of the state: a weight of the graph, or a tensor that the graph does
    not read."""

    key: int
    load: Callable[[], Any]
    kind: str
    shape: list[Any]
    dtype: str
    trainable: bool
    persistent: bool


def _held(weight: Weight | None, entry: Any) -> _Held:
    if weight is not None:
        persistent = entry.persistent if entry is not None else weight.kind != "constant"
        return _Held(
            id(weight),
            weight.load,
            weight.kind,
            list(weight.shape),
            str(TO_TORCH[weight.dtype]),
            weight.trainable,
            persistent,
        )
    tensor = entry.tensor
    return _Held(
        id(tensor),
        lambda: tensor,
        entry.kind,
        list(tensor.shape),
        str(tensor.dtype),
        tensor.requires_grad,
        entry.persistent,
    )


def path_of(name: str) -> str:
    """``layer1.0.conv1`` as ``self.layer1[0].conv1``."""
    out = "self"
    for part in name.split("."):
        if part.isidentifier() and not keyword.iskeyword(part):
            out += f".{part}"
        elif part.isdigit() and out != "self":
            out += f"[{part}]"
        else:
            out = f"getattr({out}, {part!r})"
    return out


def _solve(symbolic: Sym, name: str, size: str) -> str:
    """The code that gives symbol ``name`` where ``symbolic`` is ``size``; "" where the expression
    is not ``k * name + c``."""
    found = linear(symbolic)
    if found is None or (k := found[0].get(name, 0)) <= 0:
        return ""
    c = found[1]
    moved = f"({size} - {c})" if c > 0 else f"({size} + {-c})" if c < 0 else size
    return f"{moved} // {k}" if k != 1 else moved.strip("()") if c else size


def _last_uses(graph: Graph) -> dict[int, list[Value]]:
    """For each node, by position, the values that nothing reads afterwards (inputs and weights
    stay)."""
    at: dict[Value, int] = {}
    for i, node in enumerate(graph.nodes):
        for v in node.outputs:
            at[v] = i
        for operand in node.inputs:
            if operand is not None and operand.producer is not None:
                at[operand] = i
    outputs = {id(v) for v in graph.outputs}
    out: dict[int, list[Value]] = {}
    for v, i in at.items():
        if id(v) not in outputs:
            out.setdefault(i, []).append(v)
    return out
