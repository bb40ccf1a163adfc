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
from typing import Any

from irprune.emit.torch.spelling import literal
from irprune.errors import IrpruneError
from irprune.frontend.torch.source import TorchSource

__all__ = ["Classes", "Signature", "pack", "paths"]

_EMPTY = inspect.Parameter.empty


@dataclasses.dataclass
class Classes:
    """The classes that the source names: ``lines`` that import or imitate them, and the classes
    themselves by name."""

    lines: list[str] = dataclasses.field(default_factory=list)
    held: dict[str, Any] = dataclasses.field(default_factory=dict)

    def name(self, kind: type, fields: Sequence[str]) -> str:
        """The name of ``kind`` in the source; ``fields`` are what a stand-in must have."""
        for name, held in self.held.items():
            if held is kind:
                return name
        name = kind.__name__
        while name in self.held:
            name += "_"
        self.held[name] = kind
        path = kind.__qualname__
        importable = (
            "." not in path and getattr(sys.modules.get(kind.__module__), path, None) is kind
        )
        stand_in = f"{name} = record({kind.__name__!r}, {list(fields)!r})"
        if issubclass(kind, tuple):
            stand_in = f"{name} = collections.namedtuple({kind.__name__!r}, {list(fields)!r})"
        if importable:
            alias = f" as {name}" if name != path else ""
            self.lines += [
                "try:",
                f"    from {kind.__module__} import {path}{alias}",
                "except ImportError:",
                f"    {stand_in}",
            ]
        else:
            self.lines.append(stand_in)
        return name


class Signature:
    """Parameters of ``forward`` and the statements that open them.

    ``head`` is what stands between the parentheses after ``self``, ``lines`` are the statements,
    ``names`` maps a graph input (by index) to its name. ``fresh(name)`` reserves a name in the
    function."""

    def __init__(self, source: TorchSource, fresh: Callable[[str], str]) -> None:
        self.source = source
        self.fresh = fresh
        self.lines: list[str] = []
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
        self.head = ", ".join(self._parameters())

    def _parameters(self) -> Iterator[str]:
        """The user's parameters as far as the recorded call used them, the others with their
        defaults."""
        sig = self.source.signature
        if sig is None:
            yield from self._recorded(self.source.names)
            return
        positional, keyword = list(self.args), dict(self.kwargs)
        starred = optional = False
        for p in sig.parameters.values():
            if p.kind is p.VAR_POSITIONAL and positional:
                for i, place in enumerate(positional):
                    yield self._given(f"{p.name}_{i}", place)
                positional = []
            elif p.kind is p.VAR_POSITIONAL and keyword:
                starred = True
                yield f"*{self.fresh(p.name)}"
            elif p.kind is p.VAR_KEYWORD:
                rest = [name for name in keyword if name not in sig.parameters]
                if rest and not starred:
                    starred = True
                    yield "*"
                for name in rest:
                    yield self._given(name, keyword[name])
            elif p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                if p.kind is p.KEYWORD_ONLY and not starred:
                    starred = True
                    yield "*"
                own = keyword.get(p.name) or (
                    positional.pop(0) if positional and p.kind is not p.KEYWORD_ONLY else None
                )
                if own is not None:
                    yield self._given(p.name, own, needs_default=optional and not starred)
                elif p.default is not _EMPTY and _printable(p.default):
                    optional = True
                    yield self._unused(p)

    def _recorded(self, names: Sequence[str]) -> Iterator[str]:
        """Without the user's function: the names of the recorded call, keywords after a star."""
        for i, place in enumerate(self.args):
            yield self._given(names[i] if i < len(names) else f"x{i}", place)
        if self.kwargs:
            yield "*"
        for name, place in self.kwargs.items():
            yield self._given(name, place)

    def _given(self, name: str, place: tuple[Any, int], needs_default: bool = False) -> str:
        own = self.fresh(name)
        if needs_default:
            self.lines.append(f"require({own!r}, {own})")
        self._open(*place, own, own)
        return f"{own}=None" if needs_default else own

    def _unused(self, p: inspect.Parameter) -> str:
        """A parameter that the recorded call left out: only its default is accepted."""
        own = self.fresh(p.name)
        self.lines.append(f"expect({own!r}, {own}, {literal(p.default)})")
        return f"{own}={literal(p.default)}"

    def _open(self, spec: Any, at: int, expression: str, name: str) -> int:
        """Statements that give every tensor below ``expression`` a name; constants are checked.
        Returns where the next leaf stands."""
        if spec.is_leaf():
            place = self.source.inputs[at]
            if isinstance(place, int):
                own = expression if expression == name else self.fresh(name)
                if own != expression:
                    self.lines.append(f"{own} = {expression}")
                self.names[place] = own
            elif _printable(place[0]):
                self.lines.append(f"expect({name!r}, {expression}, {literal(place[0])})")
            return at + 1
        for child, (path, suffix) in zip(pytree_children(spec), _steps(spec), strict=True):
            at = self._open(child, at, path.format(expression), f"{name}_{suffix}")
        return at


def pytree_children(spec: Any) -> list[Any]:
    """The specs below ``spec``."""
    return list(spec.children() if hasattr(spec, "children") else spec.children_specs)


def _printable(x: Any) -> bool:
    return x is None or isinstance(x, (bool, int, float, str))


def _steps(spec: Any) -> Iterator[tuple[str, str]]:
    """For each child of ``spec``: how it is reached (``{}`` stands for the container) and what its
    name ends with."""
    kind, count = spec.type, len(pytree_children(spec))
    if kind in (dict, OrderedDict, defaultdict):
        keys = spec.context[1] if kind is defaultdict else spec.context
        yield from ((f"{{}}[{k!r}]", _word(k)) for k in keys)
    elif kind in (tuple, list):
        yield from ((f"{{}}[{i}]", str(i)) for i in range(count))
    elif _fields(spec):
        yield from ((f"{{}}.{k}", k) for k in _fields(spec))
    else:
        where = "torch.utils._pytree.SUPPORTED_NODES[type({})].flatten_fn({})[0]"
        yield from ((f"{where.replace('{}', '{0}')}[{i}]", str(i)) for i in range(count))


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


def pack(spec: Any, outputs: Iterator[str], classes: Classes) -> str:
    """The expression of the result; ``outputs`` yields the code of each leaf in order."""
    if spec.is_leaf():
        return next(outputs)
    parts = [pack(child, outputs, classes) for child in pytree_children(spec)]
    kind = spec.type
    if kind is tuple:
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    if kind is list:
        return f"[{', '.join(parts)}]"
    if kind is dict:
        return (
            "{" + ", ".join(f"{k!r}: {v}" for k, v in zip(spec.context, parts, strict=True)) + "}"
        )
    if kind is OrderedDict:
        return f"collections.OrderedDict([{', '.join(f'({k!r}, {v})' for k, v in zip(spec.context, parts, strict=True))}])"
    if kind is defaultdict:
        return (
            "{"
            + ", ".join(f"{k!r}: {v}" for k, v in zip(spec.context[1], parts, strict=True))
            + "}"
        )
    fields = _fields(spec)
    if fields:
        own = spec.context if isinstance(spec.context, type) else kind
        absent = _absent(spec)
        named = [f"{k}={v}" for k, v in zip(fields, parts, strict=True)] + [
            f"{k}=None" for k in absent
        ]
        return f"{classes.name(own, [*fields, *absent])}({', '.join(named)})"
    return _other(spec, parts, classes)


def _other(spec: Any, parts: Sequence[str], classes: Classes) -> str:
    """A container known only to torch's pytree registry."""
    if not _replays(spec.context):
        raise IrpruneError(
            f"a result of type {spec.type.__qualname__} cannot be written as source",
            "",
            "return tuples, lists, dictionaries, named tuples or dataclasses from forward",
        )
    name = classes.name(spec.type, [])
    return f"torch.utils._pytree.SUPPORTED_NODES[{name}].unflatten_fn([{', '.join(parts)}], {spec.context!r})"


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
