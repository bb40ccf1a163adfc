"""How good the model of a step of a schedule is, beside the model that the schedule began with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["StepQuality"]


@dataclass(frozen=True)
class StepQuality:
    """A metric at step ``number`` of ``steps``: ``began`` of the model that the schedule began
    with, ``before`` of the model as it was trained up to this step, ``after`` of the same after its
    cut; of metrics of agreement, with the model that it began with. Measured on ``samples``."""

    number: int
    steps: int
    metric: str
    began: float
    before: float
    after: float
    samples: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.number} of {self.steps}: {self.metric} {self.before:.4g} -> {self.after:.4g} by "
            f"this cut, {self.began:.4g} of the model that it began with, on {self.samples} samples"
        )
