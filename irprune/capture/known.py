"""Values that a program reads while it runs (``.item()``, ``nonzero``), where they follow from constants and buffers alone.

A mask of ones that the model makes for itself, say. What depends on inputs or parameters is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils import _pytree as pytree

from irprune.ir.graph import Graph, Value, Weight
from irprune.ops.registry import lookup

__all__ = ["from_constants"]


def from_constants(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], graph: Graph) -> Any:
    """``func`` on what the values among its arguments hold.

    Raises LookupError, with the reason, where one of them depends on an input, on a parameter or on chance.
    """
    from irprune.validate.interpret import evaluate

    wanted = list({id(v): v for v in pytree.tree_leaves((args, dict(kwargs))) if isinstance(v, Value)}.values())
    _must_be_constant(wanted)
    with unset_fake_temporarily():
        held = {id(v): t for v, t in zip(wanted, evaluate(graph, [], wanted=wanted), strict=True)}
        real_args, real_kwargs = pytree.tree_map(lambda x: held[id(x)] if isinstance(x, Value) else x, (list(args), dict(kwargs)))
        return func(*real_args, **real_kwargs)


def _must_be_constant(wanted: Sequence[Value]) -> None:
    seen: set[int] = set()
    todo = list(wanted)
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        node = value.producer
        if node is None and not (isinstance(value, Weight) and value.kind != "parameter"):
            raise LookupError(f"depends on {value.name!r}")
        if node is not None:
            entry = lookup(node)
            if entry is not None and entry.random:
                raise LookupError(f"depends on chance ({node.op})")
            todo += [v for v in node.inputs if v is not None]
