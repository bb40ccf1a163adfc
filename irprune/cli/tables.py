"""``irprune ops`` and ``irprune passes``: what is supported, from the tables themselves."""

from __future__ import annotations

import fnmatch
from typing import Any

import click

from irprune.cli.options import common, show_json, shown
from irprune.driver.passes import help_of, options_of, written
from irprune.driver.registry import standard
from irprune.errors import IrpruneError
from irprune.ops.registry import load_table

__all__ = ["ops_command", "passes_command"]


@click.command("ops")
@click.argument("pattern", default="*")
@common
def ops_command(pattern: str, json_: bool) -> None:
    """List the operators whose name or spelling matches PATTERN (all by default), by family.

    A spelling is what the operator is called in a model: an ATen overload or an ONNX operator.
    """
    rows: list[dict[str, Any]] = [
        {
            "name": op.name,
            "family": op.family,
            "aten": [t.removeprefix("aten.") for t in op.aten],
            "onnx": list(op.onnx),
            "rule": op.signature.text if op.signature is not None else "",
            "help": op.doc,
        }
        for op in sorted(load_table().values(), key=lambda op: (op.family, op.name))
    ]
    rows = [r for r in rows if any(fnmatch.fnmatch(x, pattern) for x in _spellings(r))]
    if not rows:
        raise IrpruneError(
            f"no operator matches {pattern!r}",
            "",
            "`irprune ops` lists them all; a pattern is written as '*conv*'",
        )
    if json_:
        show_json({"operators": rows})
        return
    for family in dict.fromkeys(r["family"] for r in rows):
        shown(f"{family}")
        for r in rows:
            if r["family"] == family:
                shown(
                    f"  {r['name']:<28} {_joined('aten', r['aten'])}{_joined('onnx', r['onnx'])}".rstrip()
                )
                if r["rule"]:
                    shown(f"      {r['rule']}")
    count = sum(len(r["aten"]) for r in rows), sum(len(r["onnx"]) for r in rows)
    shown(f"\n{len(rows)} operators, {count[0]} ATen overloads, {count[1]} ONNX operators")


def _spellings(row: dict[str, Any]) -> list[str]:
    return [row["name"], *row["aten"], *(f"aten.{t}" for t in row["aten"]), *row["onnx"]]


def _joined(kind: str, names: list[str]) -> str:
    return f"{kind}: {' '.join(names)}  " if names else ""


@click.command("passes")
@click.option(
    "--load",
    "files",
    multiple=True,
    metavar="FILE.py",
    help="Take in the passes of a Python file; may be given again.",
)
@common
def passes_command(files: tuple[str, ...], json_: bool) -> None:
    """List the passes with their options, and the pipelines made of them."""
    registry = standard(files)
    rows: list[dict[str, Any]] = []
    for name, cls in sorted(registry.passes.items()):
        options = options_of(cls)
        rows.append(
            {
                "name": name,
                "help": help_of(cls),
                "source": registry.sources[name],
                "from_python": any(o.required and not o.settable for o in options.values()),
                "options": {
                    o.name: None if o.required else written(o.default)
                    for o in options.values()
                    if o.settable
                },
            }
        )
    if json_:
        show_json(
            {"passes": rows, "pipelines": {k: list(v) for k, v in registry.pipelines.items()}}
        )
        return
    for r in rows:
        marks = [
            x
            for x in (
                "made in Python" if r["from_python"] else "",
                f"from {r['source']}" if r["source"] != "irprune" else "",
            )
            if x
        ]
        shown(f"{r['name']}{f'  ({chr(44).join(marks)})' if marks else ''}\n    {r['help']}")
        if r["options"]:
            shown(
                f"    {' '.join(f'{k}={v if v is not None else chr(46) * 3}' for k, v in r['options'].items())}"
            )
    shown("\npipelines")
    for name, members in registry.pipelines.items():
        shown(f"  {name:<10} {','.join(members)}")
