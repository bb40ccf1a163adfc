"""What the user is told when something cannot go on: one line that says what, where and what to
do."""

from __future__ import annotations

import sysconfig

__all__ = ["CheckFailed", "IrpruneError", "first_line", "gist", "printable", "users_line"]


class IrpruneError(Exception):
    """Bad input or a use that cannot be served; the command line exits with 2.

    ``what`` went wrong, ``where`` (file, user's line, weight), ``hint`` what to do about it.
    """

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        text = what + (f" ({where})" if where else "") + (f"; {hint}" if hint else "")
        super().__init__(printable(" ".join(text.split()), 4000))


class CheckFailed(IrpruneError):
    """A proof or a comparison found a difference; the command line exits with 1."""


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
