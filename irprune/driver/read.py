"""The text of a pipeline: ``name{option=value, other=[1, 2]},name``.

Values are numbers, ``true``, ``false``, ``none``, words, texts in quotes, lists ``[a, b]`` and
mappings ``{key=value}``; an option without a value is ``true``. Options are separated by commas or
blanks, passes by commas."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from irprune.errors import IrpruneError

__all__ = ["PassCall", "read_pipeline"]

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.*?/-])")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'')
_WORD = re.compile(r"[^\s,=\[\]{}\"']+")
_CONSTANTS = {
    "true": True,
    "false": False,
    "none": None,
    "True": True,
    "False": False,
    "None": None,
}


@dataclass(frozen=True)
class PassCall:
    """A pass by name, with the options given to it."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


def read_pipeline(text: str) -> list[PassCall]:
    """The calls that ``text`` consists of. Raises IrpruneError with the place that cannot be
    read."""
    return _Reader(text).pipeline()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def fail(self, what: str) -> NoReturn:
        rest = self.text[self.at : self.at + 20]
        raise IrpruneError(
            f"{what} expected at {rest!r}" if rest else f"{what} expected at the end",
            f"pipeline {self.text!r}",
            "write NAME,NAME{option=value, ...},NAME",
        )

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def sign(self, sign: str) -> bool:
        """Whether ``sign`` comes next; it is passed over then."""
        self._skip()
        if self.text.startswith(sign, self.at):
            self.at += len(sign)
            return True
        return False

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self._skip()
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def pipeline(self) -> list[PassCall]:
        calls = []
        while True:
            found = self.match(_NAME)
            if found is None:
                self.fail("the name of a pass")
            calls.append(PassCall(found[0], self.mapping() if self.sign("{") else {}))
            if not self.sign(","):
                break
        self._skip()
        if self.at < len(self.text):
            self.fail("',' or the end")
        return calls

    def mapping(self) -> dict[str, Any]:
        """``key=value`` up to the closing brace, which is passed over."""
        out: dict[str, Any] = {}
        while not self.sign("}"):
            key = self.key()
            if key in out:
                raise IrpruneError(
                    f"{key!r} is given twice", f"pipeline {self.text!r}", "give it once"
                )
            out[key] = self.value() if self.sign("=") else True
            self.sign(",")
        return out

    def key(self) -> str:
        if (found := self.match(_STRING)) is not None:
            return _unquoted(found)
        if (found := self.match(_WORD)) is not None:
            return found[0]
        self.fail("an option or '}'")

    def value(self) -> Any:
        if self.sign("["):
            items = []
            while not self.sign("]"):
                items.append(self.value())
                self.sign(",")
            return items
        if self.sign("{"):
            return self.mapping()
        if (found := self.match(_STRING)) is not None:
            return _unquoted(found)
        if (found := self.match(_NUMBER)) is not None:
            return int(found[0]) if re.fullmatch(r"[-+]?\d+", found[0]) else float(found[0])
        if (found := self.match(_WORD)) is not None:
            return _CONSTANTS.get(found[0], found[0])
        self.fail("a value")


def _unquoted(found: re.Match[str]) -> str:
    text = found[1] if found[1] is not None else found[2]
    return re.sub(r"\\(.)", r"\1", text)
