"""Classes that join irprune by a decorator, of a contributor or of a user: what they must be, and
what their code raises as one line."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass

from irprune.errors import IrpruneError, gist, users_line

__all__ = ["check_dataclass", "check_methods", "check_name", "is_again", "is_users", "users_code"]

Methods = Mapping[str, Sequence[str]]


def check_name(kind: str, name: object) -> None:
    """Raises TypeError where the decorator ``kind`` is not given the ``name`` that a class joins
    by."""
    if not isinstance(name, str):
        raise TypeError(f'@{kind} takes a name: write @{kind}("my-{kind}")')


def check_methods(made: object, kind: str, name: str, methods: Methods) -> None:
    """Raises TypeError where ``made`` is no class with ``methods``, each with what it is called
    with. ``kind`` is the name of the decorator."""
    if not isinstance(made, type):
        raise TypeError(f"{kind} {name!r} is {made!r}, not a class")
    for method, arguments in methods.items():
        call = f"{method}({', '.join(('self', *arguments))})"
        own = getattr(made, method, None)
        if not callable(own):
            raise TypeError(f"{kind} {name!r}: {made.__name__} has no method {call}")
        try:
            inspect.signature(own).bind(made, *arguments)
        except TypeError as other:
            raise TypeError(
                f"{kind} {name!r}: {made.__name__}.{method}{inspect.signature(own)} is to be {call}"
            ) from other


def check_dataclass(made: type, kind: str, name: str, first: Sequence[str] = ()) -> None:
    """Raises TypeError where ``made`` is no frozen dataclass whose fields are those called
    ``first`` and then options, each with a default."""
    if not is_dataclass(made) or not getattr(made, "__dataclass_params__").frozen:  # noqa: B009 - set by the decorator
        raise TypeError(
            f"{kind} {name!r}: {made.__name__} is no frozen dataclass; "
            "write @dataclass(frozen=True) right above the class"
        )
    own = fields(made)
    if [f.name for f in own[: len(first)]] != list(first):
        found = ", ".join(f.name for f in own) or "none"
        raise TypeError(
            f"{kind} {name!r}: the first fields of {made.__name__} are to be {' and '.join(first)}; "
            f"it has {found}"
        )
    for f in own[len(first) :]:
        if f.default is MISSING and f.default_factory is MISSING:
            raise TypeError(
                f"{kind} {name!r}: the option {f.name} of {made.__name__} has no default"
            )


def is_again(made: object, known: object) -> bool:
    """Whether ``made`` is the class ``known``, declared once more: its cell of a notebook was run
    again, or its module loaded anew."""
    own, other = (
        tuple(getattr(x, name, None) for name in ("__module__", "__qualname__"))
        for x in (made, known)
    )
    return own == other


def is_users(thing: object) -> bool:
    """Whether the class of ``thing``, or the class that it is, is no part of irprune."""
    cls = thing if isinstance(thing, type) else type(thing)
    return cls.__module__.partition(".")[0] != "irprune"


@contextlib.contextmanager
def users_code(place: str, what: str) -> Iterator[None]:
    """What the user's own code raises becomes one line, with the line that it came from, or
    ``place`` where it passed through none."""
    try:
        yield
    except IrpruneError:
        raise
    except Exception as failed:
        raise IrpruneError(
            f"{what} fails: {gist(failed)}", users_line(failed) or place, "it must run on its own"
        ) from failed
