"""Values that a program reads while it runs (``.item()``, ``nonzero``), where they follow from
constants and buffers alone.

A mask of ones that the model makes for itself, say. What depends on inputs or parameters is not
known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils import _pytree as pytree

from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Sym, UnboundSymbol, evaluate, number
from irprune.ops.arrays import as_tensor, is_meta
from irprune.ops.dtypes import TO_TORCH
from irprune.ops.registry import draws, lookup
from irprune.run.interpret import run_node

__all__ = ["from_constants"]


def from_constants(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    graph: Graph,
    sizes: OpenSizes | None = None,
    example: dict[Value, Any] | None = None,
) -> Any:
    """``func`` on what the values among its arguments hold. Sizes that are open have their value in
    the example, and are fixed at it.

    With ``example``, which holds the inputs of the example call and keeps what is computed of them,
    the values are those of that call: inputs and parameters are known, and no size is fixed.

    Raises LookupError, with the reason, where one of them depends on chance, or, without
    ``example``, on an input or on a parameter."""
    wanted = [v for v in pytree.tree_leaves((args, dict(kwargs))) if isinstance(v, Value)]
    nodes, stored = _constant(wanted, example)
    symbols: dict[str, int] = sizes.really() if sizes is not None else {}
    with unset_fake_temporarily(), torch.no_grad():
        held: dict[Value, Any] = {} if example is None else example
        held.update((v, as_tensor(v.load())) for v in stored)
        if any(is_meta(held[v]) for v in stored):
            raise LookupError("depends on weights that have no values")
        device = next((t.device for t in held.values()), torch.device("cpu"))
        for node in graph.nodes:
            if node in nodes:
                operands = [
                    None if v is None else held[v] if v in held else _blank(v, device, symbols)
                    for v in node.inputs
                ]
                made = run_node(node, operands, symbols, device)
                held.update(
                    zip(
                        node.outputs,
                        made if isinstance(made, (list, tuple)) else [made],
                        strict=False,
                    )
                )
        if sizes is not None and example is None:
            for node in nodes:
                read = [v.shape for v in (*node.inputs, *node.outputs) if v is not None]
                for size in pytree.tree_leaves([read, list(node.attrs.values())]):
                    if isinstance(size, Sym):
                        sizes.fixed(size)

        def real(x: Any) -> Any:
            if isinstance(x, Sym) and sizes is not None:
                return number(x, symbols) if example is not None else sizes.fixed(x)
            return held[x] if isinstance(x, Value) else x

        real_args, real_kwargs = pytree.tree_map(real, (list(args), dict(kwargs)))
        return func(*real_args, **real_kwargs)


def _constant(
    wanted: Sequence[Value], example: Mapping[Value, Any] | None = None
) -> tuple[dict[Node, None], list[Weight]]:
    """The nodes that ``wanted`` are computed by, and the buffers and constants that those read;
    what ``example`` holds is known, and parameters are where it is given."""
    nodes: dict[Node, None] = {}
    stored: dict[Weight, None] = {}
    todo = list(wanted)
    while todo:
        value = todo.pop()
        node = value.producer
        if example is not None and value in example:
            continue
        if isinstance(value, Weight) and (value.kind != "parameter" or example is not None):
            stored[value] = None
        elif node is None:
            raise LookupError(f"depends on {value.name!r}")
        elif node not in nodes:
            nodes[node] = None
            if draws(node):
                raise LookupError(f"depends on chance ({node.op})")
            if not _of_sizes(node):
                todo += [v for v in node.inputs if v is not None]
    return nodes, list(stored)


def _of_sizes(node: Node) -> bool:
    """Whether ``node`` reads of its operand the type alone (``new_ones``, ``zeros_like``), which is
    known."""
    entry = lookup(node)
    return (
        entry is not None
        and entry.creates
        and len(node.inputs) == 1
        and node.operand(0).type.shape is not None
    )


def _blank(value: Value, device: torch.device, symbols: Mapping[str, int]) -> torch.Tensor:
    try:
        shape = [evaluate(s, symbols) for s in value.shape]
    except UnboundSymbol as unknown:
        raise LookupError(f"depends on the size {unknown}") from unknown
    return torch.zeros(shape, dtype=TO_TORCH[value.dtype], device=device)
