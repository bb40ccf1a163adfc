"""How well one model agrees with another on data: metrics over batches of outputs.

A metric reads, batch by batch, the inputs by name, the outputs of the model that is judged and
those of the reference, all as arrays of numpy. ``choose_metric`` picks one by what the outputs
look like. Each is one class, registered by ``@metric``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from irprune.base.entry_points import load_entry_points
from irprune.base.extension import check_methods, check_name, is_again, is_users, users_code
from irprune.base.near import meant
from irprune.errors import IrpruneError

__all__ = ["METRICS", "Meter", "Metric", "choose_metric", "metric", "metric_of"]

Array = NDArray[Any]
Arrays = Sequence[Array]
_TINY = 1e-30  # keeps a quotient of zeros from being none
_BOXES = 100  # of an image, the most certain ones, are compared


class Meter(Protocol):
    """Collects a metric over batches."""

    def add(self, inputs: Mapping[str, Array], ours: Arrays, theirs: Arrays) -> None:
        """Count one batch: ``ours`` of the model that is judged, ``theirs`` of the reference."""

    def value(self) -> float:
        """The metric over all that was added."""


@dataclass(frozen=True)
class Metric:
    """A metric: what it is called and says, whether more of it is better, and what makes a meter
    for it."""

    name: str
    help: str
    higher: bool
    meter: Callable[[], Meter]


METRICS: dict[str, Metric] = {}
_LOADED: list[str] = []
_CLASSES: dict[str, object] = {}
M = TypeVar("M", bound=Callable[[], Meter])


class _Users:
    """A meter of the user's own: what it raises becomes one line."""

    def __init__(self, name: str, made: Callable[[], Meter]) -> None:
        self.name = f"metric {name!r}"
        with users_code(made.__module__, self.name):
            self.own = made()

    def add(self, inputs: Mapping[str, Array], ours: Arrays, theirs: Arrays) -> None:
        with users_code("", self.name):
            self.own.add(inputs, ours, theirs)

    def value(self) -> float:
        with users_code("", self.name):
            made = self.own.value()
        if not isinstance(made, Real):
            raise IrpruneError(f"{self.name} gave {made!r}", "", "its value is one number")
        return float(made)


def metric(name: str, higher: bool = True) -> Callable[[M], M]:
    """Register a class of meters under ``name``; its docstring says what it measures.

    Raises TypeError for what is no class of meters, made without arguments, and ValueError where
    the name is taken by another class."""
    check_name("metric", name)

    def register(made: M) -> M:
        check_methods(made, "metric", name, {"add": ("inputs", "ours", "theirs"), "value": ()})
        if name in METRICS and not is_again(made, _CLASSES[name]):
            raise ValueError(f"metric {name!r} is declared twice")
        meter = partial(_Users, name, made) if is_users(made) else made
        METRICS[name] = Metric(name, " ".join((made.__doc__ or "").split()), higher, meter)
        _CLASSES[name] = made
        return made

    return register


def metric_of(name: str) -> Metric:
    """The metric called ``name``, of irprune or of an installed package. Raises IrpruneError where
    there is none."""
    if name not in METRICS and not _LOADED:
        _LOADED.append("done")
        load_entry_points("irprune.metrics")
    if name not in METRICS:
        hint = meant(name, METRICS, "one of " + ", ".join(METRICS))
        raise IrpruneError(f"no metric is called {name!r}", "", hint)
    return METRICS[name]


class _Mean:
    """Collects a mean with weights."""

    def __init__(self) -> None:
        self.total, self.weight = 0.0, 0.0

    def count(self, total: float, weight: float) -> None:
        self.total, self.weight = self.total + total, self.weight + weight

    def value(self) -> float:
        return self.total / self.weight if self.weight else math.nan


def _pairs(ours: Arrays, theirs: Arrays) -> list[tuple[Array, Array]]:
    """The outputs that hold floating-point numbers, of both models."""
    return [
        (a.astype(np.float64), b.astype(np.float64))
        for a, b in zip(ours, theirs, strict=True)
        if b.dtype.kind in "fV" and a.shape == b.shape and b.size
    ]


@metric("top1")
class Top1(_Mean):
    """The share of samples (of positions, where an output has classes at each) whose largest class
    is the original's."""

    def add(self, inputs: Mapping[str, Array], ours: Arrays, theirs: Arrays) -> None:
        found = [(a, b) for a, b in _pairs(ours, theirs) if _classes(b) > 1]
        if not found:
            raise IrpruneError("no output has classes", "metric top1", "take another metric")
        for a, b in found:
            axis = _class_axis(b)
            same = a.argmax(axis) == b.argmax(axis)
            self.count(float(same.mean()) * len(b), len(b))


@metric("cosine")
class Cosine(_Mean):
    """The mean cosine of the angle between the outputs of a sample and the original's."""

    def add(self, inputs: Mapping[str, Array], ours: Arrays, theirs: Arrays) -> None:
        for a, b in _pairs(ours, theirs):
            x, y = a.reshape(_rows(a), -1), b.reshape(_rows(b), -1)
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            both = (x == y).all(axis=1)  # two zeros have no angle
            cosines = np.where(both, 1.0, (x * y).sum(1) / np.maximum(norms, _TINY))
            self.count(float(cosines.sum()), len(x))


@metric("snr")
class SignalToNoise:
    """The signal-to-noise ratio of the outputs in dB: the power of the original's outputs over that
    of the differences, the mean over outputs."""

    def __init__(self) -> None:
        self.power: dict[int, list[float]] = {}

    def add(self, inputs: Mapping[str, Array], ours: Arrays, theirs: Arrays) -> None:
        for k, (a, b) in enumerate(_pairs(ours, theirs)):
            held = self.power.setdefault(k, [0.0, 0.0])
            held[0] += float(np.square(b).sum())
            held[1] += float(np.square(a - b).sum())

    def value(self) -> float:
        each = [
            10 * math.log10(max(signal, _TINY) / noise) if noise else math.inf
            for signal, noise in self.power.values()
        ]
        return sum(each) / len(each) if each else math.nan


@metric("iou")
class BoxOverlap(_Mean):
    """The mean overlap (intersection over union) of the original's boxes with the nearest box of
    the model, over the 100 most certain boxes of each image."""

    def add(self, inputs: Mapping[str, Array], ours: Arrays, theirs: Arrays) -> None:
        first, second = _boxes(theirs), _boxes(ours)
        if first is None or second is None:
            raise IrpruneError(
                "no output holds boxes", "metric iou", "boxes are an output of shape [n, 4]"
            )
        for one, other in zip(first, second, strict=True):
            if not len(one):
                continue
            best = _overlaps(one, other).max(axis=1) if len(other) else np.zeros(len(one))
            self.count(float(best.sum()), len(one))


@metric("perplexity", higher=False)
class Perplexity(_Mean):
    """The perplexity of the model itself on the tokens of its input, each predicted from those
    before it; less is better."""

    def add(self, inputs: Mapping[str, Array], ours: Arrays, theirs: Arrays) -> None:
        tokens, logits = _tokens(inputs), _logits(inputs, ours)
        if tokens is None or logits is None:
            raise IrpruneError(
                "this is no language model",
                "metric perplexity",
                "it takes token ids [batch, length] and gives [batch, length, vocabulary]",
            )
        mask = inputs.get("attention_mask")
        shifted = logits[:, :-1].astype(np.float64)
        shifted = shifted - shifted.max(-1, keepdims=True)
        each = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        told = np.take_along_axis(each, tokens[:, 1:, None].astype(np.int64), -1)[..., 0]
        counted = np.ones_like(told) if mask is None else (mask[:, 1:] != 0).astype(np.float64)
        self.count(float(-(told * counted).sum()), float(counted.sum()))

    def value(self) -> float:
        return math.exp(min(super().value(), 700.0))


# -- which metric fits -----------------------------------------------------------------------------


def choose_metric(
    inputs: Mapping[str, Array], run: Callable[[Mapping[str, Array]], Arrays]
) -> Metric:
    """The metric that fits a model, of which ``run`` gives the outputs for inputs.

    Overlap for boxes, agreement of the largest class for classes, signal-to-noise for what is
    shaped as the input, perplexity where token ids go in and each gets a score for every word that
    does not depend on later tokens; else the cosine."""
    outputs = run(inputs)
    floats = [o for o in outputs if o.dtype.kind in "fV"]
    if _tokens(inputs) is not None and _logits(inputs, outputs) is not None:
        return METRICS["perplexity" if _causal(inputs, outputs, run) else "top1"]
    if _boxes(outputs) is not None:
        return METRICS["iou"]
    given = [x.shape for x in inputs.values() if x.dtype.kind in "fV"]
    if any(o.ndim > 2 and o.shape in given for o in floats):
        return METRICS["snr"]
    scored = [o for o in floats if _classes(o) > 1 and not _unit(o)]
    if scored and len(scored) == len(floats) and all(o.ndim != 3 for o in scored):
        return METRICS["top1"]
    return METRICS["cosine"]


def _rows(x: Array) -> int:
    return len(x) if x.ndim > 1 else 1


def _class_axis(x: Array) -> int:
    """Classes stand in the second dimension of images and vectors, in the last of sequences."""
    return 1 if x.ndim in (2, 4, 5) else -1


def _classes(x: Array) -> int:
    return int(x.shape[_class_axis(x)]) if x.ndim > 1 else 0


def _unit(x: Array) -> bool:
    """Whether every row has length 1, as embeddings have it."""
    if x.ndim != 2:
        return False
    return bool(np.allclose(np.linalg.norm(x.astype(np.float64), axis=1), 1, atol=1e-3))


def _tokens(inputs: Mapping[str, Array]) -> Array | None:
    """The ids of the tokens, [batch, length]."""
    for name, x in inputs.items():
        if x.dtype.kind in "iu" and x.ndim == 2 and x.shape[1] > 1 and "mask" not in name:
            return x
    return None


def _logits(inputs: Mapping[str, Array], outputs: Arrays) -> Array | None:
    """The output with a score for every word at every token."""
    tokens = _tokens(inputs)
    if tokens is None:
        return None
    for x in outputs:
        fits = x.ndim == 3 and x.shape[:2] == tokens.shape and x.dtype.kind in "fV"
        if fits and x.shape[2] > int(tokens.max(initial=0)) and x.shape[2] > 2:
            return x
    return None


def _causal(
    inputs: Mapping[str, Array], outputs: Arrays, run: Callable[[Mapping[str, Array]], Arrays]
) -> bool:
    """Whether the scores at a token stay as they are when the last token is another one."""
    tokens, logits = _tokens(inputs), _logits(inputs, outputs)
    assert tokens is not None and logits is not None
    other = tokens.copy()
    other[:, -1] = np.where(other[:, -1] == 0, 1, other[:, -1] - 1)
    name = next(n for n, x in inputs.items() if x is tokens)
    changed = _logits({name: other}, run({**inputs, name: other}))
    if changed is None:
        return False
    scale = float(np.abs(logits).max(initial=0))
    return bool(np.abs(changed[:, :-1] - logits[:, :-1]).max(initial=0) <= 1e-3 * scale)


def _boxes(outputs: Arrays) -> list[Array] | None:
    """Of each image the most certain boxes as [n, 4] corners; None where no output holds boxes.

    Either an output ends in a dimension of 4 (corners, or centres with sizes), with scores in
    another one; or it is that of a YOLO without its last step, of centres with sizes: from version
    8 on [images, 4 + classes, places], before [images, places, 4 + 1 + classes], where the fifth
    number says how likely something is there."""
    for x in outputs:
        if x.dtype.kind != "f" or x.ndim not in (2, 3) or x.shape[-1] != 4:
            continue
        boxes = x if x.ndim == 3 else x[None]
        if boxes.shape[1] < 2 and x.ndim == 2:
            continue
        scores = [
            (s if s.ndim > 1 and x.ndim == 3 else s[None]).reshape(*boxes.shape[:2], -1).max(-1)
            for s in outputs
            if s is not x and s.dtype.kind == "f" and s.shape[: x.ndim - 1] == x.shape[:-1]
        ]
        certain = (
            scores[0] if scores else -np.broadcast_to(np.arange(boxes.shape[1]), boxes.shape[:2])
        )
        return [_corners(b, c) for b, c in zip(boxes, certain, strict=True)]
    for x in outputs:
        if x.dtype.kind == "f" and x.ndim == 3 and x.shape[1] >= 5 and x.shape[2] > 8 * x.shape[1]:
            found = x.transpose(0, 2, 1)
            return [_corners(f[:, :4], f[:, 4:].max(-1), centred=True) for f in found]
    for x in outputs:
        if _with_objectness(x):
            return [
                _corners(f[:, :4], f[:, 4] * f[:, 5:].max(-1), centred=True)
                for f in x.astype(np.float64)
            ]
    return None


def _with_objectness(x: Array) -> bool:
    """Whether ``x`` is what a YOLO up to version 7 gives: at many places a centre and a size in
    pixels, and behind them likelihoods."""
    if x.dtype.kind != "f" or x.ndim != 3 or x.shape[2] < 6 or x.shape[1] <= 8 * x.shape[2]:
        return False
    boxes, told = x[..., :4], x[..., 4:]
    likely = bool((told >= 0).all() and (told <= 1).all())
    return likely and bool((boxes[..., 2:] >= 0).all() and boxes.max() > 2)


def _corners(boxes: Array, certain: Array, centred: bool = False) -> Array:
    """The most certain boxes as corners."""
    best = boxes[np.argsort(-certain, kind="stable")[:_BOXES]].astype(np.float64)
    if not centred and (best[:, 2:] >= best[:, :2]).all():
        return best
    middle, half = best[:, :2], np.abs(best[:, 2:]) / 2
    return np.concatenate((middle - half, middle + half), axis=1)


def _overlaps(a: Array, b: Array) -> Array:
    """Intersection over union of every box of ``a`` with every one of ``b``."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    sizes = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    whole = sizes[0][:, None] + sizes[1][None] - both
    found: Array = np.where(whole > 0, both / np.maximum(whole, _TINY), (whole == 0) * 1.0)
    return found
