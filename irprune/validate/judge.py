"""An independent judge of a cut: the user's own ``forward``, with the weights that were dropped
zeroed.

It shares nothing with the rules, the oracle or slicing: no graph is run, only the model as it came
in. Where zeros stand for what is absent it must give what the cut model gives. They do not where a
mean, a norm or a softmax counts who is present: ``judgeable`` finds the parts of a choice that can
be judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from irprune.frontend.torch.restore_state import attributes_kept, evaluating
from irprune.frontend.torch.source import torch_source
from irprune.ir.dtype import is_float
from irprune.ir.graph import Graph, Weight
from irprune.ir.selection import Selection
from irprune.ir.size import probe_of
from irprune.ops.arrays import as_tensor
from irprune.ops.dtypes import TO_TORCH
from irprune.run.inputs import flat_tensors, over_tensors
from irprune.run.one_type import computing_in
from irprune.run.stored_tensor import StoredTensor
from irprune.run.typed_load import load_typed

Call = tuple[Sequence[Any], dict[str, Any]]

__all__ = ["Call", "Judged", "forward_of", "forward_with", "zeroed"]


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
    fused: bool = False,
) -> list[torch.Tensor]:
    """What the user's ``forward`` gives with the weights of ``graph`` in the place of the model's
    own, zeros where ``kept`` drops but in those called ``whole``, all in ``dtype``, whatever types
    ``forward`` names where that is float64. Attention layers of torch may be ``fused``, as they are
    where a user calls the model: that is quicker, but what is masked may differ from what is
    captured. The model stays as it is.

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
        return _called(source.module, own, typed, seed, fused)


def _called(
    model: torch.nn.Module,
    state: dict[str, torch.Tensor],
    call: Call,
    seed: int,
    fused: bool = False,
) -> list[torch.Tensor]:
    with torch.random.fork_rng(), evaluating(model, fused), attributes_kept(model):
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
