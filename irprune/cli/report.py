"""``irprune report`` and ``irprune diff``: pages of what was pruned."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import click

from irprune.analysis.cost import Costs
from irprune.api.page import render, render_diff
from irprune.base.atomic_write import check_place, write_text
from irprune.choice.plan import Plan
from irprune.cli.completion import complete_file
from irprune.cli.options import common, say, show_json, shown
from irprune.driver.pipelines import analyse
from irprune.errors import IrpruneError
from irprune.frontend.capture import capture
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.ir.size import probe_of

__all__ = ["diff", "report"]


@click.command()
@click.argument("place", metavar="FOLDER|FILE", shell_complete=complete_file)
@click.option(
    "-o",
    "--output",
    metavar="FILE.html",
    help="Where to write the page.  [default: report.html beside report.json]",
)
@common
def report(place: str, output: str | None, json_: bool) -> None:
    """Make the page of a folder that irprune wrote, or of a report.json, again.

    A report that was made by an earlier version gets the page of this one."""
    file, data = _report(place)
    target = Path(output) if output is not None else file.with_name("report.html")
    check_place(target)
    plan = file.with_name("plan.json")
    details = data.get("details")
    if details is not None and details.get("orders") and plan.is_file():
        details["plan"] = {**Plan.load(plan).as_json(), "weights": details["weights"]}
    elif details is not None:
        details.pop("orders", None)
    write_text(target, render(data, details))
    if json_:
        show_json({"output": str(target), **{k: v for k, v in data.items() if k != "details"}})
    say(f"wrote {target}")


@click.command()
@click.argument("a", metavar="A", shell_complete=complete_file)
@click.argument("b", metavar="B", shell_complete=complete_file)
@click.option("-o", "--output", metavar="FILE.html", help="Write the comparison as a page, too.")
@common
def diff(a: str, b: str, output: str | None, json_: bool) -> None:
    """Compare two cuts or models: widths, and costs where neither is a plan.

    Each of A and B is a plan.json, a report.json, a folder that irprune wrote, or an ONNX file,
    of which the widths are those that may be cut."""
    first, second = _widths(a), _widths(b)
    names = list(dict.fromkeys((*first, *second)))
    rows = [
        {
            "name": n,
            "size": size,
            "a": first[n][1] if n in first else _missing(a, n, size),
            "b": second[n][1] if n in second else _missing(b, n, size),
        }
        for n in names
        for size in [(first.get(n) or second[n])[0]]
    ]
    changed = [r for r in rows if r["a"] != r["b"]]
    costs = _costs(a, b)
    if json_:
        show_json({"a": a, "b": b, "groups": changed, "costs": costs})
    else:
        shown(_table(costs, changed, len(rows)))
    if output is not None:
        check_place(Path(output))
        write_text(Path(output), render_diff(a, b, costs, rows))
        say(f"wrote {output}")


def _table(costs: list[dict[str, Any]], changed: list[dict[str, Any]], every: int) -> str:
    lines = [
        f"{c['name']:<12}{c['a']:>12,}  {c['b']:>12,}  {c['b'] / (c['a'] or 1):.1%}" for c in costs
    ]
    wide = max((len(r["name"]) for r in changed), default=0)
    lines += [f"{r['name']:<{wide}}  {r['a']:>6} {r['b']:>6}  of {r['size']}" for r in changed]
    lines.append(f"{len(changed)} of {every} widths differ")
    return "\n".join(lines)


def _report(place: str) -> tuple[Path, dict[str, Any]]:
    """The path of a report.json and its data. Raises IrpruneError where there is none."""
    path = Path(place)
    file = path / "report.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as broken:
        raise IrpruneError(
            f"no report can be read: {broken}", place, "give a folder that irprune wrote"
        ) from broken
    if not isinstance(data, dict) or not {"params", "macs", "groups"} <= data.keys():
        raise IrpruneError("this is no report", str(file), "give the report.json of a folder")
    return file, {
        "version": "",
        "command": "",
        "options": {},
        "trials": None,
        **data,
    }  # of earlier versions


def _is_plan(place: str) -> bool:
    path = Path(place)
    if not path.is_file() or path.suffix != ".json":
        return False
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("irprune") == "plan"


def _is_model(place: str) -> bool:
    return Path(place).is_file() and Path(place).suffix == ".onnx"


@cache
def _model(place: str) -> Graph:
    """The analysed graph of an ONNX file."""
    return analyse(capture(place))


def _widths(place: str) -> dict[str, tuple[int, int]]:
    """Group -> (size, kept)."""
    if _is_model(place):
        return {g.name: (g.size, g.size) for g in groups_of(_model(place)) if not g.frozen}
    if _is_plan(place):
        found = {}
        for choice in Plan.load(place).choices:
            kept = (
                choice.kept[0] if choice.kept and isinstance(choice.kept[0], tuple) else choice.kept
            )
            found[choice.name] = (choice.size, len(kept))
        return found
    _, data = _report(place)
    return {g["name"]: (g["size"], g["kept"]) for g in data["groups"]}


def _missing(place: str, name: str, size: int) -> int:
    """The width of a group that ``place`` does not name: whole where it is a plan or a report; of a
    model what its weight says, as it does of a single channel, which is no group."""
    weight, _, dim = name.rpartition(":")
    if not _is_model(place) or weight not in _model(place).weights or not dim.isdecimal():
        return size
    shape = _model(place).weights[weight].shape
    return probe_of(shape[int(dim)]) if int(dim) < len(shape) else size


def _costs(a: str, b: str) -> list[dict[str, Any]]:
    """What each costs, where neither is a plan."""
    if _is_plan(a) or _is_plan(b):
        return []
    first, second = _counts(a), _counts(b)
    names = ("macs", "params", "bytes", "activation")
    return [{"name": n, "a": first[n], "b": second[n]} for n in names]


def _counts(place: str) -> dict[str, int]:
    """Measure -> count of what is left."""
    if _is_model(place):
        return Costs(_model(place)).at({}).as_dict()
    _, data = _report(place)
    return {n: data[n]["after"] for n in ("macs", "params", "bytes", "activation")}
