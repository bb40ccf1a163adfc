"""What the page of the public interface shows says what each argument is and what comes back."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "python.md"


def shown() -> Iterator[Any]:
    """The objects that the page names."""
    for path in re.findall(r"^::: (irprune[\w.]+)", PAGE.read_text(encoding="utf-8"), re.M):
        module, _, name = path.rpartition(".")
        yield getattr(importlib.import_module(module), name)


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, and public methods of classes, by the name that a user calls them by."""
    for thing in shown():
        if not inspect.isclass(thing):
            yield thing.__name__, thing
            continue
        for name, member in vars(thing).items():
            plain = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if not name.startswith("_") and inspect.isfunction(plain):
                yield f"{thing.__name__}.{name}", plain


@pytest.mark.parametrize(("name", "function"), list(functions()))
def test_arguments_and_results_are_described(name: str, function: Callable[..., Any]) -> None:
    text = inspect.getdoc(function) or ""
    named = [
        p
        for p, kind in inspect.signature(function).parameters.items()
        if p not in ("self", "cls") and kind.kind is not kind.VAR_KEYWORD
    ]
    if named:
        args = text.partition("Args:\n")[2]
        missing = [p for p in named if not re.search(rf"^\s+{p}( \(.*\))?:", args, re.M)]
        assert not missing, f"{name} does not say what these are: {missing}"
    if inspect.signature(function).return_annotation not in ("None", None):
        assert "Returns:" in text, f"{name} does not say what it returns"


@pytest.mark.parametrize(
    "thing", [t for t in shown() if dataclasses.is_dataclass(t)], ids=lambda t: t.__name__
)
def test_fields_are_described(thing: Any) -> None:
    args = (inspect.getdoc(thing) or "").partition("Attributes:\n")[2]
    missing = [
        f.name for f in dataclasses.fields(thing) if not re.search(rf"^\s+{f.name}:", args, re.M)
    ]
    assert not missing, f"{thing.__name__} does not say what these are: {missing}"
