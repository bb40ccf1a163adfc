"""Repair without training: the passes that make a cut model compute again what the original
computed, behind one call.

A repaired model differs from the silenced original on purpose: the proof is made on the sliced
model, before. What a repair is worth is measured instead: the error of the outputs against the
original on the calibration data, before and after. One that does not lower it is taken back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from irprune.base.extension import is_users, users_code
from irprune.base.near import meant
from irprune.choice.plan import Plan
from irprune.criteria.readings import Readings
from irprune.criteria.relevance import relevance
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph, Weight
from irprune.ir.size import probe_of
from irprune.ir.text import to_text
from irprune.passes.repairs import repair_of, repairs
from irprune.passes.result import PassResult
from irprune.run.batch import Batch, split_rows
from irprune.run.calibration import Calibration
from irprune.run.difference import channel_dims, square_off, units
from irprune.run.interpret import evaluate
from irprune.run.kept_files import kept_files, within_part, within_step
from irprune.run.logits import Logits, divergence, logits_of, shortened
from irprune.run.noise import noise
from irprune.run.precision import computing_type
from irprune.run.statistics import kept_part

__all__ = ["Repaired", "off_original", "output_error", "repair"]

JUDGED = 64  # samples that the outputs are compared on, before and after
ROWS = 4  # that give logits at a time
MEMORY = 1 << 28  # bytes of the original's outputs that are kept between two comparisons


@dataclass
class Repaired:
    """``methods`` that were kept, in order; ``before`` and ``after`` are relative errors of the
    outputs (the root of the mean squared difference over that of the output), or, where the output
    is logits, divergences from the original's next token in nats (``measure`` says which);
    ``notes`` say what was left alone and why."""

    methods: tuple[str, ...]
    before: float
    after: float
    samples: int  # that were compared
    notes: list[str] = field(default_factory=list)
    measure: str = "output error"

    def __str__(self) -> str:
        if not self.methods:
            return f"no repair: {self.measure} {self.before:.3g} on {self.samples} samples"
        return f"{' + '.join(self.methods)}: {self.measure} {self.before:.3g} -> {self.after:.3g} on {self.samples} samples"


def repair(
    original: Graph,
    cut: Graph,
    calibration: Any = None,
    method: str | Sequence[str] = "least_squares",
    *,
    noise_range: tuple[float, float] | None = None,
    **options: Any,
) -> Repaired:
    """Repair the weights of ``cut`` in place, so that it computes what ``original`` (analysed, with
    its choice) computes.

    ``calibration`` is anything that ``Calibration`` reads; None means noise: normal, or uniform in
    ``noise_range``, with a warning where more than half of a group was dropped. ``method`` names
    one repair of ``irprune.passes.repairs`` or several, run in their order; ``options`` go to the
    passes that have them (``ridge``, ``rows``, ``memory``, ``alike``). Of ``Readings`` that hold
    samples out, those judge. Raises IrpruneError for unknown names and unusable data."""
    names = (method,) if isinstance(method, str) else tuple(method)
    passes = {name: repair_of(name) for name in names}
    has = {name: [f.name for f in fields(passes[name])][2:] for name in names}  # type: ignore[arg-type]
    known = {option for many in has.values() for option in many}
    for option in options:
        if option not in known:
            raise IrpruneError(
                f"repair has no option {option!r}",
                "repair",
                meant(option, known, "one of " + ", ".join(sorted(known))),
            )
    if original.kept is None:
        raise IrpruneError(
            "repair needs the original graph with its choice",
            "repair",
            "run choose on it, and slice on a copy",
        )
    notes: list[str] = []
    readings = calibration if isinstance(calibration, Readings) else None
    if readings is not None:
        data = readings.data
    elif calibration is None:
        data = _noise(original, noise_range, notes)
    else:
        data = Calibration(
            calibration,
            original,
            samples=calibration.samples if isinstance(calibration, Calibration) else None,
            graphs=2,  # the original and the cut one
        )
    judge = _judge(original, data if readings is None else readings.judged)
    told = Plan.from_graph(original).digest(), to_text(cut), repr((names, options))
    with within_step(*told):
        steps = _Steps(original, cut, data, readings, options, judge, notes)
        for number, name in enumerate(names):
            steps.take(number, name, passes[name])
    return Repaired(
        tuple(steps.done), steps.before, steps.error, judge.samples, notes, judge.measure
    )


class _Steps:
    """Repairs one after another, each taken back where it makes the outputs worse."""

    def __init__(
        self,
        original: Graph,
        cut: Graph,
        data: Calibration,
        readings: Readings | None,
        options: Mapping[str, Any],
        judge: _Judge,
        notes: list[str],
    ) -> None:
        self.original, self.cut, self.data, self.readings = original, cut, data, readings
        self.options, self.judge, self.notes = options, judge, notes
        self.done: list[str] = []
        self.files = kept_files("judged", of_step=True)
        self.before = self.error = self._judged("before")

    def take(self, number: int, name: str, kind: Any) -> None:
        """Make the repair ``name``, a pass of ``kind``."""
        has = [f.name for f in fields(kind)][2:]
        held = {w: w.load for w in self.cut.weights.values()}
        own = {k: v for k, v in self.options.items() if k in has}
        if "readings" in has and self.readings is not None:
            own["readings"] = self.readings
        if "judge" in has:
            own["judge"] = self.judge.error
        if "relevance" in has and "relevance" not in own:
            own["relevance"] = relevance(self.original, self.data)
        before = to_text(self.cut)
        with within_part(f"{number}-{name}"), _named(kind, name):
            result = kind(self.original, self.data, **own).run(self.cut)
        self._check(result, name, held)
        if to_text(self.cut) != before:
            raise IrpruneError(
                f"repair {name!r} changed the graph", "", "it may change weights alone"
            )
        self.notes += result.notes
        now = self._judged(f"{number}") if result.changed else self.error
        if not now <= self.error and result.changed:
            for w, load in held.items():
                w.load = load
            self.notes.append(
                f"{name}: taken back, the output error would have risen from {self.error:.3g} to {now:.3g}"
            )
        elif result.changed:
            self.error = now
            self.done.append(name)

    def _check(self, result: object, name: str, held: Mapping[Weight, Any]) -> None:
        """Raises IrpruneError where a repair did not say what it did, or changed a shape."""
        told = "return PassResult(True) or PassResult(False) of irprune.passes"
        if not isinstance(result, PassResult):
            raise IrpruneError(f"repair {name!r} returned {result!r}", "", told)
        for weight, load in held.items():
            if weight.load is load:
                continue
            if not result.changed:
                raise IrpruneError(
                    f"repair {name!r} said that nothing changed, but a weight did",
                    weight.name,
                    told,
                )
            shape, made = tuple(weight.type.known), tuple(weight.load().shape)
            if shape != made:
                raise IrpruneError(
                    f"repair {name!r} changed the shape {list(shape)} to {list(made)}",
                    weight.name,
                    "it may change values alone",
                )

    def _judged(self, when: str) -> float:
        """How far the cut graph is off, or was in an earlier run."""
        known = None if self.files is None else self.files.get(when)
        if known is not None:
            error, self.judge.samples = known
            return float(error)
        made = self.judge.error(self.cut)
        if self.files is not None:
            self.files.put(when, [made, self.judge.samples])
        return made


def _named(kind: type, name: str) -> contextlib.AbstractContextManager[None]:
    """What a repair of the user's own raises becomes one line with its place."""
    if is_users(kind):
        return users_code(kind.__module__, f"repair {name!r}")
    return contextlib.nullcontext()


def _noise(original: Graph, limits: tuple[float, float] | None, notes: list[str]) -> Calibration:
    """Random inputs, and a warning where they are not to be trusted."""
    assert original.kept is not None
    most = max(
        (1 - k.shape[-1] / probe_of(a.size) for a, k in original.kept.choice.items()),
        default=0.0,
    )
    notes.append("no calibration data: repaired on noise")
    if most > 0.5:
        text = f"repair on noise is unreliable where more than half of a group is dropped (here up to {most:.2f}): give calibration="
        notes.append(text)
        warnings.warn(text, stacklevel=3)
    low, high = limits if limits is not None else (None, None)
    return noise(original, low=low, high=high)


def __getattr__(name: str) -> Any:
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "METHODS is irprune.passes.repairs.repairs() now", DeprecationWarning, stacklevel=2
    )
    return tuple(repairs())


def output_error(original: Graph, cut: Graph, calibration: Calibration) -> float:
    """The root mean squared difference of all floating-point outputs, each relative to its own root
    mean square (of each channel, where their scales are unlike), averaged over outputs."""
    return _Judge(original, calibration).error(cut)


def off_original(original: Graph, cut: Graph, data: Any) -> float:
    """``output_error`` on calibration data in any form, or on what readings hold out; of a model
    whose output is logits the divergence of the next token in nats."""
    if isinstance(data, Readings):
        return _judge(original, data.judged).error(cut)
    return _judge(original, Calibration(data, original)).error(cut)


def _judge(original: Graph, data: Calibration) -> _Judge:
    """What compares outputs: of a model that gives logits on fewer rows, a few at a time, since a
    vocabulary is large."""
    if logits_of(original) is None:
        return _Judge(original, data.joined(JUDGED))
    few = [shortened(original, b) for b in data.joined(JUDGED // 4)]
    return _Judge(
        original, [p for b in few for p in (split_rows(b, ROWS) if data.resizable else [b])]
    )


class _Judge:
    """What the original says to some data: kept for as many batches as ``MEMORY`` bytes hold,
    worked out again for the others."""

    def __init__(self, original: Graph, data: Iterable[Batch]) -> None:
        self.original, self.data = original, data
        self.half = computing_type(original)
        self._said: dict[int, list[torch.Tensor]] = {}
        self._left = MEMORY
        self._dims = channel_dims(original)
        self._units: dict[int, torch.Tensor | None] = {}
        self.samples = 0  # of the last comparison
        self.logits = logits_of(original)
        self.measure = "output error" if self.logits is None else "divergence in nats"

    def _answers(self, number: int, batch: Batch) -> list[torch.Tensor]:
        if number not in self._said:
            made = evaluate(self.original, batch.inputs, dtype=self.half)
            size = sum(t.nbytes for t in made)
            if size > self._left:
                return made
            self._said[number] = made
            self._left -= size
        return self._said[number]

    def error(self, cut: Graph) -> float:
        """See ``output_error``; of logits the divergence."""
        if self.logits is not None:
            return self._divergence(cut, self.logits)
        kept = self.original.kept
        difference: dict[int, float] = {}
        power: dict[int, float] = {}
        self.samples = 0
        for number, batch in enumerate(self.data):
            self.samples += batch.size
            theirs = self._answers(number, batch)
            ours = evaluate(cut, batch.inputs, dtype=self.half)
            for i, (a, b, v) in enumerate(zip(ours, theirs, self.original.outputs, strict=True)):
                if not b.is_floating_point() or kept is None:
                    continue
                b = kept_part(b, v, kept)
                if i not in self._units:
                    self._units[i] = units(b, self._dims[i])
                more, whole = square_off(a, b, self._units[i], self._dims[i])
                difference[i] = difference.get(i, 0.0) + more
                power[i] = power.get(i, 0.0) + whole
        shares = [
            (difference[i] / power[i]) ** 0.5 if power[i] > 0 else float(difference[i] > 0)
            for i in difference
        ]
        return sum(shares) / len(shares) if shares else 0.0

    def _divergence(self, cut: Graph, logits: Logits) -> float:
        total, count = 0.0, 0
        self.samples = 0
        for number, batch in enumerate(self.data):
            self.samples += batch.size
            theirs = self._answers(number, batch)[logits.output]
            ours = evaluate(cut, batch.inputs, dtype=self.half)[logits.output]
            lost, tokens = divergence(ours, theirs, logits.weights(batch.inputs))
            total, count = total + lost, count + tokens
        return total / max(1, count)
