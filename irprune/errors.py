"""What the user is told when something cannot go on: one line that says what, where and what to
do."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable

__all__ = [
    "CheckFailed",
    "IrpruneError",
    "OtherOutcome",
    "first_line",
    "gist",
    "option",
    "printable",
    "users_line",
]

_OPTION = re.compile("\x02(\\w+)(?:=([^\x03]*))?\x03")


def option(name: str, value: str = "") -> str:
    """How the text of an error names an option of the public calls: whoever shows the error spells
    it, Python as ``name=value``, the command line as the flag."""
    return f"\x02{name}{value and '='}{value}\x03"


def _python(name: str, value: str) -> str:
    return f"{name}={value}" if value else name


def _spelled(text: str, spell: Callable[[str, str], str]) -> str:
    return _OPTION.sub(lambda found: spell(found[1], found[2] or ""), text)


class IrpruneError(Exception):
    """Bad input or a use that cannot be served; the command line exits with 2.

    Where the parts name options by ``option``, ``str`` spells those as Python does.

    Args:
        what: What went wrong.
        where: The file, the line of the user's program or the weight that it is about; "" for none.
        hint: What to do about it; "" for nothing.
    """

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        self._parts = (what, where, hint)
        self.what, self.where, self.hint = (_spelled(part, _python) for part in self._parts)
        super().__init__(self.spelled(_python))

    def spelled(self, spell: Callable[[str, str], str]) -> str:
        """The error in one line.

        Args:
            spell: How an option is written, of its name and its value ("" where there is none).

        Returns:
            The parts, one after the other.
        """
        what, where, hint = (_spelled(part, spell) for part in self._parts)
        text = what + (f" ({where})" if where else "") + (f"; {hint}" if hint else "")
        return printable(" ".join(text.split()), 4000)


class CheckFailed(IrpruneError):
    """A proof or a comparison found a difference; the command line exits with 1."""


class OtherOutcome(IrpruneError, RuntimeError):
    """A graph was run on values by which forward would go another way than it was captured."""


def printable(text: str, limit: int = 200) -> str:
    """``text`` on one line without control characters, which are written as escapes; what passes
    ``limit`` characters is cut off. For names that come from a file and are shown to a person."""
    if len(text) > limit:
        text = text[:limit] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def gist(error: BaseException) -> str:
    """The kind of an error, its first telling line, and the first point of the list below it where
    there is one."""
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    told = [*lines[:1], *[x for x in lines[1:] if x.startswith("- ")][:1]]
    return f"{type(error).__name__}: {' '.join(x[:200] for x in told) or 'no message'}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something; the error's kind where none
    does."""
    return next((x.strip() for x in str(error).splitlines() if x.strip()), type(error).__name__)


_STANDARD = sysconfig.get_path("stdlib") + "/"


def users_line(error: BaseException) -> str:
    """``file:line`` of the deepest frame outside torch, irprune and the standard library that the
    error passed through, or ""."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        package = str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]
        standard = file.startswith(_STANDARD) and "site-packages" not in file
        if not (file.startswith("<") or standard or package in ("torch", "irprune")):
            found = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
