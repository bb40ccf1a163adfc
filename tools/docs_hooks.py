"""What the pages of docs/ take from the code when they are built, so that it cannot go stale.

A page has a marker, ``<!-- generated: NAME -->``, and gets the text of that name below it."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

__all__ = ["GENERATED", "on_page_markdown"]

_MARKER = re.compile(r"<!-- generated: ([\w-]+) -->")


def _counts() -> str:
    """One sentence about the size of the operator table."""
    from irprune.ops.registry import load_table

    table = load_table().values()
    aten, onnx = (sum(len(getattr(entry, name)) for entry in table) for name in ("aten", "onnx"))
    return (
        f"The table has {len(table)} entries, which stand for {aten} ATen overloads and {onnx} "
        "ONNX operators."
    )


def _operators() -> str:
    """The entries by family, with the spellings of each."""
    from irprune.ops.registry import load_table

    table = load_table()
    families = Counter(entry.family for entry in table.values())
    lines = []
    for family in sorted(families):
        lines += [f"### {family}", "", "| operator | ATen | ONNX |", "| --- | --- | --- |"]
        for name, entry in sorted(table.items()):
            if entry.family == family:
                aten = ", ".join(f"`{a.removeprefix('aten.')}`" for a in entry.aten)
                onnx = ", ".join(f"`{o}`" for o in entry.onnx)
                lines.append(f"| `{name}` | {aten} | {onnx} |")
        lines.append("")
    return "\n".join(lines)


def _onnxruntime() -> str:
    """Every operator of onnxruntime's own domain: what it is read into, or why it freezes."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from irprune.ops.onnx.contrib import FREEZES
    from irprune.ops.onnx.importer import spelling_of

    schemas = {s.name for s in state.get_all_operator_schema() if s.domain == "com.microsoft"}
    kernels = {
        k.op_name
        for k in state.get_all_opkernel_def()
        if k.domain == "com.microsoft" and k.provider == "CPUExecutionProvider"
    }
    ruled, frozen = [], []
    for name in sorted(schemas):
        spelling = spelling_of(f"com.microsoft::{name}")
        if spelling is not None and name not in FREEZES:
            ruled.append(f"| `{name}` | {', '.join(f'`{e}`' for e in spelling.entries)} |")
        else:
            why = FREEZES[name][0] if name in FREEZES else "no rule"
            on_cpu = "yes" if name in kernels else "no"
            frozen.append(f"| `{name}` | {why} | {on_cpu} |")
    return "\n".join(
        [f"{len(ruled)} operators are ruled, {len(frozen)} freeze.", "", "## Ruled", ""]
        + ["| operator | read as |", "| --- | --- |", *ruled, "", "## Kept as they are", ""]
        + ["| operator | why | kernel for the CPU |", "| --- | --- | --- |", *frozen]
    )


def _passes() -> str:
    """The passes with their options, as ``irprune passes`` has them, and the pipelines."""
    from irprune.driver.passes import options_of
    from irprune.driver.registry import standard

    registry = standard()
    lines = ["| pipeline | passes |", "| --- | --- |"]
    lines += [
        f"| `{name}` | {', '.join(f'`{p}`' for p in passes)} |"
        for name, passes in registry.pipelines.items()
    ]
    for name, cls in sorted(registry.passes.items()):
        options = list(options_of(cls))
        said = ", ".join(f"`{o}`" for o in options) or "none"
        text = inspect.getdoc(inspect.getmodule(cls)) or ""
        lines += ["", f"## {name}", "", _rest(text), "", f"Options: {said}.", ""]
        lines += [f"::: {cls.__module__}.{cls.__qualname__}"]
    return "\n".join(lines)


def _criteria() -> str:
    """The criteria that may be named, with the documentation of each."""
    from irprune.criteria import criteria

    lines: list[str] = []
    for name, made in sorted(criteria().items()):
        text = inspect.getdoc(inspect.getmodule(made)) or ""
        lines += [f"## {name}", "", _rest(text), "", f"::: {made.__module__}.{made.__qualname__}"]  # type: ignore[attr-defined]
        lines += [""]
    return "\n".join(lines)


def _options() -> str:
    """The options of the public calls: what each says, its default, its flags, and who takes it."""
    from irprune.api.declarations import OPTIONS, REPLAY, STEP

    lines = [
        "| option | what it says | default | command line | taken by |",
        "| --- |" + " --- |" * 4,
    ]
    for name, option in OPTIONS.items():
        calls = ["`prune`", *(["`schedule`"] if name in STEP else [])]
        calls += ["`apply_plan`"] if name in REPLAY else []
        flags = ", ".join(dict.fromkeys(f"`{flag.name}`" for flag in option.flags))
        said = re.sub(r"``([^`]+)``", r"`\1`", f"{option.help} {option.more}".strip())
        cells = (f"`{name}`", said, option.default_text, flags, ", ".join(calls))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _rest(text: str) -> str:
    """A module's docstring as Markdown: ``::`` and what is indented behind it is code."""
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"::$", ":", text, flags=re.M)
    head, _, rest = text.partition(": ")
    return f"{rest[:1].upper()}{rest[1:]}" if re.fullmatch(r"[\w ,-]+", head) else text


GENERATED: dict[str, Callable[[], str]] = {
    "counts": _counts,
    "onnxruntime": _onnxruntime,
    "operators": _operators,
    "options": _options,
    "passes": _passes,
    "criteria": _criteria,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return _MARKER.sub(lambda found: GENERATED[found[1]](), markdown)
