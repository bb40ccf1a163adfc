"""Options as the command line spells them, for errors that name them."""

from __future__ import annotations

import ast
import re
import shlex

from irprune.api.declarations import OPTIONS
from irprune.api.option import Flag

__all__ = ["spell"]

_OTHERS = {"args": "--input", "kwargs": "--input", "trust": "--trust", "plan": "--plan"}


def spell(name: str, value: str = "") -> str:
    """The option called ``name`` in Python with ``value`` (as Python writes it; "" for none), as
    flags: ``spell("proof", "False")`` is ``--no-proof``."""
    flags = OPTIONS[name].flags if name in OPTIONS else ()
    if not flags:
        flag = _OTHERS.get(name, name.replace("_", "-"))
        return f"{flag} {value}" if value and name in ("args", "kwargs") else flag
    meant = [f.name for f in flags if f.constant is not None and value == repr(f.constant)]
    if meant:
        return meant[0]
    # Without a value, what says that there is none does not spell the option
    valued = [flag for flag in flags if flag.constant is None]
    told = [_spelled(flag, value) for flag in (flags if value else valued or flags)]
    fitting = [text for text in told if text]
    return " ".join(fitting) if fitting else flags[0].name


def _spelled(flag: Flag, value: str) -> str:
    """The flag with its value; "" where the value is not one of its."""
    if flag.constant is not None:
        return flag.name if not value or value == repr(flag.constant) else ""
    if flag.key:
        found = re.search(rf"'{flag.key}': '?([^',}}]+)", value)
        return f"{flag.name} {found[1]}" if found else ""
    if value.startswith("{"):
        pairs = ast.literal_eval(value)
        return " ".join(f"{flag.name} {shlex.quote(f'{k}={v}')}" for k, v in pairs.items())
    shown = value.strip("'\"")
    return f"{flag.name} {shown}" if shown and not shown.startswith("<") else flag.name
