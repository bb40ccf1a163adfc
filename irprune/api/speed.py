"""Whether a file that is written is faster than what it was made from: both timed in turns on
onnxruntime."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from irprune.api.latency_whole import feed, write
from irprune.ir.graph import Graph
from irprune.run.session import providers_for, session
from irprune.run.timing import Timing, interleaved

__all__ = ["Speed", "measure_speed"]

_SECONDS = 0.4  # for each of the two


@dataclass(frozen=True)
class Speed:
    """Latency ``before`` and ``after``, and their ``ratio`` turn by turn."""

    before: Timing
    after: Timing
    ratio: Timing
    provider: str
    threads: int

    @property
    def faster(self) -> bool | None:
        """Whether it is; None where the machine is too noisy to tell."""
        if self.ratio.high < 1 or self.ratio.low > 1:
            return self.ratio.high < 1
        return None if self.ratio.noisy else False

    @property
    def warning(self) -> str:
        """What is to be said of it, "" where it is faster."""
        faster = self.faster
        if faster:
            return ""
        if faster is None:
            return (
                "whether the file is faster cannot be told: the machine is noisy "
                f"({self.ratio.low:.2f} to {self.ratio.high:.2f} of the original's time); "
                "irprune bench A --against B times longer"
            )
        return (
            f"the file is not faster ({self.ratio.median:.2f} of the original's time): "
            "round_to='auto' (--round-to auto) takes widths that onnxruntime likes, "
            "a budget on latency (--latency 0.5) cuts by what is measured"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "ratio": self.ratio.median,
            "ratio_low": self.ratio.low,
            "ratio_high": self.ratio.high,
            "faster": self.faster,
            "provider": self.provider,
            "threads": self.threads,
        }

    def __str__(self) -> str:
        return (
            f"{self.before} -> {self.after} ({self.ratio.median:.1%} of the time; "
            f"{self.provider}, {self.threads or 'all'} threads)"
        )


def measure_speed(graph: Graph, file: Path, device: str = "auto", threads: int = 0) -> Speed:
    """Time ``file``, a cut of the analysed original ``graph``, beside the original.

    Raises IrpruneError where the original cannot be written or run."""
    device = device.split(":")[0]
    with tempfile.TemporaryDirectory(prefix="irprune-") as folder:
        original = write(graph.copy(), Path(folder) / "original" / "model.onnx")
        given = feed(graph, original)
        calls = {
            name: partial(session(path, device, "", threads).run, None, given)
            for name, path in (("before", original), ("after", file))
        }
        times = interleaved(calls, _SECONDS, most=400)
    ratio = times["after"].over(times["before"])
    return Speed(times["before"], times["after"], ratio, providers_for(device)[0], threads)
