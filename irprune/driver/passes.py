"""What a pass is, and its options.

A pass is a frozen dataclass with ``run(graph) -> PassResult``, which says what it did. Its name is
its class in kebab case, its fields are its options, the first sentence of its docstring is its
help."""

from __future__ import annotations

import builtins
import inspect
import re
import sys
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Protocol, Union, get_args, get_origin, runtime_checkable

from irprune.ir.graph import Graph
from irprune.passes.result import PassResult

__all__ = [
    "Pass",
    "PassOption",
    "fitted",
    "has_fitting_default",
    "help_of",
    "is_pass",
    "is_thawed",
    "name_of",
    "options_of",
    "type_name",
    "written",
]


@runtime_checkable
class Pass(Protocol):
    """What the driver runs."""

    def run(self, graph: Graph) -> PassResult:
        """Change ``graph`` and say what was done."""


def name_of(thing: Pass | type) -> str:
    """``FoldBatchNorm`` as ``fold-batch-norm``."""
    cls = thing if isinstance(thing, type) else type(thing)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def help_of(cls: type) -> str:
    """The first sentence of the docstring."""
    text = " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", text)[0].replace("``", "")


def is_pass(thing: object) -> bool:
    """Whether ``thing`` is the class of a pass: a frozen dataclass that runs."""
    if not (isinstance(thing, type) and is_dataclass(thing)):
        return False
    frozen: bool = getattr(thing, "__dataclass_params__").frozen  # noqa: B009 - set by the decorator
    return frozen and callable(getattr(thing, "run", None))


def is_thawed(cls: type) -> bool:
    """Whether ``cls`` was meant as a pass, since it has ``run(graph)``, and is no frozen
    dataclass."""
    run = vars(cls).get("run")
    if not inspect.isfunction(run) or is_pass(cls) or getattr(cls, "_is_protocol", False):
        return False
    return list(inspect.signature(run).parameters)[1:] == ["graph"]


def has_fitting_default(option: PassOption) -> bool:
    """Whether the default of an option that a pipeline string can give is of its type."""
    if option.required or not option.settable:
        return True
    given = option.default
    if isinstance(given, Collection) and not isinstance(given, (str, Mapping)):
        given = list(given)  # as a pipeline string has it
    try:
        fitted(dict(given) if isinstance(given, Mapping) else given, option.type)
    except TypeError:
        return False
    return True


@dataclass(frozen=True)
class PassOption:
    """A field of a pass. ``settable`` says whether a pipeline string can give it: numbers, texts,
    lists and mappings of them can be."""

    name: str
    type: Any
    default: Any
    settable: bool

    @property
    def required(self) -> bool:
        return self.default is MISSING

    def __str__(self) -> str:
        return f"{self.name}=..." if self.required else f"{self.name}={written(self.default)}"


def options_of(cls: type) -> dict[str, PassOption]:
    """The options of a pass by name, in the order of its fields."""
    hints = typing.get_type_hints(cls, localns=_Names(cls))
    out = {}
    for f in fields(cls):
        if not (f.init and f.compare):
            continue  # a result, not an option
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        out[f.name] = PassOption(f.name, hints[f.name], default, _is_plain(hints[f.name]))
    return out


class _Unknown:
    """Stands for a type that is imported for type checkers alone; no value fits it."""


class _Names(dict[str, Any]):
    """The names that annotations of a class are read with; ``_Unknown`` for those not there."""

    def __init__(self, cls: type) -> None:
        super().__init__({**vars(builtins), **vars(sys.modules[cls.__module__])})

    def __missing__(self, name: str) -> Any:
        return _Unknown


def _is_plain(hint: Any) -> bool:
    if hint in (Any, int, float, bool, str, NoneType):
        return True
    if get_origin(hint) in (Union, UnionType):
        return any(_is_plain(a) for a in get_args(hint) if a is not NoneType)
    if get_origin(hint) in (tuple, list, Sequence, Collection, dict, Mapping):
        return all(a is Ellipsis or _is_plain(a) for a in get_args(hint))
    return get_origin(hint) is Literal


def fitted(value: Any, hint: Any) -> Any:
    """``value`` as the field holds it; raises TypeError where it does not fit."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        for one in inside:
            try:
                return fitted(value, one)
            except TypeError:
                continue
        raise TypeError
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool, NoneType):
        if type(value) is not hint:
            raise TypeError
        return value
    if origin is Literal:
        if value not in inside:
            raise TypeError
        return value
    if origin in (tuple, list, Sequence, Collection):
        if not isinstance(value, list):
            raise TypeError
        made = [fitted(v, inside[0]) for v in value]
        return made if origin is list else tuple(made)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise TypeError
        return {fitted(k, inside[0]): fitted(v, inside[1]) for k, v in value.items()}
    raise TypeError


def type_name(hint: Any) -> str:
    """A type as it is shown."""
    if isinstance(hint, type) and not get_args(hint):
        return "text" if hint is str else hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "").replace("str", "text")


def written(value: Any) -> str:
    """A value as a pipeline writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return (
            value
            if re.fullmatch(r"[A-Za-z_][\w.-]*", value) and value not in ("true", "false", "none")
            else f'"{value}"'
        )
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{written(k)}={written(v)}' for k, v in value.items())}}}"
    return repr(value)
