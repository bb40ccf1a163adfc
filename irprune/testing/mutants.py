"""Planted faults: an operator's rule, its silencing or its sizes made wrong, one fault at a time,
and what sees it.

Each entry of the operator table makes its own small model, out of its samples: the operator stands
between parameters that depend on the input and weights that sum its results up, so that every axis
of it can be cut. A fault is planted, the model is pruned, and the proof fails or it does not.

A fault is harmless where it changes nothing (the cut graph and its numbers are the same), where the
table without the fault makes the same cut, and where the original itself, its dropped weights
zeroed, computes what was cut and the operator's samples commute with slicing under the fault: so
it is with a freeze that only keeps widths that might go, and with what changes a result by less
than rounding does."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import irprune
from irprune.api.pruned import Pruned
from irprune.base.tolerance import FLOAT32
from irprune.driver.pipelines import analyse
from irprune.emit.onnx.emitter import Emitter
from irprune.errors import CheckFailed, IrpruneError
from irprune.frontend.torch.source import torch_source
from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ops import registry
from irprune.ops.arrays import as_numpy
from irprune.ops.call import overload
from irprune.ops.dtypes import TO_TORCH
from irprune.ops.registry import Arg, Op, Sample
from irprune.ops.rule.signature import Signature
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors, random_inputs
from irprune.validate.judge import forward_with
from irprune.validate.onnx_judge import zeroed_model
from irprune.validate.onnx_run import run_model

__all__ = ["Mutant", "Samples", "Seen", "Subject", "around", "see", "subjects", "systematic"]

Plant = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Mutant:
    """A fault: ``kind`` groups it in tables, ``plant`` is a context in which it is there, and
    ``where`` names the operator whose models show it, "" for all."""

    name: str
    kind: str
    plant: Plant
    where: str = ""


@dataclass(frozen=True)
class Subject:
    """A small model that a fault may show in, and its example input."""

    name: str
    operator: str
    make: Callable[[], tuple[nn.Module, tuple[Any, ...]]]


@dataclass(frozen=True)
class Seen:
    """What saw a fault: ``proof``; ``refused``, where no model came out for another reason;
    ``tests``, where a wrong model came out and the operator's samples refuse; ``nothing``, where
    they do not; ``harmless``, where the fault changes nothing or what it gives is right."""

    by: str
    subject: str
    said: str = ""


# -- models from samples ---------------------------------------------------------------------------


class _Around(nn.Module):
    """An operator between parameters and sums over its results."""

    def __init__(self, target: str, sample: Sample, rename: dict[str, str]) -> None:
        super().__init__()
        self.target, self.fixed = target, dict[str, Any]()
        self.learned: set[str] = set()
        self.layout: list[tuple[str, Any]] = []
        given: list[Any] = list(sample.args)
        unread = dict(sample.attrs)
        for a in overload(target)._schema.arguments:
            name = rename.get(a.name, a.name)
            if "Tensor" not in str(a.type):
                if name in unread:
                    self.fixed[a.name] = _torch_value(a.name, unread.pop(name))
            elif str(a.type).startswith("List"):
                own = bool(given) and isinstance(given[0], tuple)
                many: list[Any] = list(given.pop(0)) if own else given
                given = given if own else []
                self.layout.append(
                    (a.name, [self._hold(f"{a.name}{i}", m) for i, m in enumerate(many)])
                )
            elif given:
                self.layout.append((a.name, self._hold(a.name, given.pop(0))))
        if given or unread:
            raise ValueError("the sample has more than the operator takes")
        with torch.no_grad():
            for k, result in enumerate(self._results(torch.ones(1))):
                for d, size in enumerate(result.shape):
                    weight = torch.randn(size, 2) / size**0.5
                    self.register_parameter(f"sum{k}_{d}", nn.Parameter(weight))

    def _hold(self, name: str, arg: Arg | None) -> str:
        if arg is None:
            return ""
        dtype = TO_TORCH[arg.dtype]
        if arg.values is not None:
            made = torch.tensor(arg.values).to(dtype).reshape(arg.shape)
        else:
            uniform = arg.low + (arg.high - arg.low) * torch.rand(arg.shape)
            if dtype.is_complex:
                made = torch.complex(uniform, torch.rand(arg.shape)).to(dtype)
            else:
                made = (uniform if dtype.is_floating_point else uniform.floor()).to(dtype)
        key = f"operand_{name}"
        if dtype.is_floating_point and arg.values is None:
            self.register_parameter(key, nn.Parameter(made.float()))
            self.learned.add(key)
        else:
            self.register_buffer(key, made)
        return key

    def _operand(self, key: str, x: Tensor) -> Any:
        if not key:
            return None
        held = getattr(self, key)
        return held * (1 + x / 8) if key in self.learned else held

    def _results(self, x: Tensor) -> list[Tensor]:
        filled = {
            name: [self._operand(k, x) for k in key]
            if isinstance(key, list)
            else self._operand(key, x)
            for name, key in self.layout
        }
        made = overload(self.target)(**filled, **self.fixed)
        return [
            t
            for t in (made if isinstance(made, (list, tuple)) else [made])
            if isinstance(t, Tensor)
        ]

    def forward(self, x: Tensor) -> list[Tensor]:
        out = []
        for k, y in enumerate(self._results(x)):
            y = y.real + 0.7 * y.imag if y.is_complex() else y
            y = y.float() if not y.is_floating_point() else y
            for d in range(y.dim()):
                y = torch.tensordot(y, getattr(self, f"sum{k}_{d}"), dims=([0], [0]))
            out.append(y * x)
        return out


def _torch_value(name: str, value: Any) -> Any:
    if isinstance(value, str) and value in TO_TORCH and "dtype" in name:
        return TO_TORCH[value]
    return value


def around(entry: Op, target: str, sample: Sample) -> Subject | None:
    """A small model of a sample of ``entry`` in the spelling ``target``; None where it gives
    none."""

    def make() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        return _Around(target, sample, dict(entry.aten[target])).eval(), (torch.randn(1),)

    try:
        with torch.no_grad():
            model, args = make()
            model(*args)
    except Exception:  # the sample is written for another spelling
        return None
    return Subject(f"{entry.name} ({target})", entry.name, make)


def subjects(entry: Op) -> Iterator[Subject]:
    """The small models of ``entry`` that prune as they should when nothing is planted."""
    for target, sample in itertools.product(entry.aten, entry.samples):
        if sample.target not in ("", target) or entry.random:
            continue
        found = around(entry, target, sample)
        if found is not None:
            yield found


# -- what sees a fault -----------------------------------------------------------------------------


Samples = Callable[[str], str]
"""Tries the samples of an operator; says what is wrong with them, "" where nothing is."""


def see(
    mutant: Mutant,
    subject: Subject,
    options: dict[str, Any] | None = None,
    samples: Samples | None = None,
) -> Seen:
    """Prune ``subject`` with the fault planted, and say what sees it; ``samples`` are asked where
    the proof does not."""
    given = {"ratio": 0.5, **(options or {})}
    right = _right(subject, tuple(given.items()))
    model, args = subject.make()
    with mutant.plant():
        try:
            wrong = irprune.prune(model, args, **given)
        except CheckFailed as failed:
            return Seen("proof", subject.name, str(failed))
        except Exception as failed:  # whatever it is, no wrong model came out
            return Seen("refused", subject.name, f"{type(failed).__name__}: {failed}")
    if _same(right, wrong):
        return Seen("harmless", subject.name, "the same")
    try:
        again = irprune.apply_plan(subject.make()[0], wrong.plan, args)
        if _same(again, wrong):
            return Seen("harmless", subject.name, "the same without the fault")
        said = "another model without the fault"
    except (IrpruneError, ValueError, RuntimeError, KeyError) as refused:
        said = f"{type(refused).__name__}: {refused}"
    if samples is None:
        return Seen("nothing", subject.name, said)
    with mutant.plant():
        told = samples(subject.operator)
    if told:
        return Seen("tests", subject.name, told)
    if _confirmed(wrong):
        return Seen("harmless", subject.name, "confirmed by the original")
    return Seen("nothing", subject.name, said)


@lru_cache(maxsize=32)
def _right(subject: Subject, options: tuple[tuple[str, Any], ...]) -> Pruned:
    """What comes out of ``subject`` where nothing is planted."""
    model, args = subject.make()
    return irprune.prune(model, args, **dict(options))


def _confirmed(pruned: Pruned) -> bool:
    """Whether the original itself, all its dropped weights zeroed, computes what was cut."""
    proof = pruned.report.proof
    if proof is None or proof.second_pass is None or pruned.graph.kept is None:
        return False
    if proof.second_pass.judge_error is not None and proof.second_pass.judged == 1:
        return proof.second_pass.agreed
    graph, kept = pruned.graph, pruned.graph.kept
    if pruned.from_onnx:
        given = random_inputs(graph, {}, seed=0)
        zeroed, data = zeroed_model(graph, kept)
        theirs = run_model(zeroed, given, optimise=False, data=data)
        emitter = Emitter(pruned.cut)
        ours = run_model(emitter.emit(), given, optimise=False, data=emitter.data)
        return relative_error(ours, theirs) <= FLOAT32
    source = torch_source(graph)
    call = (tuple(source.args), dict(source.kwargs))
    expected = forward_with(graph, kept, call, torch.float32, 0)
    with torch.no_grad():
        made = flat_tensors(pruned.module(*source.args, **source.kwargs))
    return relative_error(made, expected) <= FLOAT32


def _file(pruned: Pruned) -> list[bytes]:
    """The file that is written, and what lies beside it."""
    emitter = Emitter(pruned.cut)
    message = emitter.emit().SerializeToString(deterministic=True)
    return [message, *(as_numpy(load()).tobytes() for load in emitter.data.values())]


def _same(a: Pruned, b: Pruned) -> bool:
    """Whether two cuts are the same graph with the same numbers, or the same file."""
    if a.from_onnx and b.from_onnx and _file(a) == _file(b):
        return True
    if str(a.cut) != str(b.cut):
        return False
    ours, theirs = a.cut.weights, b.cut.weights
    return ours.keys() == theirs.keys() and all(
        np.array_equal(as_numpy(w.load()), as_numpy(theirs[k].load()), equal_nan=True)
        for k, w in ours.items()
    )


# -- faults made by operators over the table -------------------------------------------------------


def systematic(entry: Op, models: Sequence[Subject] = ()) -> Iterator[Mutant]:
    """Faults of one entry: a letter swapped, a factor dropped, a freeze forgotten, a relation
    forgotten (what is split or cut gives axes that stand alone), sizes and silencing left out. What
    a rule calls is counted in the first of ``models``, by default in the first of those in ATen."""
    if entry.signature is not None:
        yield from _signatures(entry, entry.signature)
    else:
        for method in ("unify", "freeze", "product", "sum", "split", "cut"):
            for k in range(_calls(entry, method, models)):
                yield _changed(
                    entry,
                    f"call {k} of {method} forgotten",
                    method,
                    rule=_skipping(entry, method, k),
                )
    if entry.silence is not None:
        yield _changed(entry, "silencing forgotten", "silence", silence=None)
    if entry.resize is not None:
        yield _changed(entry, "sizes left as they were", "resize", resize=None)
        yield _changed(entry, "sizes off by one", "resize", resize=_off_by_one(entry))


def _changed(entry: Op, what: str, kind: str, **fields: Any) -> Mutant:
    def plant() -> contextlib.AbstractContextManager[Any]:
        now = registry.TABLE[entry.name]
        return mock.patch.dict(registry.TABLE, {entry.name: replace(now, **fields)})

    return Mutant(f"{entry.name}: {what}", kind, plant, entry.name)


def _signatures(entry: Op, signature: Signature) -> Iterator[Mutant]:
    """The rule as a string with one thing changed."""
    text = signature.text
    left, right = text.split("->")
    seen = {text}

    def mutant(what: str, changed: str, **fields: Any) -> Iterator[Mutant]:
        if changed in seen and not fields:
            return
        seen.add(changed)
        try:
            made = replace(signature, text=changed, **fields)
            made.sides  # noqa: B018 - parsed here, where it may be no signature
        except Exception:
            return
        yield _changed(entry, what, "signature", signature=made, rule=made.rule)

    letters = list(dict.fromkeys(c for c in text if c.isalpha()))
    operands = left.split(",")
    for k, operand in enumerate(operands):
        own = [c for c in letters if c in operand]
        for a, b in itertools.combinations(own, 2):
            swapped = operand.translate(str.maketrans(a + b, b + a))
            parts = [swapped if i == k else o for i, o in enumerate(operands)]
            yield from mutant(f"{a} and {b} swapped in operand {k}", ",".join(parts) + "->" + right)
        for a in own:
            parts = [operand.replace(a, "_") if i == k else o for i, o in enumerate(operands)]
            if operand.count(a) == 1 and "(" not in operand and "*" not in operand:
                yield from mutant(
                    f"{a} of operand {k} not tied", ",".join(parts).replace("_", "z") + "->" + right
                )
    if "(" in text:
        for a in letters:
            for plain in (f"({a} ", f" {a})"):
                if plain in text:
                    changed = text.replace(plain, "(" if plain[0] == "(" else ")")
                    yield from mutant(f"factor {a} dropped", changed)
    for a in signature.fixed:
        less = tuple(x for x in signature.fixed if x != a)
        made = replace(signature, fixed=less)
        yield _changed(
            entry, f"freeze of {a} forgotten", "signature", signature=made, rule=made.rule
        )


def _calls(entry: Op, method: str, models: Sequence[Subject]) -> int:
    """How often the rule calls ``method`` of the axes in a sample, three at most."""
    count = 0
    real = getattr(Axes, method)

    def counting(self: Axes, *given: Any, **named: Any) -> Any:
        nonlocal count
        count += inside
        return real(self, *given, **named)

    inside = 0

    def rule(axes: Axes, node: Node) -> None:
        nonlocal inside
        inside += 1
        try:
            entry.rule(axes, node)
        finally:
            inside -= 1

    first = next(iter(models), None) or next(subjects(entry), None)
    if first is None:
        return 0
    model, args = first.make()
    with (
        mock.patch.object(Axes, method, counting),
        mock.patch.dict(registry.TABLE, {entry.name: replace(entry, rule=rule)}),
        contextlib.suppress(IrpruneError),
    ):
        analyse(irprune.capture(model, args))
    return min(count, 3)


def _skipping(entry: Op, method: str, k: int) -> Callable[[Axes, Node], None]:
    """The rule of ``entry`` with call ``k`` of ``method`` left out; what joins axes joins them in
    the other order instead."""
    real = getattr(Axes, method)

    def rule(axes: Axes, node: Node) -> None:
        count = -1

        def maybe(self: Axes, *given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count != k:
                return real(self, *given, **named)
            if method in ("product", "sum"):
                return real(self, list(reversed(list(given[0]))), *given[1:], **named)
            if method == "split":  # axes of these sizes that have nothing to do with the whole
                whole, outer = given
                parts = real(self, whole, outer)
                return parts if parts[0] is None else (self.leaf(outer), self.leaf(parts[1].size))
            return [self.leaf(size) for size in given[1]] if method == "cut" else None

        with mock.patch.object(Axes, method, maybe):
            entry.rule(axes, node)

    return rule


class _OffByOne:
    """A choice whose sizes are one less, where anything was dropped."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def size(self, axis: Axis) -> Any:
        return self.real.size(axis) - (1 if self.real.changes(axis) else 0)

    def kept(self, axis: Axis) -> Any:
        return self.real.kept(axis)

    def changes(self, axis: Axis) -> bool:
        return bool(self.real.changes(axis))

    def table(self, axis: Axis, sizes: Any = None) -> Any:
        return self.real.table(axis, sizes)


def _off_by_one(entry: Op) -> Callable[[Node, Any], None]:
    resize = entry.resize
    assert resize is not None
    return lambda node, cut: resize(node, _OffByOne(cut))
