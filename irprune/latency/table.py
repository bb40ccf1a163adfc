"""Measured times, kept in a file for each machine, provider, number of threads and version of the
runtime."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from irprune.latency.operators import Operator
from irprune.run.session import providers_for

__all__ = ["Table", "cache_folder", "machine"]

Measure = Callable[[Operator, int, int], float]

# What is measured to find the step, and what it sums over: it makes 64 channels and what lies below
# them.
_PROBES = {
    "conv": (Operator("conv", (1, 1, (28, 28), (3, 3), (1, 1), (1, 1), (1, 1))), 64),
    "matrix": (Operator("matrix", (1, 784, 1)), 256),
}
_CPUINFO = Path("/proc/cpuinfo")
# What kernels are chosen by
_VECTORS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
_LIKES = {"conv": "conv", "depthwise": "conv", "conv_transpose": "matrix", "matrix": "matrix"}


def cache_folder() -> Path:
    """Where programs keep what can be made again, as the system has it."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "irprune"


def machine(device: str) -> str:
    """The processor's name, or the card's."""
    texts = (
        sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        if device != "cpu"
        else [_CPUINFO]
    )
    for file in texts:
        if file.exists() and (
            found := re.search(
                r"^(?:model name|Model)\s*:\s*(.+)$", file.read_text(errors="replace"), re.M
            )
        ):
            return found[1]
    return platform.processor() or platform.machine()


def vectors() -> str:
    """The processor's vector instructions, as far as Linux tells: one name may stand for several
    generations, and on Arm there is none."""
    text = _CPUINFO.read_text(errors="replace") if _CPUINFO.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    return " ".join(v for v in _VECTORS if found and v in found[1].split())


class Table:
    """Times of operators in seconds: read where they are known, measured where not, and in between
    interpolated.

    ``measure`` times one operator; ``file`` is where times are kept (None: nowhere). A
    convolution's time is a staircase, so it is measured at multiples of the ``step`` and is the
    same up to the next; a matrix product's is smooth. ``measured`` counts those that were measured,
    ``reused`` has the keys of those that were asked for and came from the file."""

    def __init__(
        self, measure: Measure, file: Path | None = None, steps: dict[str, int] | None = None
    ) -> None:
        self.measure, self.file = measure, file
        self.times: dict[str, float] = _read(file)
        self.steps = dict(steps or {})
        self.measured = 0
        self.reused: dict[str, None] = {}
        self._kept = set(self.times)
        self._known: dict[tuple[Operator, int, int], float] = {}

    @classmethod
    def here(cls, device: str = "auto", threads: int = 0) -> Table:
        """The table of this machine for a device (``auto``: CUDA where onnxruntime has it), with
        its file in the user's cache."""
        import onnxruntime

        from irprune.latency.kernels import measure

        provider = providers_for(device)[0]
        place = "cpu" if provider == "CPUExecutionProvider" else "cuda"
        name = f"{machine(place)} {vectors()}" if place == "cpu" else machine(place)
        said = (
            f"latency-{place}-{name}-{threads or os.cpu_count()}-threads-{onnxruntime.__version__}"
        )
        file = cache_folder() / f"{re.sub(r'[^A-Za-z0-9.]+', '-', said).lower()}.json"
        return cls(lambda operator, a, b: measure(operator, a, b, place, threads), file)

    def step(self, kind: str) -> int:
        """The step of the staircase that the provider has for operators of ``kind``: 1 where it is
        smooth.

        With a step of s, 65 - s channels take as long as 63, and 64 - s less by up to s in 64. With
        half that step the fall is as large as the rise before it, and on a slope smaller. 64 itself
        says nothing: multiples may be quicker than what lies about them."""
        like = _LIKES[kind]
        if like not in self.steps:

            def at(n: int) -> float:
                return self.exact(*_PROBES[like], n)

            def steps(s: int) -> bool:
                rise, fall = at(63) - at(65 - s), at(65 - s) - at(64 - s)
                return fall - rise > s / 256 * at(63)  # an overhead may hide half of it and more

            self.steps[like] = next(filter(steps, (32, 16, 8)), 1)
            self.save()
        return self.steps[like]

    def exact(self, operator: Operator, a: int, b: int) -> float:
        """The time at exactly these sizes, measured once."""
        key = operator.key(a, b)
        if key not in self.times:
            self.times[key] = float(self.measure(operator, a, b))
            self.measured += 1
        elif key in self._kept:
            self.reused[key] = None
        return self.times[key]

    @property
    def origin(self) -> str:
        """Where the times that were asked for come from; "" where none were, or all were measured
        now."""
        if not self.reused or self.file is None:
            return ""
        return (
            f"of the times of operators {len(self.reused)} are of earlier runs on this machine "
            f"({self.file}), {self.measured} were measured now; without that file all are"
        )

    def levels(self, kind: str, size: int) -> list[int]:
        """The sizes at which an operator of a whole size is measured: about a quarter, a half, all
        of it; whole steps."""
        step = self.step(kind)
        some = {min(size, max(1, -(-size * k // (4 * step))) * step) for k in (1, 2, 4)}
        return sorted(some)

    def time(self, operator: Operator, a: int, b: int, most: tuple[int, int]) -> float:
        """Seconds at ``a`` and ``b``, within the sizes ``most`` of the whole operator; what was not
        measured lies on straight lines."""
        step = self.step(operator.kind)
        a, b = -(-a // step) * step, -(-b // step) * step
        known = (operator, a, b)
        if known not in self._known:
            (p, q, s), (u, v, t) = (
                _between(self.levels(operator.kind, m), x)
                for m, x in zip(most, (a, b), strict=True)
            )
            low = self.exact(operator, p, u) * (1 - t) + (
                self.exact(operator, p, v) * t if t else 0.0
            )
            high = (
                self.exact(operator, q, u) * (1 - t)
                + (self.exact(operator, q, v) * t if t else 0.0)
                if s
                else 0.0
            )
            least = 0.25 * min(low, self.exact(operator, p, u))
            self._known[known] = max(low * (1 - s) + high * s, least)
        return self._known[known]

    def fill(self, operator: Operator, most: tuple[int, int]) -> None:
        """Measure all that ``time`` may ask of an operator."""
        for a in self.levels(operator.kind, most[0]):
            for b in self.levels(operator.kind, most[1]):
                self.exact(operator, a, b)

    def save(self) -> None:
        """Write the times to the file, together with those that another process put there; left out
        where that is not possible."""
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            draft.write_text(
                json.dumps({**_read(self.file), **self.times}, indent=0), encoding="utf-8"
            )
            draft.replace(self.file)
        except OSError:  # a cache is no result: a read-only home costs time, nothing else
            self.file = None


def _read(file: Path | None) -> dict[str, float]:
    try:
        held: Any = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
        return {str(k): float(v) for k, v in held.items() if float(v) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _between(levels: list[int], x: int) -> tuple[int, int, float]:
    """Two levels and how far ``x`` is on the way from the first to the second; below the least
    level the line goes on."""
    if len(levels) == 1 or x >= levels[-1]:
        return levels[-1], levels[-1], 0.0
    k = next(i for i in range(1, len(levels)) if x <= levels[i])
    if x == levels[k]:
        return levels[k], levels[k], 0.0
    return levels[k - 1], levels[k], (x - levels[k - 1]) / (levels[k] - levels[k - 1])
