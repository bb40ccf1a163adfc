"""What ``tools/quality.py`` shows of its rows: a table, a plot, all numbers as CSV, and whether the
bars hold."""

from __future__ import annotations

import csv
import datetime
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tables import write_table

__all__ = ["BUDGETS", "Row", "Setting", "bars", "write"]

BUDGETS = (0.75, 0.5, 0.25)
# Points lost by the best setting at half of the MACs, without training; 5 elsewhere
ALLOWED = {"residual CNN": 2.0}
Row = dict[str, Any]
Found = dict[str, Row]


@dataclass(frozen=True)
class Setting:
    """How a net is pruned; ``importance="default"`` is ``irprune.prune(calibration=...)``,
    ``rival`` is Torch-Pruning."""

    importance: str
    scope: str = "local"
    repair: str = "none"
    rival: bool = False

    def __str__(self) -> str:
        if self.importance == "default":
            return "default"
        return (
            f"Torch-Pruning {self.importance}, {self.scope}"
            if self.rival
            else f"{self.importance}, {self.scope}, {self.repair}"
        )


def values(
    found: Found, net: str, seeds: int, setting: Setting | str, left: float, what: str = "accuracy"
) -> list[float]:
    """One number in percent per seed, without those that failed."""
    rows = [found.get(f"{net} | {s} | {setting} | {left}", {}) for s in range(seeds)]
    return [100 * float(r[what]) for r in rows if what in r]


def dense(found: Found, net: str, seeds: int) -> float:
    return statistics.mean(
        100 * found[key]["accuracy"]
        for s in range(seeds)
        if (key := f"{net} | {s} | dense") in found
    )


def shown(numbers: Sequence[float]) -> str:
    """Mean and deviation."""
    return (
        f"{statistics.mean(numbers):.1f}"
        + (f"±{statistics.stdev(numbers):.1f}" if len(numbers) > 1 else "")
        if numbers
        else "fails"
    )


def _seeds(found: Found, net: str, seeds: int, rows: Sequence[Setting]) -> int:
    """Of how many seeds every row is there."""
    return sum(
        all(f"{net} | {s} | {r} | {b}" in found for r in rows for b in BUDGETS)
        for s in range(seeds)
    )


def bars(
    found: Found, nets: Sequence[str], seeds: int, rows: Sequence[Setting]
) -> list[tuple[str, bool]]:
    """What must hold at half of the MACs without training, each with whether it does."""
    out = []
    for net in nets:
        means = {r: statistics.mean(v) for r in rows if (v := values(found, net, seeds, r, 0.5))}
        ours = {r: m for r, m in means.items() if not r.rival}
        theirs = [m for r, m in means.items() if r.rival]
        best, whole, allowed = (
            max(ours, key=lambda r: ours[r]),
            dense(found, net, seeds),
            ALLOWED.get(net, 5.0),
        )
        lost = whole - ours[best]
        out.append(
            (
                f"{net}: the best setting ({best}) loses {lost:.1f} points of {whole:.1f}, at most {allowed:g}",
                lost <= allowed,
            )
        )
        default = ours.get(Setting("default"))
        if default is not None:
            out.append(
                (
                    f"{net}: the default is {ours[best] - default:.1f} points below the best, at most 1",
                    ours[best] - default <= 1,
                )
            )
        if theirs:
            out.append(
                (
                    f"{net}: Torch-Pruning's best loses {whole - max(theirs):.1f} points",
                    ours[best] > max(theirs),
                )
            )
    return out


def table(found: Found, nets: Sequence[str], seeds: int, rows: Sequence[Setting], what: str) -> str:
    """Markdown: per net and criterion what slicing leaves and what the repair makes of it, at each
    budget."""
    lines = [
        "| criterion | " + " | ".join(f"{n}, sliced | {n}, repaired" for n in nets) + " |",
        "|---|" + "---|" * (2 * len(nets)),
    ]
    for name, pair in _paired(rows).items():
        cells = []
        for net in nets:
            for setting in pair:
                got = [
                    shown(values(found, net, seeds, setting, b, what)) if setting else ""
                    for b in BUDGETS
                ]
                cells.append(" / ".join(got) if any(got) else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _paired(rows: Sequence[Setting]) -> dict[str, tuple[Setting | None, Setting | None]]:
    """Rows of the table: without and with repair."""
    out: dict[str, tuple[Setting | None, Setting | None]] = {}
    for r in rows:
        scope = "" if r.scope == "local" else f", {r.scope}"
        if r.rival:
            out[f"Torch-Pruning: {r.importance}{scope}"] = (r, None)
        elif r.importance == "default":
            out["**default**: `calibration=` given"] = (None, r)
        elif r.repair in ("none", "least_squares"):
            held = out.get(r.importance + scope, (None, None))
            out[r.importance + scope] = (r, held[1]) if r.repair == "none" else (held[0], r)
        else:
            out[
                f"{r.importance}{scope}, repair: {'least_squares on ' if r.repair == 'noise' else ''}{r.repair}"
            ] = (None, r)
    return out


def plot(
    found: Found, nets: Sequence[str], seeds: int, rows: Sequence[Setting], file: Path
) -> bool:
    """Accuracy without training over the share of MACs; False where matplotlib is missing."""
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = (
        "default",
        "magnitude, local, none",
        "magnitude, local, least_squares",
        "osscar, global, least_squares",
        "wanda, local, batch_norm",
        "wanda, local, noise",
        "taylor, global, none",
    )
    figure, axes = pyplot.subplots(
        1, len(nets), figsize=(5 * len(nets), 4.2), sharey=True, squeeze=False
    )
    for ax, net in zip(axes[0], nets, strict=True):
        ax.axhline(dense(found, net, seeds), color="grey", linewidth=0.8, label="dense")
        for r in rows:
            got = {b: v for b in BUDGETS if (v := values(found, net, seeds, r, b))}
            if got and (r.rival or str(r) in chosen):
                spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in got.values()]
                means = [statistics.mean(v) for v in got.values()]
                ax.errorbar(
                    list(got),
                    means,
                    spread,
                    marker="o",
                    capsize=3,
                    label=str(r),
                    linestyle="--" if r.rival else "-",
                )
        ax.set_title(net)
        ax.set_xlabel("share of multiply-accumulates")
        ax.invert_xaxis()
    axes[0][0].set_ylabel("test accuracy without training, %")
    axes[0][-1].legend(fontsize=7)
    figure.suptitle(f"Pruned without training, {seeds} seeds, {_today()}", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    return True


def _today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def _csv(
    found: Found, nets: Sequence[str], seeds: int, rows: Sequence[Setting], file: Path
) -> None:
    """Every row of every seed."""
    with file.open("w", newline="") as out:
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow(
            [
                "net",
                "seed",
                "setting",
                "budget",
                "accuracy",
                "after three epochs",
                "macs",
                "seconds",
                "failed",
            ]
        )
        for net in nets:
            for s in range(seeds):
                lines.writerow(
                    [net, s, "dense", 1, found.get(f"{net} | {s} | dense", {}).get("accuracy", "")]
                )
                for r in rows:
                    for b in BUDGETS:
                        row = found.get(f"{net} | {s} | {r} | {b}", {})
                        lines.writerow(
                            [
                                net,
                                s,
                                r,
                                b,
                                *(
                                    row.get(k, "")
                                    for k in ("accuracy", "tuned", "macs", "seconds", "failed")
                                ),
                            ]
                        )


def write(
    found: Found, nets: Sequence[str], seeds: int, rows: Sequence[Setting], folder: Path
) -> str:
    """``quality.md`` (returned), ``quality.csv`` and ``quality.png`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = ", ".join(
        f"{net} {dense(found, net, seeds):.1f} ({_seeds(found, net, seeds, rows)} seeds)"
        for net in nets
    )
    drawn = plot(found, nets, seeds, rows, folder / "quality.png")
    few = [
        r
        for r in rows
        if r.rival
        or r.importance == "default"
        or (r.importance == "magnitude" and r.scope == "local")
    ]
    text = (
        "\n\n".join(
            [
                f"{_today()}, digits data, torch {torch.__version__}; test accuracy in %, mean ± deviation over seeds, at 75 / 50 / 25 % "
                f"of the multiply-accumulates; dense: {whole}. Repaired is by least squares "
                "where nothing else is said. The criterion sees 180 "
                "images, the repair 180 others, in every row; none of them is trained or tested on; "
                "Torch-Pruning gets the criterion's images with their labels. "
                "Every seed's numbers, also after three epochs, are in [quality.csv](quality.csv).",
                "Without training:",
                table(found, nets, seeds, rows, "accuracy"),
                "After three epochs of training:",
                table(found, nets, seeds, few, "tuned"),
                "\n".join(
                    f"* {'holds' if ok else 'FAILS'}: {line}"
                    for line, ok in bars(found, nets, seeds, rows)
                ),
                *(["![accuracy over multiply-accumulates](quality.png)"] if drawn else []),
            ]
        )
        + "\n"
    )
    write_table(folder / "quality.md", text)
    _csv(found, nets, seeds, rows, folder / "quality.csv")
    return text
