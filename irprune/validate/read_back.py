"""What reading a written file again says; it imports neither torch nor onnx."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from irprune.base.tolerance import FLOAT32

__all__ = ["ReadBack", "timed"]


@dataclass(frozen=True)
class ReadBack:
    """A file that was written, read by loaders that are not irprune's.

    ``file`` names it; ``by`` says what read and ran it. ``error`` is the largest difference of an
    output from the model that was proven, relative to the output's largest magnitude. ``differs``
    says what stands there that is not what was meant; "" where nothing does. ``seconds`` is what it
    took."""

    file: str
    by: str
    error: float = 0.0
    differs: str = ""
    seconds: float = 0.0
    tolerance: float = FLOAT32

    @property
    def passed(self) -> bool:
        return not self.differs and self.error <= self.tolerance

    def as_dict(self, timings: bool = False) -> dict[str, Any]:
        """Plain data for JSON, with the seconds where ``timings`` asks for them."""
        data = {**asdict(self), "passed": self.passed}
        return data if timings else {k: v for k, v in data.items() if k != "seconds"}

    def __str__(self) -> str:
        if self.differs:
            return f"{self.file} DIFFERENT by {self.by}: {self.differs}"
        verdict = "equal" if self.passed else "DIFFERENT"
        return f"{self.file} {verdict}: error {self.error:.1e} by {self.by} ({self.seconds:.2f} s)"


def timed(file: str, by: str, compared: Callable[[], tuple[float, str]]) -> ReadBack:
    """``compared``, which gives the error and what differs, with the time that it took."""
    began = time.perf_counter()
    error, differs = compared()
    return ReadBack(file, by, error, differs, time.perf_counter() - began)
