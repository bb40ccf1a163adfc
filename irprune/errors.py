"""What the user is told when something cannot go on: one line that says what, where and what to do."""

from __future__ import annotations

__all__ = ["CheckFailed", "IrpruneError"]


class IrpruneError(Exception):
    """Bad input or a use that cannot be served; the command line exits with 2.

    ``what`` went wrong, ``where`` (file, user's line, weight), ``hint`` what to do about it.
    """

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what + (f" ({where})" if where else "") + (f"; {hint}" if hint else ""))


class CheckFailed(IrpruneError):
    """A proof or a comparison found a difference; the command line exits with 1."""
