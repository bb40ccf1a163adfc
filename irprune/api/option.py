"""How an option of the public calls is declared: once, as ``Annotated[type, Option(...)]`` in a
TypedDict (``irprune.api.declarations``).

The signatures, their docstrings, the checks, the flags of the command line and what the passes are
made with all follow from there."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, get_type_hints

from irprune.base.near import meant
from irprune.errors import IrpruneError, option

__all__ = ["Flag", "Option", "declared", "documented"]

F = TypeVar("F", bound=Callable[..., Any])
WIDTH = 100  # of a docstring


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Flag:
    """How the command line spells an option, or one entry of an option that is a mapping.

    Args:
        name: With its dashes.
        type: What stands behind it: a number, a text, or one of the texts of a tuple.
        constant: For a switch, which has nothing behind it: the value that it gives.
        key: The entry of the mapping that it gives.
        help: Where it is not the option's own.
        metavar: What the help writes in place of the value.
        multiple: Whether it may be given again; ``read`` then takes a tuple of what was given.
        read: Makes the option's value of what was given. Raises IrpruneError.
    """

    name: str
    type: type | tuple[str, ...] = str
    constant: Any = None
    key: str = ""
    help: str = ""
    metavar: str | None = None
    multiple: bool = False
    read: Callable[[Any], Any] = _same


@dataclass(frozen=True)
class Option:
    """One option.

    Args:
        default: Its value where it is not given.
        help: What it says, in a sentence; for docstrings and the command line.
        more: What a docstring says further.
        otherwise: Its default in words, where it depends on other options.
        fits: Whether a value is of the kind that the option takes.
        takes: What it takes, in words, for the error.
        settle: Makes the final value of a value that fits and of the options settled before it, in
            the order of ``irprune.api.declarations.OPTIONS``.
        against: Options that it cannot be given together with.
        to: The pass whose field of the same name it is: ``score``, ``choose`` or none.
        flags: How the command line spells it; none where it cannot.
        name: Set by ``declared``.
        type: Set by ``declared``.
    """

    default: Any
    help: str
    more: str = ""
    otherwise: str = ""
    fits: Callable[[Any], bool] = lambda value: True
    takes: str = ""
    settle: Callable[[Any, Mapping[str, Any]], Any] = lambda value, settled: value
    against: tuple[str, ...] = ()
    to: str = ""
    flags: tuple[Flag, ...] = ()
    name: str = field(default="", kw_only=True)
    type: Any = field(default=None, kw_only=True)

    def check(self, value: Any) -> None:
        """Raises IrpruneError for a value of another kind than the option takes."""
        if not self.fits(value):
            names = [x for f in self.flags if isinstance(f.type, tuple) for x in f.type]
            hint = meant(str(value), names, f"it takes {self.takes}")
            raise IrpruneError(f"{option(self.name)} is {value!r}", "", hint)

    @property
    def default_text(self) -> str:
        """The default in words; "" where there is nothing to say of it."""
        if self.otherwise or self.default is None or self.default in ((), {}):
            return self.otherwise
        return f'"{self.default}"' if isinstance(self.default, str) else str(self.default)

    def __str__(self) -> str:
        default = f"Default: {self.default_text}." if self.default_text else ""
        text = " ".join(filter(None, (self.help, self.more, default)))
        kind = re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(self.type))
        return f"{self.name} ({kind}): {text}"


def declared(cls: type) -> dict[str, Option]:
    """The options that the TypedDict ``cls`` declares, its bases' first. Raises TypeError for one
    that is not declared by an ``Option``, or whose default is none of what it takes."""
    out = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        own = [x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Option)]
        if len(own) != 1:
            raise TypeError(f"option {name} is declared as Annotated[type, Option(default, help)]")
        if not own[0].fits(own[0].default):
            raise TypeError(
                f"option {name}: its default is {own[0].default!r}; it takes {own[0].takes}"
            )
        out[name] = replace(own[0], name=name, type=hint.__origin__)
    return out


def documented(options: Mapping[str, Option]) -> Callable[[F], F]:
    """Give a function that ends in ``**options`` a signature and a docstring that name ``options``
    one by one; the line of its docstring that begins with ``**options`` makes room for theirs."""

    def complete(function: F) -> F:
        own = inspect.signature(function)
        fixed = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        named = [
            inspect.Parameter(
                o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=o.type
            )
            for o in options.values()
        ]
        function.__signature__ = own.replace(parameters=[*fixed, *named])  # type: ignore[attr-defined]
        lines = []
        for line in inspect.cleandoc(function.__doc__ or "").splitlines():
            if line.strip().startswith("**options"):
                room = " " * (len(line) - len(line.lstrip()))
                for option in options.values():
                    lines += textwrap.wrap(
                        str(option),
                        WIDTH,
                        initial_indent=room,
                        subsequent_indent=room + "    ",
                        break_long_words=False,
                        break_on_hyphens=False,
                    )
            else:
                lines.append(line)
        function.__doc__ = "\n".join(lines)
        return function

    return complete
