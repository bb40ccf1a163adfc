"""Readable Python source of a graph: a module class with real submodules under their original
names.

``write(graph)`` gives the text and the weights that fill it; ``irprune.emit.torch.module`` makes
the module."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from irprune.base.garbage import without_collection
from irprune.emit.torch.code import (
    DEVICE,
    Code,
    Function,
    Line,
    Parameters,
    Written,
    assign,
    attribute,
    call,
    delete,
    identifier,
    literal,
    parsed_as_meant,
    quote,
    statement,
    subscript,
    tuple_of,
    variable,
)
from irprune.emit.torch.header import ABOUT, HEADER, RESERVED
from irprune.emit.torch.layers import LayerCall, layer_for
from irprune.emit.torch.places import StateEntry, held_at, path_of, put
from irprune.emit.torch.signature import Classes, Signature, pack
from irprune.emit.torch.size_code import line_of, said_of, size_code, solved_for
from irprune.emit.torch.spelling import spell
from irprune.errors import IrpruneError, printable
from irprune.frontend.torch.source import find_torch_source
from irprune.ir.body import Body
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.guards import Fixed
from irprune.ir.size import Sym
from irprune.ir.symbols import names_in
from irprune.ops.call import bind, overload, substitute
from irprune.ops.dtypes import torch_attribute
from irprune.ops.onnx import functions
from irprune.ops.registry import aten_target, lookup
from irprune.ops.traits import CarriedFunction

__all__ = ["ModuleSource", "Tensor", "write"]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the emitted state: ``load()`` gives its array, ``trainable`` whether it takes
    gradients, ``learned`` whether it is a parameter."""

    load: Callable[[], Any]
    trainable: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    learned: bool


@dataclass
class ModuleSource:
    """The text of the module; ``tensors`` are what fills it, by the name in its tree (of tied names
    the first).

    ``classes`` are the user's classes that the text names.
    """

    text: str
    tensors: dict[str, Tensor]
    classes: dict[str, Any] = field(default_factory=dict)


@without_collection()
def write(graph: Graph) -> ModuleSource:
    """Source of a class ``Model`` that computes ``graph`` and is called as the captured model
    was."""
    return _Writer(graph).write()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.source = graph, find_torch_source(graph)
        self.names: dict[Value, str] = {}
        self.taken = {*RESERVED, *_functions_of(graph)}
        self.symbols: dict[str, str] = {}  # of the graph -> the variable that holds it
        self.layers: dict[str, LayerCall] = {}
        self.layer_of: dict[Node, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.classes = Classes(self._fresh)
        # of the operator table and of bodies, in the order in which they are met
        self.functions: dict[str, str | Function] = {}

    def write(self) -> ModuleSource:
        self._find_layers()
        built = [
            self._written(statement(quote("super().__init__()"))),
            *map(self._written, self._tree()),
        ]
        itself = Parameters()
        itself.add("self")
        methods = [Function("__init__", itself, built), self._forward()]
        about = ast.Expr(ast.Constant(ABOUT.format(name=printable(self.graph.name))))
        classes = self.classes.statements
        meant = [
            about,
            *(s for f in self.functions.values() for s in _statements(f)),
            *classes,
            ast.ClassDef("Model", [quote("nn.Module").tree], [], [m.frame for m in methods], []),
        ]
        parsed_as_meant(self._text(about, methods, lines=False), meant, self.graph.name)
        return ModuleSource(self._text(about, methods), self.tensors, self.classes.held)

    def _text(self, about: ast.stmt, methods: list[Function], lines: bool = True) -> str:
        """The source; without its ``lines`` the frame around them, which is what is left to be
        compared, and without the header, whole statements that are the same in every module."""
        text = ast.unparse(ast.Module([about], [])) + "\n\n" + (HEADER if lines else "")
        text += "".join(
            f"{f if isinstance(f, str) else f.text(lines=lines)}\n\n"
            for f in self.functions.values()
        )
        classes = self.classes.statements
        text += "".join(f"{ast.unparse(ast.fix_missing_locations(s))}\n" for s in classes)
        text += "\n\n" if classes else ""
        made = [m.text("    ", lines) for m in methods]
        return text + "class Model(nn.Module):\n" + "\n".join(made)

    def _written(self, *statements: ast.stmt) -> Written:
        return Line(statements).checked(self.graph.name)

    def _fresh(self, wanted: str) -> str:
        """``wanted``, or one like it that is a free identifier."""
        own = identifier(wanted)
        while own in self.taken:
            own += "_"
        self.taken.add(own)
        return own

    # -- submodules --------------------------------------------------------------------------------

    def _find_layers(self) -> None:
        """The first call of a layer declares it; calls that differ from it read its weights by
        name."""
        for node in self.graph.nodes:
            layer = layer_for(node, self.graph)
            if layer is not None and self.layers.setdefault(layer.owner, layer) == layer:
                self.layer_of[node] = layer.owner

    def _tree(self) -> Iterator[ast.stmt]:
        """Statements that build the tree, in the order of the user's own state."""
        graph = self.graph
        state = self.source.state if self.source is not None else {}
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
            if name in graph.removed:
                continue
            weight, entry = by_name.get(name), state.get(name)
            held = held_at(weight, entry)
            layer = layer_at.get(name)
            inside = layer is not None or self._counts_batches(name)
            if layer is not None and layer.owner not in declared:
                declared.add(layer.owner)
                yield put(layer.owner, layer.code)
            if held.key in first:
                yield put(name, path_of(first[held.key]))
                continue
            first[held.key] = name
            self.tensors[name] = Tensor(
                held.load, held.trainable, tuple(held.shape), held.dtype, held.kind == "parameter"
            )
            if not inside:
                yield self._loose(name, held)
            elif held.kind == "parameter" and not held.trainable:
                fixed.append(name)
        for owner, layer in self.layers.items():
            if owner not in declared:
                yield put(owner, layer.code)
        for name in fixed:
            yield statement(quote("_0.requires_grad_(False)", path_of(name)))

    def _counts_batches(self, name: str) -> bool:
        owner, _, own = name.rpartition(".")
        return own == "num_batches_tracked" and owner in self.layers

    def _loose(self, name: str, held: StateEntry) -> ast.stmt:
        """A parameter or buffer that no layer declares."""
        plain = held.dtype == torch.float32
        made = call("torch.empty", [held.shape], {} if plain else {"dtype": held.dtype})
        if held.kind == "parameter":
            fixed = {} if held.trainable else {"requires_grad": False}
            return put(name, call("nn.Parameter", [made], fixed))
        return put(name, made, {} if held.persistent else {"persistent": False})

    # -- forward -----------------------------------------------------------------------------------

    def _variable(self, value: Value) -> str:
        """The variable that holds a value that is no weight."""
        if value not in self.names:
            self.names[value] = self._fresh(value.name)
        return self.names[value]

    def _name(self, value: Value) -> Code:
        return path_of(value.name) if isinstance(value, Weight) else variable(self._variable(value))

    def _size(self, size: Sym) -> Code:
        """A size that is known when the model runs."""
        return size_code(size, lambda symbol: variable(self._symbol(symbol)))

    def _symbol(self, symbol: str) -> str:
        if symbol not in self.symbols:
            self.symbols[symbol] = self._fresh(symbol)
        return self.symbols[symbol]

    def _show(self, node: Node, x: Any) -> Any:
        """An argument of ``node`` with code for operands, sizes and the device."""
        return substitute(x, lambda k: self._name(node.operand(k)), self._size, _DEVICE)

    def _forward(self, own: str = "forward", listed: bool = False) -> Function:
        """The function ``own`` that computes the graph; what it returns is ``listed`` for one that
        other code calls."""
        graph = self.graph
        lines: list[Written] = []
        if self.source is not None:
            signature = Signature(self.source, self._fresh)
            self.names.update((graph.inputs[i], own) for i, own in signature.names.items())
            parameters = signature.parameters
            lines += map(self._written, signature.statements)
        else:
            parameters = Parameters()
            parameters.add("self")
            for value in graph.inputs:
                parameters.add(self._variable(value))
        body: list[Written] = []
        last = _last_uses(graph)
        wanted = {name for node in graph.nodes for name in names_in(list(node.attrs.values()))}
        if self.source is not None:
            wanted.update(names_in([p for p in self.source.outputs if not isinstance(p, int)]))
        wanted.update(
            s.name
            for v in graph.inputs
            for s in v.type.shape or ()
            if isinstance(s, Sym) and any(s.name in guard.symbols for guard in graph.guards)
        )
        bound: set[str] = set()
        prologue = [self._written(s) for s in self._bind_sizes(graph.inputs, wanted, bound)]
        scope = ""
        for i, node in enumerate(graph.nodes):
            if node.origin.scope != scope and node.origin.scope:
                body.append(Line(comment=node.origin.scope).checked(graph.name))
            scope = node.origin.scope
            single = node in self.layer_of and dict(node.origin.layout).get("hx") is None
            dead = [
                self._variable(v) for v in last.get(i, ()) if not (single and v.producer is node)
            ]
            made = [self._line(node)]
            sizes = [v for v in node.outputs if v.dtype != "none"]
            made += self._bind_sizes(sizes, wanted, bound)
            body += map(self._written, made[:-1])
            body.append(self._written(made[-1], *([delete(dead)] if dead else [])))
        if wanted - bound:
            raise IrpruneError(
                f"the size {min(wanted - bound)} follows from no input",
                "",
                "give dynamic_shapes that name every dynamic size",
            )
        lines += map(self._written, self._fixed_sizes())
        prologue += map(self._written, self._guards())
        result = self._result().tree
        if listed:
            result = ast.List(result.elts if isinstance(result, ast.Tuple) else [result])
        if any(line.names_device for line in body):
            lines.append(self._written(assign(_DEVICE, self._device())))
        lines += [*prologue, *body, self._written(ast.Return(result))]
        return Function(own, parameters, lines)

    def _fixed_sizes(self) -> Iterator[ast.stmt]:
        """Statements that refuse sizes of inputs which the graph is not right for."""
        of: dict[int, list[Fixed]] = {}
        for one in self.graph.fixed:
            of.setdefault(one.input, []).append(one)
        for i, fixed in of.items():
            value = self.graph.inputs[i]
            said = [[f.dim, f.size, said_of(f.where)] for f in fixed]
            given = [value.name, self._name(value), value.rank, *said]
            yield statement(call("sized", given))

    def _guards(self) -> Iterator[ast.stmt]:
        """Statements that refuse sizes by which forward would go another way."""
        graph = self.graph

        def size(symbol: str) -> Code:
            position, dim = graph.places[symbol]
            shape = attribute(self._name(graph.inputs[position]), "shape")
            bare = graph.inputs[position].shape[dim]
            own = isinstance(bare, Sym) and bare.name == symbol
            return variable(self._symbol(symbol)) if own else subscript(shape, [literal(dim)])

        for guard in graph.guards:
            sides = [size_code(side, size) for side in (guard.left, guard.right)]
            about = []
            for symbol in guard.symbols:
                position, dim = graph.places[symbol]
                name = graph.inputs[position].name
                about.append([name, dim, size(symbol), graph.sizes[symbol]])
            why = f"{line_of(guard.where) or 'forward'} goes by {guard}"
            yield statement(call("holds", [quote(f"_0 {guard.relation} _1", *sides), why, *about]))

    def _device(self) -> Code:
        if self.graph.inputs:
            return attribute(self._name(self.graph.inputs[0]), "device")
        trained = any(w.kind == "parameter" for w in self.graph.weights.values())
        return quote("next(self.parameters()).device" if trained else "torch.device('cpu')")

    def _result(self) -> Code:
        graph, source = self.graph, self.source
        if source is None:
            made = [self._name(v) for v in graph.outputs]
            return made[0] if len(made) == 1 else tuple_of(made)
        leaves = (
            self._name(graph.outputs[p])
            if isinstance(p, int)
            else self._size(p[0])
            if isinstance(p[0], Sym)
            else literal(p[0])
            for p in source.outputs
        )
        return pack(source.out_spec, leaves, self.classes)

    def _bind_sizes(
        self, values: list[Value], wanted: set[str], bound: set[str]
    ) -> Iterator[ast.stmt]:
        """Statements for symbols that stand in the shapes of ``values``, alone or in ``k * s +
        c``."""
        for v in values:
            if v.producer is not None and isinstance(symbol := v.producer.attrs.get("symbol"), Sym):
                bound.add(symbol.name)
                yield assign(variable(self._symbol(symbol.name)), self._name(v))
        if wanted <= bound:
            return
        for exact in (True, False):
            for v in values:
                for d, s in enumerate(v.type.shape or ()):
                    if not isinstance(s, Sym):
                        continue
                    names = list(dict.fromkeys(names_in(s)))
                    if (
                        len(names) != 1
                        or (own := names[0]) in bound
                        or own not in wanted
                        or exact != (s.name == own)
                    ):
                        continue
                    size = subscript(attribute(self._name(v), "shape"), [literal(d)])
                    solved = solved_for(s, own, size)
                    if solved is not None:
                        bound.add(own)
                        yield assign(variable(self._symbol(own)), solved)

    def _line(self, node: Node) -> ast.stmt:
        names = [variable(self._variable(v)) for v in node.outputs]
        owner = self.layer_of.get(node)
        if owner is not None and dict(node.origin.layout).get("hx") is not None:
            return self._recurrent(node, owner, names)
        made = self._expression(node)
        if owner is None and (len(names) > 1 or _is_list(node)):
            return assign(tuple_of(names), made)
        return assign(names[0], made)

    def _recurrent(self, node: Node, owner: str, names: list[Code]) -> ast.stmt:
        state = dict(node.origin.layout)["hx"]
        held = [
            self._name(node.operand(k))
            for k in (state if isinstance(state, tuple) else (state,))
            if k is not None
        ]
        x, layer = self._name(node.operand(0)), path_of(owner)
        if len(held) == 2:
            found = tuple_of([names[0], tuple_of(names[1:3])])
            return assign(found, call(layer, [x, tuple_of(held)]))
        return assign(tuple_of(names[:2]), call(layer, [x, held[0]]))

    def _body(self, node: Node, kind: str, body: Body) -> Code:
        """A function of a body's own inputs; the source has the body as a function of its own
        inputs and those outside."""
        inner = _Writer(body.graph)
        inner.functions = self.functions
        own = self._fresh(f"{kind}_{node.out.name}")
        while own in self.functions:
            own += "_"
        self.functions[own] = ""
        made = inner._forward(own, listed=True)
        made.parameters.plain.remove("self")
        self.functions[own] = made
        outside = [self._name(node.operand(int(k))) for k in body.outer]
        given = Code(ast.Starred(variable("own").tree))
        return quote("lambda *own: _0", call(own, [given, *outside]))

    def _function(self, node: Node) -> Code | None:
        """The call of a function that the operator table has for ``node``; the emitted source
        carries it."""
        entry = lookup(node)
        own = _function_of(node)
        if entry is None or not isinstance(entry.run, CarriedFunction) or own is None:
            return None
        for needed in (*functions.HELPERS.get(own, ()), own):
            self.functions.setdefault(needed, inspect.getsource(getattr(functions, needed)))
        given = [
            self._name(v) if v is not None else None for v in node.inputs[: node.attrs.get("own")]
        ]
        attrs = {
            k: _DEVICE
            if k == "device"
            else self._body(node, k, v)
            if isinstance(v, Body)
            else self._show(node, torch_attribute(k, v))
            for k, v in node.attrs.items()
            if k not in ("own", "function")
        }
        if entry.trains and not node.attrs[entry.trains[-1]]:
            attrs[entry.trains[-1]] = _TRAINING
        made, named = entry.run.results, len(node.outputs)
        result = call(own, given, attrs)
        if made <= named:
            return result
        return subscript(result, [literal(0) if named == 1 else slice(None, named)])

    def _expression(self, node: Node) -> Code:
        if node in self.layer_of:
            entry = lookup(node)
            layer = entry.nn_layer if entry is not None else None
            data = layer.data(node) if layer is not None else 0
            return call(path_of(self.layer_of[node]), [self._name(node.operand(data))])
        try:
            bound = bind(node)
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
            training = literal(True) if on else _TRAINING
            given = [self._name(node.operand(0)), *options, training]
            return call(f"torch.{bound.target.split('.')[1]}", given)
        rank = node.operand(0).rank if node.has(0) and node.operand(0).type.shape is not None else 0
        named = {k: self._show(node, v) for k, v in bound.kwargs.items()}
        rate = node.attrs.get(f"training_{entry.rate}") if entry is not None else None
        if entry is not None and rate is not None:
            named[entry.rate] = quote("_0 if self.training else 0.0", rate)
        return spell(bound.target, [self._show(node, a) for a in bound.args], named, rank)


_DEVICE = variable(DEVICE)
_TRAINING = quote("self.training")


def _function_of(node: Node) -> str | None:
    """The function that the operator table has for ``node``, where it has one."""
    entry = lookup(node)
    if entry is None or aten_target(node):
        return None
    return entry.run.called_by(node) if isinstance(entry.run, CarriedFunction) else None


def _functions_of(graph: Graph) -> set[str]:
    found = {_function_of(node) for node in graph.nodes}
    return {own for f in found if f is not None for own in (*functions.HELPERS.get(f, ()), f)}


@lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[ast.stmt, ...]:
    """The statements of source that irprune's own files hold."""
    return tuple(ast.parse(text).body)


def _statements(function: str | Function) -> tuple[ast.stmt, ...]:
    return _parsed(function) if isinstance(function, str) else (function.frame,)


def _is_list(node: Node) -> bool:
    """Whether the operator gives a list of tensors, be it of one: ``unbind``, ``split`` and their
    like."""
    try:
        returns = overload(bind(node).target)._schema.returns
    except LookupError:
        return False
    return len(returns) == 1 and str(returns[0].type) == "List[Tensor]"


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
