"""What a proof says, for both dialects; it imports neither torch nor onnx."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from irprune.base.tolerance import CAPTURE

__all__ = ["Proof"]


@dataclass
class Proof:
    """What was measured: ``max_error`` relative to the largest magnitude of an output, in
    ``dtype``, against ``tolerance``.

    ``float32_error`` is the first measurement where float64 decided; ``capture_error`` is that of
    the uncut graph against the user's ``forward``, None where there is none to call. ``vacuous``
    says that the outputs are constant even with random weights, so that nothing was proven.
    ``passes`` counts forward passes, those of the cut model among them: four, or six where float64
    had to decide."""

    max_error: float
    tolerance: float
    dtype: str = "float32"
    float32_error: float | None = None
    capture_error: float | None = None
    passes: int = 2
    random_weights: bool = False
    vacuous: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.max_error <= self.tolerance and not self.vacuous and self.captured

    @property
    def captured(self) -> bool:
        """Whether the graph computes what ``forward`` does."""
        return self.capture_error is None or self.capture_error <= CAPTURE

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        if self.vacuous:
            return f"nothing proven: the outputs are constant{' whatever the weights' * self.random_weights}"
        if not self.captured:
            return f"FAILED: the captured graph differs from forward by {self.capture_error:.1e}, tolerance {CAPTURE:.0e}"
        how = " with random weights" if self.random_weights else ""
        return f"{'exact' if self.passed else 'FAILED'}: error {self.max_error:.1e} in {self.dtype}{how}, tolerance {self.tolerance:.0e}"
