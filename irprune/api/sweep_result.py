"""What a sweep over strategies found: a row for each, those that no other beats, a table and a
drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from irprune.base.atomic_write import atomic_write, check_place
from irprune.choice.plan import Plan
from irprune.errors import IrpruneError

__all__ = ["Sweep", "Swept", "figure_for"]


@dataclass(frozen=True)
class Swept:
    """One strategy and the model that it made.

    Attributes:
        importance: The criterion that ranked the channels; "" for the original.
        scope: Whether widths were chosen in each group alone or over all.
        measure: What the budget was on.
        share: The share of it that was allowed.
        left: The share of it that is left.
        macs: The share of the multiply-accumulates that is left.
        params: The share of the parameters that is left.
        metric: What the judge said; NaN where it said nothing.
        seconds: How long cutting, repairing and judging took.
        key: Tells a cut and its judge from all others.
        plan: What ``irprune.apply_plan`` makes the model of.
        known: Whether the metric comes from an earlier run.
    """

    importance: str
    scope: str
    measure: str
    share: float
    left: float
    macs: float
    params: float
    metric: float
    seconds: float
    key: str = field(repr=False)
    plan: Plan = field(repr=False)
    known: bool = False

    @property
    def name(self) -> str:
        """The strategy in words."""
        if not self.importance:
            return "original"
        return f"{self.importance}, {self.scope}, {self.measure} {self.share:.0%}"


@dataclass(frozen=True)
class Sweep(Sequence[Swept]):
    """All strategies of a sweep, the original first.

    Attributes:
        metric: What the metric is called.
        higher: Whether more of it is better.
        rows: The strategies, in the order in which they were asked for.
    """

    metric: str
    higher: bool
    rows: tuple[Swept, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Swept]:
        return iter(self.rows)

    @property
    def pareto(self) -> list[Swept]:
        """The rows that no other beats in what is left of the multiply-accumulates and in the
        metric, the smallest first."""
        sign = 1 if self.higher else -1
        out: list[Swept] = []
        for row in sorted(self.rows, key=lambda r: (r.macs, -sign * r.metric)):
            if not math.isnan(row.metric) and all(sign * row.metric > sign * o.metric for o in out):
                out.append(row)
        return out

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the same for the same sweep.

        Returns:
            The metric, and the rows without plans and seconds.
        """
        front = {id(r) for r in self.pareto}
        hidden = ("seconds", "plan", "known", "key")
        return {
            "metric": self.metric,
            "higher": self.higher,
            "trials": [
                {
                    **{k: v for k, v in asdict(r).items() if k not in hidden},
                    "pareto": id(r) in front,
                }
                for r in self.rows
            ],
        }

    def table(self) -> str:
        """All rows, by the multiply-accumulates that are left; a star marks those that no other
        beats.

        Returns:
            Lines of text.
        """
        wide = max(len(r.name) for r in self.rows)
        front = {id(r) for r in self.pareto}
        head = (
            f"  {'strategy':{wide}}  {'MACs':>6}  {'params':>6}  {self.metric:>10}  {'seconds':>7}"
        )
        return "\n".join(
            [head]
            + [
                f"{'*' if id(r) in front else ' '} {r.name:{wide}}  {r.macs:>6.1%}  {r.params:>6.1%}  "
                f"{r.metric:>10.5g}  {r.seconds:>7.1f}{'  known' * r.known}"
                for r in sorted(self.rows, key=lambda r: -r.macs)
            ]
        )

    def plot(self, path: str | Path) -> Path:
        """Draw the metric over the multiply-accumulates that are left, with the front as a line.

        Args:
            path: The file to write; its suffix says the format (svg, png, pdf).

        Returns:
            ``path``.

        Raises:
            IrpruneError: Where matplotlib is not installed, or writes no file of that name.
        """
        path = Path(path)
        figure = figure_for(path)
        axes = figure.add_subplot()
        for importance in dict.fromkeys(r.importance for r in self.rows):
            own = [r for r in self.rows if r.importance == importance]
            axes.scatter(
                [100 * r.macs for r in own],
                [r.metric for r in own],
                label=own[0].importance or "original",
            )
        front = self.pareto
        axes.plot([100 * r.macs for r in front], [r.metric for r in front], "k-", linewidth=0.8)
        axes.set_xlabel("MACs left (%)")
        axes.set_ylabel(self.metric)
        axes.legend()
        with atomic_write(path) as draft:
            figure.savefig(draft / path.name, format=path.suffix.lstrip(".") or "png")
        return path


def figure_for(path: Path) -> Any:
    """An empty figure of matplotlib that is to be saved as ``path``. Raises IrpruneError where that
    cannot be, so that it can be asked before the work."""
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise IrpruneError(
            "matplotlib is not installed", str(path), "pip install 'irprune[sweep]'"
        ) from missing
    check_place(path)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    if (kind := path.suffix.lstrip(".")) and kind not in known:
        raise IrpruneError(
            f"matplotlib writes no {kind!r}", str(path), f"it writes {', '.join(sorted(known))}"
        )
    return figure
