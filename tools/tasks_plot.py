"""The curves of the tasks: what is kept over the operations that are left, beside onnxsim's pruner
and the bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from task import Task

__all__ = ["plot"]

COLUMNS = 4


def plot(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Task], path: Path) -> None:
    """Draw the rows of all tasks into the file ``path``: the middle seed, with bars from the least
    to the largest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in known if any(r["task"] == name for r in rows)]
    lines = -(-len(shown) // COLUMNS)
    figure, grid = pyplot.subplots(
        lines, COLUMNS, figsize=(3.6 * COLUMNS, 3.0 * lines), squeeze=False
    )
    for place, name in zip(grid.flat, shown, strict=False):
        own = [r for r in rows if r["task"] == name]
        _curve(place, [(r["macs"], r["left"], r["value"]) for r in own], "irprune", "o-", "C0")
        theirs = [(r["macs"], r["left"], r["rival"].get("value")) for r in own if "rival" in r]
        known_of = [(x, left, y) for x, left, y in theirs if y is not None]
        _curve(place, known_of, "onnxsim, same parameters", "s--", "C1")
        bars = known[name].bars
        place.plot(list(bars), list(bars.values()), "k_", markersize=14, label="bar")
        place.set_title(name, fontsize=10)
        place.set_ylabel(known[name].said.split(",")[0], fontsize=7)
        place.tick_params(labelsize=7)
        place.invert_xaxis()
    for place in list(grid.flat)[len(shown) :]:
        place.axis("off")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", fontsize=9)
    figure.supxlabel("share of the operations left", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _curve(
    place: Any, found: Sequence[tuple[float, float, float]], label: str, line: str, color: str
) -> None:
    """One point for each budget: the middle seed, and how far the others lie."""
    budgets = sorted({left for _, left, _ in found}, reverse=True)
    if not budgets:
        return
    xs = [median(x for x, left, _ in found if left == b) for b in budgets]
    many = [sorted(y for _, left, y in found if left == b) for b in budgets]
    ys = [median(some) for some in many]
    below = [y - some[0] for y, some in zip(ys, many, strict=True)]
    above = [some[-1] - y for y, some in zip(ys, many, strict=True)]
    place.errorbar(
        xs, ys, (below, above), fmt=line, color=color, capsize=2, markersize=4, label=label
    )
