"""What a proof says, for both dialects; it imports neither torch nor onnx."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.base.moved import renamed
from irprune.base.tolerance import CAPTURE
from irprune.ops.arrays import as_numpy

__all__ = ["Proof", "SecondPass", "in_every_branch", "is_constant", "is_nan", "says_nothing"]

__getattr__ = renamed(__name__, {"Shaken": "SecondPass"})


@dataclass
class SecondPass:
    """The second pass of a proof, with random numbers for the weights.

    Attributes:
        error: The largest error of an output, relative to how much each of its channels varies.
        tolerance: What ``error`` may be at most.
        dtype: The floating-point type in which it was computed.
        judged: The share of the cut weights, 0 to 1, whose cut was compared with the model as it
            came in, those weights zeroed.
        judge_error: The error of that comparison; None where there was none.
        judge_tolerance: What ``judge_error`` may be at most.
        nothing: Why the outputs prove nothing; "" where they vary.
        weights: What the random numbers are.
    """

    error: float
    tolerance: float
    dtype: str
    judged: float = 0.0
    judge_error: float | None = None
    judge_tolerance: float = CAPTURE
    nothing: str = ""
    weights: str = "random"

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance and self.agreed

    @property
    def agreed(self) -> bool:
        """Whether the independent judge, where there is one, agrees."""
        return self.judge_error is None or self.judge_error <= self.judge_tolerance

    def __str__(self) -> str:
        said = f"{self.error:.1e} in {self.dtype} with {self.weights} weights"
        if self.judge_error is not None:
            said += f", {_percent(self.judged)} of the cut weights judged by the original itself"
        return said


def _percent(share: float) -> str:
    return f"{share:.0%}" if share in (0.0, 1.0) or 0.005 <= share < 0.995 else f"{share:.1%}"


@dataclass
class Proof:
    """What a proof measured.

    Attributes:
        max_error: The largest error of an output with the weights as they are, relative to the
            largest magnitude of the output.
        tolerance: What ``max_error`` may be at most.
        dtype: The floating-point type in which it was computed.
        float32_error: The first measurement, where float64 decided.
        of_graphs: Whether ``max_error`` is of the graphs and not of the files, which the second
            pass alone compares.
        capture_error: The error of the uncut graph against the user's ``forward``; None where there
            is none to call.
        passes: How many forward passes were made, those of the cut model among them.
        random_weights: Whether the outputs say nothing with the weights as they are, so that all of
            the proof is the second pass.
        vacuous: Whether the outputs are constant, NaN, empty or whole numbers even with random
            weights, so that nothing was proven.
        second_pass: The pass with random numbers for the weights; None where none was made.
        other_sizes: The sizes of the second pass, where sizes are open.
        gradient_error: The error of the gradients of the cut module against those of the silenced
            original; None where they were not compared.
        gradients_passed: Whether ``gradient_error`` is within its tolerance.
        training: What the module does otherwise than ``forward`` in training; "" for nothing, and
            where that was not compared.
        stops: With what the cut model stops where the original runs; "" where it runs.
        outputs: How many outputs there are.
        reached: How many of them depend on what was cut. The others agree whatever it was, and are
            no proof.
        seconds: How long it took.
        notes: Lines for the user.
    """

    max_error: float
    tolerance: float
    dtype: str = "float32"
    float32_error: float | None = None
    of_graphs: bool = False
    capture_error: float | None = None
    passes: int = 2
    random_weights: bool = False
    vacuous: bool = False
    second_pass: SecondPass | None = None
    other_sizes: str = ""
    gradient_error: float | None = None
    gradients_passed: bool = True
    training: str = ""
    stops: str = ""
    outputs: int = 0
    reached: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        second = self.second_pass is None or self.second_pass.passed
        told = not self.vacuous and self.captured and not self.stops
        return self.max_error <= self.tolerance and second and told

    @property
    def undecided(self) -> bool:
        """Whether nothing differs and nothing can: the outputs are classes, places or other whole
        numbers, or empty, as of a detector that finds nothing."""
        why = self.second_pass.nothing if self.second_pass is not None else ""
        equal = self.max_error <= self.tolerance and not self.stops
        return self.vacuous and equal and self.captured and why in ("whole numbers", "empty")

    @property
    def captured(self) -> bool:
        """Whether the graph computes what ``forward`` does."""
        return self.capture_error is None or self.capture_error <= CAPTURE

    @property
    def shaken(self) -> SecondPass | None:
        """The name of ``second_pass`` up to 0.1."""
        warnings.warn("Proof.shaken is Proof.second_pass now", DeprecationWarning, stacklevel=2)
        return self.second_pass

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data.

        Returns:
            The attributes by name, and ``passed``; the second pass also under its name up to 0.1,
            ``shaken``.
        """
        held = asdict(self)
        return {**held, "shaken": held["second_pass"], "passed": self.passed}

    def __str__(self) -> str:
        second = self.second_pass
        if self.stops:
            return f"FAILED: the cut model stops where the original runs: {self.stops}"
        if self.vacuous:
            why = second.nothing if second is not None and second.nothing else "constant or NaN"
            return f"not proven: the outputs are {why}{' whatever the weights' * self.random_weights}, which is nothing proven"
        if not self.captured:
            return f"FAILED: the captured graph differs from forward by {self.capture_error:.1e}, tolerance {CAPTURE:.0e}"
        if self.max_error <= self.tolerance and second is not None and not second.passed:
            if not second.agreed:
                return (
                    f"FAILED: differs from the original with its dropped weights zeroed by {second.judge_error:.1e}, "
                    f"tolerance {second.judge_tolerance:.0e}"
                )
            return f"FAILED: error {second.error:.1e} in {second.dtype} with {second.weights} weights, tolerance {second.tolerance:.0e}"
        said = f"{'exact' if self.passed else 'FAILED'}: error {self.max_error:.1e} in {self.dtype}, tolerance {self.tolerance:.0e}"
        if second is not None and self.passed:
            said += f"; {second}"
        if self.passed and self.reached < self.outputs:
            said += f"; {self.reached} of {self.outputs} outputs depend on what was cut"
        if self.gradient_error is not None:
            verdict = "" if self.gradients_passed else ", which is DIFFERENT"
            said += f"; gradients: error {self.gradient_error:.1e}{verdict}"
        return said


def in_every_branch(whole: Proof, branches: Sequence[Proof]) -> Proof:
    """The proof of a model of which parts run only where a condition is true.

    Args:
        whole: with the conditions as the inputs decide them.
        branches: with parts that were cut made to run, all of them in one or another.

    Returns:
        The worst of them, with the passes and notes of all. What the inputs decide may be to run
        nothing that was cut, so that ``whole`` need not vary.
    """
    if not branches:
        return whole
    whole.vacuous = False
    every = [whole, *branches]
    worst = max(every, key=_badness)
    worst.second_pass = max(
        (p.second_pass for p in every if p.second_pass), key=_badness, default=None
    )
    worst.passes, worst.seconds = sum(p.passes for p in every), sum(p.seconds for p in every)
    worst.notes = list(dict.fromkeys(note for p in every for note in p.notes))
    worst.notes.append("each branch of its Ifs that was cut was run")
    return worst


def _badness(part: Proof | SecondPass) -> tuple[bool, float]:
    error = part.max_error if isinstance(part, Proof) else part.error
    return not part.passed, error / part.tolerance


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


def says_nothing(outputs: Iterable[Any]) -> str:
    """Why ``outputs`` agree whatever was cut, or may well do so: they are empty, NaN, constant or
    whole numbers; "" where one of them holds real numbers that vary."""
    arrays = [as_numpy(x) for x in outputs]
    held = [x for x in arrays if x.size]
    if not held:
        return "empty"
    if is_nan(held):
        return "NaN"
    if is_constant(held):
        return "constant"
    if all(map(_is_whole, held)):
        return "whole numbers"
    return ""


def _is_whole(array: NDArray[Any]) -> bool:
    """Whether all that is finite in ``array`` is a whole number."""
    if array.dtype.kind not in "fcV":
        return True
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    finite = wide[np.isfinite(wide)]
    return bool((finite.imag == 0).all() and (finite.real == np.round(finite.real)).all())
