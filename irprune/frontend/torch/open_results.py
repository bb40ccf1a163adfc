"""The sizes of a recorded call's results where sizes are open.

What the operator's entry says is taken (``irprune.ops.extents``). A size that it does not say is
one that the node tells when it runs, unless it stays as it is when the operands' sizes change,
which torch's meta kernels tell. Where torch refuses every other value of a size, the operator fixes
it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils import _pytree as pytree

from irprune.ir.graph import Node, TensorType, Value
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size, Sym, evaluate, symbol, symbols
from irprune.ops.dtypes import TO_TORCH
from irprune.ops.extents import extents_of
from irprune.run.interpret import run_node

__all__ = ["open_results", "sizes_at"]


def open_results(node: Node, sizes: OpenSizes) -> None:
    """Give the results of ``node``, whose types are those of the example, sizes that follow from
    open ones."""
    if not any(True for _ in _open_in(node)):
        return
    function = extents_of(node)
    found = list(function(node, sizes)) if function is not None else []
    varying: dict[tuple[int, int], set[str]] | None = None
    for i, value in enumerate(node.outputs):
        if value.type.shape is None or value.dtype == "none":
            continue
        said = list(found[i]) if i < len(found) else []
        shape: list[Size] = []
        for d, size in enumerate(value.shape):
            new = said[d] if len(said) == value.rank else None
            if isinstance(size, int) and (new is None or sizes.value(new) != size):
                if varying is None:
                    varying = _varying(node, sizes)
                behind = varying.get((i, d))
                new = sizes.told(size, [symbol(n) for n in behind]) if behind else size
            shape.append(size if new is None else new)
        value.type = TensorType(value.dtype, tuple(shape))


def _open_in(node: Node) -> Iterator[Sym]:
    for v in node.inputs:
        if v is not None:
            yield from (s for s in v.type.shape or () if isinstance(s, Sym))
    yield from (s for s in pytree.tree_leaves(list(node.attrs.values())) if isinstance(s, Sym))


def _varying(node: Node, sizes: OpenSizes) -> dict[tuple[int, int], set[str]]:
    """For each result and dimension, the symbols that its size changes with."""
    out: dict[tuple[int, int], set[str]] = {}
    for name in dict.fromkeys(n for s in _open_in(node) for n in symbols(s)):
        ran = False
        for other in _others(sizes.example[name]):
            made = sizes_at(node, {**sizes.example, name: other})
            if made is None:
                continue
            ran = True
            for i, (value, shape) in enumerate(zip(node.outputs, made, strict=False)):
                if len(shape) != len(value.shape):
                    sizes.fixed(symbol(name))
                    continue
                for d, (now, then) in enumerate(zip(shape, value.shape, strict=True)):
                    if now != then:
                        out.setdefault((i, d), set()).add(name)
            if len(made) != len(node.outputs):
                sizes.fixed(symbol(name))
        if not ran:
            sizes.fixed(symbol(name))
    return out


def _others(size: int) -> tuple[int, ...]:
    return tuple(n for n in (2 * size, size + 1, size - 1, 3 * size + 5) if n > 0 and n != size)


def sizes_at(node: Node, bindings: Mapping[str, int]) -> list[tuple[int, ...]] | None:
    """The sizes of the results for these sizes; None where torch refuses them."""
    device = torch.device("meta")

    def empty(v: Value | None) -> Any:
        if v is None:
            return None
        shape = [evaluate(s, bindings) for s in v.shape]
        return torch.empty(shape, dtype=TO_TORCH[v.dtype], device=device)

    with unset_fake_temporarily(), torch.inference_mode():
        try:
            made = run_node(node, [empty(v) for v in node.inputs], dict(bindings), device)
        except Exception:  # torch raises what it likes for sizes that do not fit
            return None
    results = made if isinstance(made, (list, tuple)) else [made]
    return [tuple(t.shape) for t in results if isinstance(t, torch.Tensor)]
