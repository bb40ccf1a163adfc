"""An independent judge of a cut: the user's own ``forward``, with the weights that were dropped
zeroed.

It shares nothing with the rules, the oracle or slicing: no graph is run, only the model as it came
in. Where zeros stand for what is absent it must give what the cut model gives. They do not where a
mean, a norm or a softmax counts who is present; which parts of a choice are judged is found out by
running the graph with zeroed weights, where each operator must give what it gives with what was
dropped taken out. A weight that something is divided by stays as it is where zeros give no number,
as the scale of a batch norm that quantisation-aware training folds into its convolution: it is
then the others whose zeros silence what is dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from irprune.frontend.torch.restore_state import attributes_kept, evaluating
from irprune.frontend.torch.source import torch_source
from irprune.ir.axis import Axis, find, leaves
from irprune.ir.dtype import is_float
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.selection import Selection
from irprune.ir.size import probe_of
from irprune.ops.arrays import as_tensor
from irprune.ops.dtypes import TO_TORCH
from irprune.ops.registry import draws, lookup
from irprune.run.inputs import flat_tensors, over_tensors
from irprune.run.interpret import evaluate, symbols_of
from irprune.run.one_type import computing_in
from irprune.run.oracle import Presence
from irprune.run.stored_tensor import StoredTensor
from irprune.run.typed_load import TypedLoad, load_typed
from irprune.validate.judge_share import cut_apart

Call = tuple[Sequence[Any], dict[str, Any]]

# How often a run ends where the first axis is spoilt: the width of a transformer is, by its first
# norm, and all that comes after it need not run
_AT_ONCE = 4

__all__ = ["Call", "Judged", "forward_of", "forward_with", "judgeable", "zeroed"]


@dataclass(frozen=True)
class Judged:
    """What zeroed weights can stand for.

    Args:
        kept: The part of a choice that they compute as absent ones do.
        whole: The names of cut weights that stay as they are, as what they divide would be no
            number.
    """

    kept: Selection
    whole: frozenset[str] = frozenset()


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
    part, whole = _without(kept, cut_apart(graph, kept)), frozenset[str]()
    # Once an axis is whole again other numbers come to what follows: a maximum that was above 0,
    # which zeros do not change, may be below it
    tries = 0
    while True:
        try:
            spoilt = _spoilt(graph, Judged(part, whole), inputs, dtype, at_once=tries < _AT_ONCE)
        except _Divides as divides:
            whole |= divides.weights
            continue
        if not spoilt:
            return Judged(part, whole)
        part, tries = _without(part, spoilt), tries + 1


def _without(kept: Selection, axes: set[Axis]) -> Selection:
    left = {a: k for a, k in kept.choice.items() if a not in axes}
    return Selection(left, {a: h for a, h in kept.within.items() if a in left})


class _Spoilt(Exception):
    """An operator gives another result with zeros."""


class _Divides(Exception):
    """Zeros in ``weights`` give what is no number."""

    def __init__(self, weights: frozenset[str]) -> None:
        super().__init__(*sorted(weights))
        self.weights = weights


def _spoilt(
    graph: Graph,
    judged: Judged,
    inputs: list[torch.Tensor],
    dtype: torch.dtype,
    at_once: bool,
) -> set[Axis]:
    """The axes for which some operator gives another result with zeros: those of the first such
    operator where they are wanted ``at_once``, else of all. Raises _Divides where another weight
    has to stay as it is."""
    spoilt: set[Axis] = set()
    kept = judged.kept
    twin = graph.copy()
    zeros: set[Value] = set()  # weights with zeros in place of what is dropped
    for weight in twin.weights.values():
        if _is_state(twin, weight) and weight.name not in judged.whole:
            if any(map(kept.changes, weight.axes or ())):
                zeros.add(weight)
            weight.load = _Zeroed(weight, kept)
    device = inputs[0].device if inputs else torch.device("cpu")
    present = Presence(kept, device, symbols_of(twin, inputs) if inputs else {})

    def hook(node: Node, operands: list[Any], run: Callable[..., Any]) -> Any:
        plain = run(*operands)
        divisors = _divisors(node, operands, plain, run, zeros)
        if divisors:
            raise _Divides(divisors)

        def again(*others: Any) -> Any:
            same = len(others) == len(operands)
            if same and all(x is y for x, y in zip(others, operands, strict=True)):
                return plain
            return run(*others)

        asked, silent = _silent(node, operands, again, present, kept)
        if asked and not _same_where_present(node, plain, silent, present):
            spoilt.update(asked)
            if at_once and spoilt.intersection(kept.choice):
                raise _Spoilt
            return silent  # else what is spoilt would spoil all that follows
        return plain

    with contextlib.suppress(_Spoilt):
        evaluate(twin, inputs, dtype=dtype, hook=hook)
    return spoilt.intersection(kept.choice)


def zeroed(weight: Weight, kept: Selection, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What ``weight`` holds, with zeros at the indices that are dropped; in ``dtype`` where it is
    floating-point."""
    axes = weight.axes or ()
    dtype = dtype if is_float(weight.dtype) else None
    cut = [d for d in range(len(axes)) if kept.changes(axes[d])]
    if not cut:
        array = as_tensor(weight.load())
        return array if dtype is None else array.to(dtype)
    array = load_typed(weight, dtype)
    for d in cut:
        gone = torch.from_numpy(~kept.present(axes, d)).to(array.device)
        if gone.numel() == gone.shape[d]:
            array.index_fill_(d, gone.flatten().nonzero().flatten(), 0)
        else:
            array.masked_fill_(gone, 0)
    return array


def forward_of(graph: Graph, call: Call, seed: int) -> list[torch.Tensor]:
    """What the user's ``forward`` gives, in the model's own types and on its device. The model
    stays as it is. Raises whatever ``forward`` raises."""
    model = torch_source(graph).module
    assert model is not None
    # Forward may write to them, and to its arguments
    return _called(model, {name: b.clone() for name, b in model.named_buffers()}, call, seed)


def forward_with(
    graph: Graph,
    kept: Selection,
    call: Call,
    dtype: torch.dtype,
    seed: int,
    whole: frozenset[str] = frozenset(),
) -> list[torch.Tensor]:
    """What the user's ``forward`` gives with the weights of ``graph`` in the place of the model's
    own, zeros where ``kept`` drops but in those called ``whole``, all in ``dtype``, whatever types
    ``forward`` names where that is float64. The model stays as it is.

    Raises whatever ``forward`` raises."""
    source = torch_source(graph)
    assert source.module is not None
    held = {n for n, _ in source.module.named_parameters(remove_duplicate=False)}
    held |= {n for n, _ in source.module.named_buffers(remove_duplicate=False)}
    own: dict[str, torch.Tensor] = {}
    rest: dict[int, torch.Tensor] = {}
    for weight in graph.weights.values():
        names = held.intersection((weight.name, *weight.aliases))
        drops = Selection({}) if weight.name in whole else kept
        if names and isinstance(source.state[min(names)].tensor, StoredTensor):
            own.update(dict.fromkeys(names, _stored(weight, drops, dtype)))
        elif names:
            own.update(dict.fromkeys(names, zeroed(weight, drops, dtype)))
    for name, entry in source.state.items():
        if name in held and name not in own:
            own[name] = rest.setdefault(id(entry.tensor), _as(entry.tensor.detach(), dtype))
    in_memory = [e.tensor for e in source.state.values() if not isinstance(e.tensor, StoredTensor)]
    theirs = {t.data_ptr() for t in in_memory}
    learned = {n for n, _ in source.module.named_parameters(remove_duplicate=False)}
    made: dict[int, torch.Tensor] = {}  # names that share a tensor go on sharing it
    for name, t in own.items():
        if id(t) not in made:
            borrowed = not isinstance(t, StoredTensor) and t.data_ptr() in theirs
            new = t.clone() if borrowed else t  # forward may write to them
            # Forward may ask what is a parameter
            made[id(t)] = torch.nn.Parameter(new, requires_grad=False) if name in learned else new
    own = {name: made[id(t)] for name, t in own.items()}
    typed = over_tensors((tuple(call[0]), call[1]), lambda t: _as(t, dtype))
    with computing_in(graph, dtype):
        return _called(source.module, own, typed, seed)


def _called(
    model: torch.nn.Module, state: dict[str, torch.Tensor], call: Call, seed: int
) -> list[torch.Tensor]:
    with torch.random.fork_rng(), evaluating(model), attributes_kept(model):
        torch.manual_seed(seed)
        args, kwargs = over_tensors((tuple(call[0]), call[1]), torch.clone)
        return flat_tensors(torch.func.functional_call(model, state, args, kwargs))


def _stored(weight: Weight, kept: Selection, dtype: torch.dtype) -> StoredTensor:
    """What ``zeroed`` gives, in ``dtype`` where it is floating-point, each time that it is used."""
    shape = [probe_of(s) for s in weight.shape]
    own = TO_TORCH[weight.dtype]
    kind = dtype if own.is_floating_point else own
    return StoredTensor(lambda: zeroed(weight, kept, dtype), shape, kind)


def _as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


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
    node: Node,
    operands: list[Any],
    plain: Any,
    run: Callable[..., Any],
    zeros: set[Value],
) -> frozenset[str]:
    """The weights among ``zeros`` by whose zeros ``node`` gives what is no number, where the
    operand that does is made of weights alone."""
    if not zeros or _finite(plain) or not all(map(_finite, operands)):
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
