"""What a proof says, for both dialects; it imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from numpy.typing import NDArray

from irprune.base.tolerance import CAPTURE
from irprune.ops.arrays import as_numpy

__all__ = ["Proof", "is_constant", "is_nan"]


@dataclass
class Proof:
    """What was measured: ``max_error`` relative to the largest magnitude of an output, in
    ``dtype``, against ``tolerance``.

    ``float32_error`` is the first measurement where float64 decided; ``capture_error`` is that of
    the uncut graph against the user's ``forward``, None where there is none to call. ``vacuous``
    says that the outputs are constant even with random weights, so that nothing was proven.
    ``other_sizes`` are those at which it was proven again, where sizes are open; the errors are the
    larger ones of both. ``passes`` counts forward passes, those of the cut model among them: four,
    or six where float64 had to decide; four more at other sizes. ``gradient_error`` is that of the
    gradients of the cut module against those of the silenced original, None where they were not
    compared, and ``gradients_passed`` whether it is within its tolerance."""

    max_error: float
    tolerance: float
    dtype: str = "float32"
    float32_error: float | None = None
    capture_error: float | None = None
    passes: int = 2
    random_weights: bool = False
    vacuous: bool = False
    other_sizes: str = ""
    gradient_error: float | None = None
    gradients_passed: bool = True
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
            return f"nothing proven: the outputs are constant or NaN{' whatever the weights' * self.random_weights}"
        if not self.captured:
            return f"FAILED: the captured graph differs from forward by {self.capture_error:.1e}, tolerance {CAPTURE:.0e}"
        how = " with random weights" if self.random_weights else ""
        text = f"{'exact' if self.passed else 'FAILED'}: error {self.max_error:.1e} in {self.dtype}{how}, tolerance {self.tolerance:.0e}"
        if self.gradient_error is not None:
            verdict = "" if self.gradients_passed else ", which is DIFFERENT"
            text += f"; gradients: error {self.gradient_error:.1e}{verdict}"
        return text


def is_constant(outputs: Iterable[Any], integers: bool = True) -> bool:
    """Whether no output varies: such outputs agree whatever was cut.

    Args:
        outputs: arrays of numpy or tensors of torch.
        integers: whether outputs that are no real numbers count where no other varies: classes and
            places may well be the same for inputs that are drawn. Of single numbers only zero is
            taken for a constant, and none where they do not count.
    """
    arrays = [as_numpy(x) for x in outputs]
    floats = [x for x in arrays if x.dtype.kind in "fV"]
    if not integers:
        varied = [x for x in floats if x.size > 1]
        return bool(varied) and all(map(_is_one_number, varied))
    if floats and all(x.size <= 1 for x in floats):
        return all(bool((x == 0).all()) for x in floats)
    return all(map(_is_one_number, [x for x in floats if x.size > 1] or arrays))


def _is_one_number(array: NDArray[Any]) -> bool:
    return array.size == 0 or bool((array == array.flat[0]).all())


def is_nan(outputs: Iterable[Any]) -> bool:
    """Whether real outputs hold nothing but NaN, which agrees with itself whatever was cut."""
    floats = [x for x in map(as_numpy, outputs) if x.dtype.kind in "fV" and x.size]
    return bool(floats) and all(bool((x != x).all()) for x in floats)
