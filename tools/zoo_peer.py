"""Torch-Pruning on an architecture of the zoo, with what its documentation asks for."""

from __future__ import annotations

from typing import Any

__all__ = ["pruned_by_peer"]


def pruned_by_peer(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ratio: float
) -> dict[str, Any]:
    """What Torch-Pruning makes of ``model``, which it changes.

    The layers that make the answer stay whole, and it is given the head counts of attention, whose
    attributes are set afterwards as its examples do. It ``works`` where the model is smaller, still
    runs and answers in the same shapes; ``params`` is the share that is left."""
    import torch
    import torch_pruning as tp

    before = sum(p.numel() for p in model.parameters())
    shapes, last = _answers(model, args, kwargs)
    inputs = kwargs or (args if len(args) > 1 else args[0])
    heads = _heads(model)
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=last,
        num_heads={layer: count for layers, count in heads.values() for layer in layers},
        output_transform=_sum,
    )
    pruner.step()
    for attention, (layers, count) in heads.items():
        width = layers[0].out_features // (3 if len(layers) == 1 else 1)
        for attribute, size in (
            ("head_dim", width // count),
            ("attention_head_size", width // count),
            ("all_head_size", width),
            ("attn_dim", width),
        ):
            if isinstance(getattr(attention, attribute, None), int):
                setattr(attention, attribute, size)
    with torch.no_grad():
        same = [t.shape for t in _tensors(model(*args, **kwargs))] == shapes
    after = sum(p.numel() for p in model.parameters())
    found = {"works": bool(same and after < before), "params": round(after / before, 4)}
    if found["works"]:
        return found
    return {**found, "error": "other output shapes" if after < before else "nothing was pruned"}


def _sum(out: Any) -> Any:
    """One number for the peer to walk back from, whatever the model returns."""
    return sum(t.sum() for t in _tensors(out) if t.grad_fn is not None)


_PROJECTIONS = (
    ("qkv",),
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
)
_COUNTS = ("num_heads", "num_attention_heads", "n_heads")


def _heads(model: Any) -> dict[Any, tuple[list[Any], int]]:
    """Attention modules, with their projections and how many heads these have."""
    import torch

    out = {}
    for module in model.modules():
        said = [
            getattr(o, n, None) for n in _COUNTS for o in (module, getattr(module, "config", None))
        ]
        count = next((c for c in said if isinstance(c, int)), 0)
        for names in _PROJECTIONS:
            layers = [getattr(module, n, None) for n in names]
            if count and all(isinstance(x, torch.nn.Linear) for x in layers):
                out[module] = (layers, count)
                break
    return out


def _answers(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], list[Any]]:
    """The shapes of the model's outputs, and the layers whose matrices the outputs come from
    without another between."""
    owner = {
        id(p): m
        for m in model.modules()
        if not list(m.children())
        for p in m.parameters(recurse=False)
        if p.dim() > 1
    }
    out = _tensors(model(*args, **kwargs))
    last: dict[Any, None] = {}
    todo = [t.grad_fn for t in out if t.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        feeding = [f for f, _ in node.next_functions if f is not None]
        held = [
            g
            for f in feeding
            for g in (
                f,
                *(h for h, _ in f.next_functions if h is not None and len(f.next_functions) == 1),
            )
        ]
        layers = [
            owner[id(g.variable)]
            for g in held
            if hasattr(g, "variable") and id(g.variable) in owner
        ]
        last.update(dict.fromkeys(layers))
        todo += [f for f in feeding if not layers and f not in seen]
        seen.update(feeding)
    return [t.shape for t in out], list(last)


def _tensors(x: Any) -> list[Any]:
    from torch.utils import _pytree as pytree

    return [t for t in pytree.tree_leaves(x) if hasattr(t, "shape")]
