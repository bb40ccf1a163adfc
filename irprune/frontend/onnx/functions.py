"""Local functions of an ONNX model: opened, so that axes pass through them, and closed again where
nothing in them changed.

Functions are opened level by level, callers before what they call, and every call remembers the
nodes that took its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.inliner

from irprune.errors import IrpruneError, first_line
from irprune.frontend.onnx.order import subgraphs

__all__ = ["ExpandedCalls", "FunctionCall", "Leaf", "expand_calls", "restore_calls", "still_called"]

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Leaf:
    """Node ``index`` of the opened model."""

    index: int


@dataclass(frozen=True)
class FunctionCall:
    """A node of the file and what stands in its place in the opened model: nodes ``first`` to
    ``last`` (not included)."""

    node: onnx.NodeProto
    parts: tuple[FunctionCall | Leaf, ...]
    first: int
    last: int
    typed: bool  # the function says types of its values


@dataclass(frozen=True)
class ExpandedCalls:
    """``model`` without calls of local functions, and the ``given`` one as a list of parts."""

    model: onnx.ModelProto
    given: onnx.ModelProto
    parts: tuple[FunctionCall | Leaf, ...]


def expand_calls(model: onnx.ModelProto, where: str) -> ExpandedCalls | None:
    """``model`` with calls of its local functions replaced by their bodies; None where there are
    none to replace.

    A function of another opset than the model's is left alone. Raises IrpruneError where a body
    does not fit its call."""
    current, items = model, list[Any](model.graph.node)
    done = False
    while roots := _roots(current):
        try:
            step = onnx.inliner.inline_selected_functions(
                current, [(domain, name) for domain, name, _ in roots]
            )
        except Exception as error:  # the inliner has errors of its own in C++
            raise IrpruneError(
                "its local functions cannot be inlined", where, first_line(error)
            ) from error
        if len(step.functions) >= len(current.functions):
            break
        fresh = iter(step.graph.node)
        items = [_expanded(item, fresh, roots) for item in items]
        if next(fresh, None) is not None:
            raise IrpruneError("a local function became more nodes than it has", where)
        current, done = step, True
    if not done:
        return None
    count = iter(range(len(current.graph.node)))
    return ExpandedCalls(current, model, tuple(_numbered(item, count) for item in items))


def _roots(model: onnx.ModelProto) -> dict[Key, onnx.FunctionProto]:
    """Local functions that no other one calls."""
    held = {_key(f.domain, f.name, f.overload): f for f in model.functions}
    inner = {key for f in held.values() for key in _calls(f.node)}
    return {key: f for key, f in held.items() if key not in inner}


def _calls(nodes: Any) -> Iterator[Key]:
    """What nodes and their subgraphs call."""
    for node in nodes:
        yield _key(node.domain, node.op_type, node.overload)
        for body in subgraphs(node):
            yield from _calls(body.node)


def _key(domain: str, name: str, overload: str) -> Key:
    return "" if domain == "ai.onnx" else domain, name, overload


def _expanded(
    item: Any, fresh: Iterator[onnx.NodeProto], roots: dict[Key, onnx.FunctionProto]
) -> Any:
    """``item`` (a node, or a node with the items in its place) after one level was opened;
    ``fresh`` gives the nodes in order."""
    if isinstance(item, tuple):
        node, items, typed = item
        return node, [_expanded(i, fresh, roots) for i in items], typed
    function = roots.get(_key(item.domain, item.op_type, item.overload))
    if function is not None:
        return item, [next(fresh) for _ in function.node], bool(function.value_info)
    now = next(fresh)
    return now if now == item else (item, [now], False)  # a body inside it called a function


def _numbered(item: Any, count: Iterator[int]) -> FunctionCall | Leaf:
    if not isinstance(item, tuple):
        return Leaf(next(count))
    node, items, typed = item
    parts = tuple(_numbered(i, count) for i in items)
    numbers = [(p.index, p.index + 1) if isinstance(p, Leaf) else (p.first, p.last) for p in parts]
    first, last = (numbers[0][0], numbers[-1][1]) if numbers else (0, 0)
    return FunctionCall(node, parts, first, last, typed)


def restore_calls(
    parts: tuple[FunctionCall | Leaf, ...], untouched: Callable[[FunctionCall], bool]
) -> Iterator[onnx.NodeProto | int]:
    """The parts in order: a call that is ``untouched`` as its node, everything else as indices of
    the opened model."""
    for part in parts:
        if isinstance(part, Leaf):
            yield part.index
        elif part.parts and untouched(part):
            yield part.node
        else:
            yield from restore_calls(part.parts, untouched)


def still_called(model: onnx.ModelProto, given: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """The functions of ``given`` that ``model`` needs, and those that nobody called before
    either."""
    held = {_key(f.domain, f.name, f.overload): f for f in given.functions}

    def reached(nodes: Any) -> set[Key]:
        out: set[Key] = set()
        left = [key for key in _calls(nodes) if key in held]
        while left:
            key = left.pop()
            if key not in out:
                out.add(key)
                left += [k for k in _calls(held[key].node) if k in held]
        return out

    gone = reached(given.graph.node) - reached(model.graph.node)
    return [f for key, f in held.items() if key not in gone]
