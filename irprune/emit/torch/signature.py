"""The call signature of the emitted ``forward``: the user's own parameters, opened into tensors and
packed into results.

Arguments and results may be nested: tuples, lists, dictionaries, named tuples, dataclasses, and the
output classes of model libraries. A class that the emitted source needs is imported, with a
stand-in of the same fields where it is not found."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from irprune.emit.torch.code import (
    Code,
    Parameters,
    assign,
    attribute,
    call,
    identifier,
    is_identifier,
    literal,
    quote,
    statement,
    subscript,
    tuple_of,
    variable,
)
from irprune.errors import IrpruneError
from irprune.frontend.torch.source import TorchSource

__all__ = ["Classes", "Signature", "pack", "paths"]

_EMPTY = inspect.Parameter.empty


class Classes:
    """The classes that the source names: ``statements`` that import or imitate them, and the
    classes themselves by name (``held``). ``fresh(name)`` reserves a name."""

    def __init__(self, fresh: Callable[[str], str]) -> None:
        self.fresh = fresh
        self.statements: list[ast.stmt] = []
        self.held: dict[str, Any] = {}

    def name(self, kind: type, fields: Sequence[str]) -> Code:
        """The name of ``kind`` in the source; ``fields`` are what a stand-in must have."""
        for name, held in self.held.items():
            if held is kind:
                return variable(name)
        name = self.fresh(kind.__name__)
        self.held[name] = kind
        path = kind.__qualname__
        importable = (
            is_identifier(path)
            and all(map(is_identifier, kind.__module__.split(".")))
            and getattr(sys.modules.get(kind.__module__), path, None) is kind
        )
        maker = "collections.namedtuple" if issubclass(kind, tuple) else "record"
        stand_in = assign(variable(name), call(maker, [kind.__name__, list(fields)]))
        if importable:
            alias = ast.alias(path, None if name == path else name)
            otherwise = ast.ExceptHandler(variable("ImportError").tree, None, [stand_in])
            found = ast.ImportFrom(kind.__module__, [alias], 0)
            self.statements.append(ast.Try([found], [otherwise], [], []))
        else:
            self.statements.append(stand_in)
        return variable(name)


class Signature:
    """Parameters of ``forward`` and the statements that open them.

    ``parameters`` begin with ``self``, ``statements`` open them, ``names`` maps a graph input (by
    index) to its name. ``fresh(name)`` reserves a name in the function."""

    def __init__(self, source: TorchSource, fresh: Callable[[str], str]) -> None:
        self.source = source
        self.fresh = fresh
        self.parameters = Parameters()
        self.statements: list[ast.stmt] = []
        self.names: dict[int, str] = {}
        args, kwargs = pytree_children(source.in_spec)
        at = 0
        self.args: list[tuple[Any, int]] = []  # spec and where its leaves begin
        self.kwargs: dict[str, tuple[Any, int]] = {}
        for spec in pytree_children(args):
            self.args.append((spec, at))
            at += spec.num_leaves
        for name, spec in zip(kwargs.context or (), pytree_children(kwargs), strict=True):
            self.kwargs[name] = (spec, at)
            at += spec.num_leaves
        self.parameters.add("self")
        self._add_parameters()

    def _add_parameters(self) -> None:
        """The user's parameters as far as the recorded call used them, the others with their
        defaults."""
        sig = self.source.signature
        if sig is None:
            self._add_recorded(self.source.names)
            return
        positional, keyword = list(self.args), dict(self.kwargs)
        given = self.parameters
        for p in sig.parameters.values():
            if p.kind is p.VAR_POSITIONAL and positional:
                for i, place in enumerate(positional):
                    self._given(f"{p.name}_{i}", place)
                positional = []
            elif p.kind is p.VAR_POSITIONAL and keyword:
                given.star(self.fresh(p.name))
            elif p.kind is p.VAR_KEYWORD:
                rest = [name for name in keyword if name not in sig.parameters]
                if rest and not given.starred:
                    given.star()
                for name in rest:
                    self._given(name, keyword[name])
            elif p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                if p.kind is p.KEYWORD_ONLY and not given.starred:
                    given.star()
                own = keyword.get(p.name) or (
                    positional.pop(0) if positional and p.kind is not p.KEYWORD_ONLY else None
                )
                if own is not None:
                    self._given(p.name, own)
                elif p.default is not _EMPTY and _printable(p.default):
                    self._unused(p)

    def _add_recorded(self, names: Sequence[str]) -> None:
        """Without the user's function: the names of the recorded call, keywords after a star."""
        for i, place in enumerate(self.args):
            self._given(names[i] if i < len(names) else f"x{i}", place)
        if self.kwargs:
            self.parameters.star()
        for name, place in self.kwargs.items():
            self._given(name, place)

    def _given(self, name: str, place: tuple[Any, int]) -> None:
        own = self.fresh(name)
        needs_default = bool(self.parameters.defaults) and not self.parameters.starred
        if needs_default and self._constant(place) is None:
            self.statements.append(statement(call("require", [own, variable(own)])))
        self._open(*place, variable(own), own)
        constant = self._constant(place)
        if constant is not None:  # what the recorded call said may be left out
            self.parameters.add(own, constant)
        else:
            self.parameters.add(own, literal(None) if needs_default else None)

    def _constant(self, place: tuple[Any, int]) -> Code | None:
        """The value of an argument that is a constant of the recorded call; None for any other."""
        spec, at = place
        leaf = self.source.inputs[at] if spec.is_leaf() else 0
        return None if isinstance(leaf, int) or not _printable(leaf[0]) else literal(leaf[0])

    def _unused(self, p: inspect.Parameter) -> None:
        """A parameter that the recorded call left out: only its default is accepted."""
        own = self.fresh(p.name)
        self.statements.append(statement(call("expect", [own, variable(own), p.default])))
        self.parameters.add(own, literal(p.default))

    def _open(self, spec: Any, at: int, expression: Code, name: str) -> int:
        """Statements that give every tensor below ``expression`` a name; constants are checked.
        Returns where the next leaf stands."""
        if spec.is_leaf():
            place = self.source.inputs[at]
            if isinstance(place, int):
                own = name if expression == variable(name) else self.fresh(name)
                if variable(own) != expression:
                    self.statements.append(assign(variable(own), expression))
                self.names[place] = own
            elif _printable(place[0]):
                self.statements.append(statement(call("expect", [name, expression, place[0]])))
            return at + 1
        for child, (step, suffix) in zip(pytree_children(spec), _steps(spec), strict=True):
            at = self._open(child, at, step(expression), identifier(f"{name}_{suffix}"))
        return at


def pytree_children(spec: Any) -> list[Any]:
    """The specs below ``spec``."""
    return list(spec.children() if hasattr(spec, "children") else spec.children_specs)


def _printable(x: Any) -> bool:
    return x is None or isinstance(x, (bool, int, float, str))


_Step = Callable[[Code], Code]


def _steps(spec: Any) -> Iterator[tuple[_Step, str]]:
    """For each child of ``spec``: the code that reaches it from that of the container, and what its
    name ends with."""
    kind, count = spec.type, len(pytree_children(spec))
    if kind in (dict, OrderedDict, defaultdict):
        keys = spec.context[1] if kind is defaultdict else spec.context
        yield from ((partial(_item, key=k), _word(k)) for k in keys)
    elif kind in (tuple, list):
        yield from ((partial(_item, key=i), str(i)) for i in range(count))
    elif _fields(spec):
        yield from ((partial(_field, name=k), k) for k in _fields(spec))
    else:
        yield from ((partial(_registered, key=i), str(i)) for i in range(count))


def _item(of: Code, key: Any) -> Code:
    return subscript(of, [literal(key)])


def _field(of: Code, name: str) -> Code:
    return attribute(of, name) if is_identifier(name) else call("getattr", [of, name])


def _registered(of: Code, key: int) -> Code:
    """A child of a container that only torch's pytree registry knows."""
    registered = "torch.utils._pytree.SUPPORTED_NODES[type(_0)].flatten_fn(_0)[0][_1]"
    return quote(registered, of, key)


def _word(key: Any) -> str:
    return "".join(c if c.isalnum() else "_" for c in str(key))


def _fields(spec: Any) -> list[str]:
    """Attribute names of the children of a named tuple, a dataclass or a dictionary with
    attributes; none for other classes."""
    kind: Any = spec.type
    if kind is namedtuple or (
        isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")
    ):
        own: Any = kind if isinstance(kind, type) else spec.context
        return list(own._fields)
    if (
        isinstance(kind, type)
        and issubclass(kind, Mapping)
        and isinstance(spec.context, (list, tuple))
    ):
        return [str(k) for k in spec.context]
    if (
        dataclasses.is_dataclass(kind)
        and isinstance(spec.context, list)
        and spec.context
        and isinstance(spec.context[0], list)
    ):
        return [str(k) for k in spec.context[0]]
    return []


def _absent(spec: Any) -> list[str]:
    """The fields of a registered dataclass that were None."""
    held = spec.context
    two_lists = isinstance(held, list) and len(held) == 2 and all(isinstance(h, list) for h in held)
    return list(held[1]) if dataclasses.is_dataclass(spec.type) and two_lists else []


def pack(spec: Any, outputs: Iterator[Code], classes: Classes) -> Code:
    """The expression of the result; ``outputs`` yields the code of each leaf in order."""
    if spec.is_leaf():
        return next(outputs)
    parts = [pack(child, outputs, classes) for child in pytree_children(spec)]
    kind = spec.type
    if kind is tuple:
        return tuple_of(parts)
    if kind is list:
        return literal(parts)
    if kind in (dict, defaultdict):
        keys = spec.context if kind is dict else spec.context[1]
        return Code(ast.Dict([literal(k).tree for k in keys], [v.tree for v in parts]))
    if kind is OrderedDict:
        pairs = zip(map(literal, spec.context), parts, strict=True)
        return call("collections.OrderedDict", [[tuple_of(pair) for pair in pairs]])
    fields = _fields(spec)
    if fields:
        own = spec.context if isinstance(spec.context, type) else kind
        absent = _absent(spec)
        held = dict(zip(fields, parts, strict=True)) | dict.fromkeys(absent)
        return call(classes.name(own, [*fields, *absent]), (), held)
    return _other(spec, parts, classes)


def _other(spec: Any, parts: Sequence[Code], classes: Classes) -> Code:
    """A container known only to torch's pytree registry."""
    if not _replays(spec.context):
        raise IrpruneError(
            f"a result of type {spec.type.__qualname__} cannot be written as source",
            "",
            "return tuples, lists, dictionaries, named tuples or dataclasses from forward",
        )
    context = Code(ast.parse(repr(spec.context), mode="eval").body)  # a literal, by _replays
    return quote(
        "torch.utils._pytree.SUPPORTED_NODES[_0].unflatten_fn(_1, _2)",
        classes.name(spec.type, []),
        list(parts),
        context,
    )


def _replays(x: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(x)) == x)
    except (ValueError, SyntaxError):
        return False


def paths(spec: Any, prefix: str = "") -> Iterator[str]:
    """A readable name for each leaf below ``spec``: ``logits``, ``hidden_0``; the prefix alone for
    a bare leaf."""
    if spec.is_leaf():
        yield prefix
        return
    for child, (_, suffix) in zip(pytree_children(spec), _steps(spec), strict=True):
        yield from paths(child, f"{prefix}_{suffix}" if prefix else suffix)
