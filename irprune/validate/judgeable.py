"""Which part of a choice an independent judge can look at.

The judge has zeros where weights were dropped (``judge``). Zeros do not stand for what is absent
where a mean, a norm or a softmax counts who is present. It is found out by running the graph with
zeroed weights, where each operator must give what it gives with what was dropped taken out. A
weight that something is divided by stays as it is where zeros give no number, as the scale of a
batch norm that quantisation-aware training folds into its convolution: it is then the others whose
zeros silence what is dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from irprune.frontend.torch.source import torch_source
from irprune.ir.axis import Axis, find, leaves
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.selection import Selection
from irprune.ops.registry import convolution_of, draws, lookup
from irprune.run.interpret import evaluate, symbols_of
from irprune.run.oracle import Presence
from irprune.run.typed_load import TypedLoad
from irprune.validate.judge import Judged, zeroed
from irprune.validate.judge_share import without

# How often a run ends where the first axis is spoilt: the width of a transformer is, by its first
# norm, and all that comes after it need not run
_AT_ONCE = 4

__all__ = ["judgeable", "silenced_and_judgeable"]


def judgeable(
    graph: Graph, kept: Selection, inputs: list[torch.Tensor], dtype: torch.dtype
) -> Judged:
    """The part of ``kept`` for which zeroed weights compute what absent ones do.

    Args:
        graph: the analysed original.
        kept: what was chosen.
        inputs: what the graph is run on, in the order of its inputs.
        dtype: the type that it is run in.

    Returns:
        The choice with the axes left out for which some operator gives another result; nothing
        where a result is drawn at random, as it would be drawn otherwise.
    """
    if any(map(draws, graph.nodes)):
        return Judged(Selection({}))
    part, whole = without(graph, kept, set()), frozenset[str]()
    # Once an axis is whole again other numbers come to what follows: a maximum that was above 0,
    # which zeros do not change, may be below it
    tries = 0
    while True:
        search = _Search(graph, part, Judged(part, whole), tries < _AT_ONCE)
        try:
            search.outputs(inputs, dtype)
        except _Divides as divides:
            whole |= divides.weights
            continue
        if not search.spoilt:
            return Judged(part, whole)
        part, tries = without(graph, part, search.spoilt), tries + 1


def silenced_and_judgeable(
    graph: Graph, kept: Selection, inputs: list[torch.Tensor], dtype: torch.dtype
) -> tuple[list[torch.Tensor], Judged]:
    """What the oracle gives (``irprune.run.oracle``), and the part of ``kept`` that is judged, by
    one run.

    What is dropped is silenced wherever an operator would see it, so that its weights may as well
    be zeros; which operators see it with zeros shows on the way. As what is silenced here is not
    silenced for the judge, the part may be larger than that of ``judgeable``: where the judge
    agrees, it is right.

    Args:
        graph: the analysed original, in which nothing is drawn at random.
        kept: what was chosen.
        inputs: what the graph is run on, in the order of its inputs.
        dtype: the type that it is run in.

    Returns:
        The outputs of the graph, and the part.
    """
    part, whole = without(graph, kept, set()), frozenset[str]()
    while True:
        search = _Search(graph, kept, Judged(part, whole), at_once=False)
        try:
            made = search.outputs(inputs, dtype)
        except _Divides as divides:
            whole |= divides.weights
            continue
        return made, Judged(without(graph, part, search.spoilt), whole)


class _Spoilt(Exception):
    """An operator gives another result with zeros."""


class _Divides(Exception):
    """Zeros in ``weights`` give what is no number."""

    def __init__(self, weights: frozenset[str]) -> None:
        super().__init__(*sorted(weights))
        self.weights = weights


class _Search:
    """A run of a graph with zeros in place of dropped weights, in which every operator is compared
    with itself on what is present.

    Args:
        graph: the analysed original.
        kept: what is present: it is silenced where zeros give another result.
        judged: which weights have zeros.
        at_once: whether the run ends at the first such operator.
    """

    def __init__(self, graph: Graph, kept: Selection, judged: Judged, at_once: bool) -> None:
        self.graph, self.kept, self.judged, self.at_once = graph, kept, judged, at_once
        self.spoilt: set[Axis] = set()  # the axes for which an operator gives another result

    def outputs(self, inputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        """What the graph gives; nothing where the run ends before. Raises _Divides where another
        weight has to stay as it is."""
        twin = self.graph.copy()
        self.zeros: set[Value] = set()  # weights with zeros in place of what is dropped
        zeros = self.judged.kept
        for weight in twin.weights.values():
            if _is_state(twin, weight) and weight.name not in self.judged.whole:
                if any(map(zeros.changes, weight.axes or ())):
                    self.zeros.add(weight)
                weight.load = _Zeroed(weight, zeros)
        device = inputs[0].device if inputs else torch.device("cpu")
        self.present = Presence(self.kept, device, symbols_of(twin, inputs) if inputs else {})
        try:
            return evaluate(twin, inputs, dtype=dtype, hook=self._result, device=device)
        except _Spoilt:
            return []

    def _result(self, node: Node, operands: list[Any], run: Callable[..., Any]) -> Any:
        stays = self.kept.dropped.get(node.outputs[0].name) if node.outputs else None
        if stays is not None:  # the branch is silenced, as the oracle does
            operands = list(operands)
            operands[1 - stays] = torch.zeros_like(operands[1 - stays])
        made: list[Any] = []
        finite: list[bool] = []

        def plain() -> Any:
            if not made:
                made.append(run(*operands))
                finite.append(_finite(made[0]))
                divisors = frozenset() if finite[0] else _divisors(node, operands, run, self.zeros)
                if divisors:
                    raise _Divides(divisors)
            return made[0]

        # Zeros times what is no number are no number: where all are, there was none
        if self._has_zero_factor(node):
            product = plain()
            if finite[0]:
                return product

        def again(*others: Any) -> Any:
            same = len(others) == len(operands)
            if same and all(x is y for x, y in zip(others, operands, strict=True)):
                return plain()
            return run(*others)

        asked, silent = _silent(node, operands, again, self.present, self.kept)
        if not asked:
            return plain()
        if self.spoilt.issuperset(asked):
            return silent
        if _same_where_present(node, plain(), silent, self.present):
            return plain()
        self.spoilt |= {x for x in asked if x in self.kept.choice}
        if self.at_once and self.spoilt:
            raise _Spoilt
        return silent  # else what is spoilt would spoil all that follows

    def _has_zero_factor(self, node: Node) -> bool:
        """Whether ``node`` sums up products of which one factor is a weight with zeros at all that
        is dropped of what is summed over."""
        for i, dims in _summed(node):
            value = node.inputs[i] if i < len(node.inputs) else None
            if value is None or value not in self.zeros:
                continue
            axes = value.axes or ()
            gone = [x for d in dims for x in leaves(axes[d]) if self.kept.changes(x)]
            if gone and all(map(self.judged.kept.changes, gone)):
                return True
        return False


def _summed(node: Node) -> Iterator[tuple[int, list[int]]]:
    """Of a product of tensors: operands, each with its dimensions that are summed over."""
    entry = lookup(node)
    if entry is None:
        return
    if entry.letters is not None:
        *terms, out = entry.letters(node)
        for i, term in enumerate(terms):
            yield i, [d for d, x in enumerate(term) if x not in out]
    elif (found := convolution_of(node)) is not None:
        yield found.kernel, [0 if found.transposed else 1]
    elif entry.silence is None and entry.signature is not None:
        for i, pairs in entry.signature.contracted(node).items():
            yield i, [d for d, _ in pairs]


class _Zeroed(TypedLoad):
    """A weight's loader with zeros at what is dropped."""

    def __init__(self, weight: Weight, kept: Selection) -> None:
        self.whole = Weight(weight.name, weight.type, weight.load)
        self.whole.axes, self.kept = weight.axes, kept

    def __call__(self) -> torch.Tensor:
        return zeroed(self.whole, self.kept)

    def typed(self, dtype: torch.dtype) -> torch.Tensor:
        made = zeroed(self.whole, self.kept, dtype)
        return made if self._changed else made.clone()

    @property
    def _changed(self) -> bool:
        """Whether anything is zeroed, in a tensor made for it."""
        return any(map(self.kept.changes, self.whole.axes or ()))


def _divisors(
    node: Node, operands: list[Any], run: Callable[..., Any], zeros: set[Value]
) -> frozenset[str]:
    """The weights among ``zeros`` by whose zeros ``node`` gives what is no number, where the
    operand that does is made of weights alone."""
    if not zeros or not all(map(_finite, operands)):
        return frozenset()
    for i, x in enumerate(operands):
        if not _is_real(x) or not bool((x == 0).any()):
            continue
        others = list(operands)
        others[i] = torch.where(x == 0, torch.ones_like(x), x)
        if _finite(run(*others)):
            made_of = _weights_alone(node.operand(i))
            return frozenset(w.name for w in made_of & zeros)
    return frozenset()


def _weights_alone(value: Value) -> set[Value]:
    """The weights that ``value`` is made of; none where an input of the model is among what it is
    made of."""
    found: set[Value] = set()
    seen: set[Value] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if isinstance(one, Weight):
            found.add(one)
        elif one.producer is None:
            return set()
        else:
            waiting += [x for x in one.producer.inputs if x is not None]
    return found


def _finite(x: Any) -> bool:
    many = x if isinstance(x, (list, tuple)) else [x]
    return all(bool(t.isfinite().all()) for t in many if _is_real(t))


def _is_state(graph: Graph, weight: Weight) -> bool:
    """Whether the judge can zero ``weight``: it is state of the user's model."""
    return any(name in torch_source(graph).state for name in (weight.name, *weight.aliases))


def _silent(
    node: Node, operands: list[Any], run: Callable[..., Any], present: Presence, kept: Selection
) -> tuple[list[Axis], Any]:
    """The dropped axes that the result of ``node`` may depend on, and its result without them."""
    entry = lookup(node)
    asked: list[Axis] = []
    if entry is None:
        return asked, None

    def asking(value: Value, dims: Iterable[int]) -> torch.Tensor | None:
        mask: torch.Tensor | None = present(value, list(dims))
        if mask is not None:
            axes = value.axes or ()
            asked.extend(find(x) for d in dims for x in leaves(axes[d]) if kept.changes(x))
        return mask

    if entry.silence is not None:
        return asked, entry.silence(torch, node, operands, asking, run)
    if entry.signature is None:
        return asked, None
    without, moved = list(operands), 0
    masks = {
        i: asking(node.operand(i), [d for d, _ in dims])
        for i, dims in entry.signature.contracted(node).items()
    }
    for i, mask in masks.items():
        if mask is not None:
            absent = torch.zeros((), dtype=operands[i].dtype, device=operands[i].device)
            without[i] = torch.where(mask, operands[i], absent)
            moved += not torch.equal(without[i], operands[i])
    if all(map(_finite, operands)) and moved < sum(m is not None for m in masks.values()):
        return [], None  # one factor of every product is zero already
    return asked, run(*without)


def _is_real(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _same_where_present(node: Node, plain: Any, silent: Any, present: Presence) -> bool:
    many, others = (x if isinstance(x, (list, tuple)) else [x] for x in (plain, silent))
    for value, a, b in zip(node.outputs, many, others, strict=False):
        if not value.users and (node.graph is None or value not in node.graph.outputs):
            continue
        if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
            return False
        mask = present(value, list(range(value.rank)))
        if mask is not None:
            nothing = torch.zeros((), dtype=a.dtype, device=a.device)
            a, b = torch.where(mask, a, nothing), torch.where(mask, b, nothing)
        # What differs by less than a proof sees differs by rounding
        near = 1e-11 if a.dtype == torch.float64 else 1e-5
        if not torch.allclose(a, b, rtol=near, atol=near, equal_nan=True):
            return False
    return True
