"""Whether a file that is written is faster than what it was made from: both timed in turns on
onnxruntime."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from irprune.api.latency_whole import feed, write
from irprune.ir.graph import Graph
from irprune.run.layer_times import layer_times
from irprune.run.session import providers_for, run_session, session
from irprune.run.timing import Timing, interleaved

__all__ = ["LayerTime", "Speed", "measure_speed"]

_SECONDS = 0.4  # for each of the two
_RUNS = (3, 20)  # that are profiled, at least and at most
_PROFILED = 0.2  # seconds for that


@dataclass(frozen=True)
class LayerTime:
    """Seconds that the node ``name`` takes before and after; 0 where onnxruntime runs none of that
    name."""

    name: str
    op: str
    before: float
    after: float


@dataclass(frozen=True)
class Speed:
    """Latency ``before`` and ``after``, and their ``ratio`` turn by turn; ``layers`` is the time of
    each node by onnxruntime's profile."""

    before: Timing
    after: Timing
    ratio: Timing
    provider: str
    threads: int
    layers: tuple[LayerTime, ...] = ()

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
            "layers": [asdict(layer) for layer in self.layers],
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
        running = {
            name: session(path, device, "", threads)
            for name, path in (("before", original), ("after", file))
        }
        for one in running.values():
            run_session(one, given)
        calls = {name: partial(one.run, None, given) for name, one in running.items()}
        times = interleaved(calls, _SECONDS, most=400)
        layers = _layers(original, file, given, device, threads, times["before"].median)
    ratio = times["after"].over(times["before"])
    return Speed(times["before"], times["after"], ratio, providers_for(device)[0], threads, layers)


def _layers(
    original: Path, file: Path, given: Any, device: str, threads: int, seconds: float
) -> tuple[LayerTime, ...]:
    """The time of each node of both files, in the order of the original's."""
    runs = max(_RUNS[0], min(_RUNS[1], int(_PROFILED / max(seconds, 1e-6))))
    before, after = (layer_times(p, given, device, threads, runs) for p in (original, file))
    return tuple(
        LayerTime(
            name,
            (before.get(name) or after[name])[0],
            before[name][1] if name in before else 0.0,
            after[name][1] if name in after else 0.0,
        )
        for name in dict.fromkeys((*before, *after))
    )
