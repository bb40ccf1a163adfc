"""If, Loop and Scan, and operators that ONNX defines as functions of others: nodes with a body,
which torch runs.

What goes into a body keeps its sizes. An If whose branches stand in the graph itself chooses
between their results (``irprune.ops.choice``): widths pass through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.body import Body
from irprune.ir.graph import Node, TensorType
from irprune.ir.size import same
from irprune.ops.choice import CHOICE, OPENED, sides
from irprune.ops.onnx.importer import OnnxNode, Step, UnsupportedUse, runs, spell
from irprune.ops.registry import Arg, Sample, Unsupported
from irprune.ops.registry import op as declare

op = partial(declare, family="control")

__all__: list[str] = []


def _closed(axes: Axes, node: Node) -> None:
    raise Unsupported(f"read inside {_SAID[node.op]}")


_SAID = {
    "branch": "the branches of an If",
    "loop": "the body of a Loop",
    "scan": "the body of a Scan",
}


def _called(axes: Axes, node: Node) -> None:
    raise Unsupported(f"{node.attrs['target']} is computed by a function of several operators")


def _chosen(axes: Axes, node: Node) -> None:
    """A result has the widths of what either branch gives for it; where they differ, none may
    shrink."""
    for a in axes.of(node.operand(0)):
        axes.freeze(a, "chooses a branch of an If")
    for out, then, other in zip(node.outputs, *sides(node), strict=False):
        why = "the branches of an If give different sizes"
        if out.type.shape is None:
            raise Unsupported(why)
        made = []
        for a, b, size in zip(axes.of(then), axes.of(other), out.shape, strict=True):
            if same(a.size, b.size):
                axes.unify(a, b)
            else:
                axes.freeze(a, why)
                axes.freeze(b, why)
            made.append(a if same(a.size, b.size) else axes.frozen(size, why))
        out.axes = tuple(made)


# -- reading ---------------------------------------------------------------------------------------


def _joined(a: TensorType, b: TensorType) -> TensorType:
    """What two values that stand in the same place have in common; the rank is unknown where they
    differ in it."""
    if a.shape is None or b.shape is None or a.rank != b.rank:
        return TensorType(a.dtype, None)
    if not all(map(same, a.known, b.known)):
        return TensorType(a.dtype, None)
    return a


def _if(node: OnnxNode) -> Step:
    then, other = node.body("then_branch", ()), node.body("else_branch", ())
    types = [
        _joined(a.type, b.type)
        for a, b in zip(then.graph.outputs, other.graph.outputs, strict=True)
    ]
    return Step(
        "branch",
        None,
        {"own": 1, "then": then, "other": other, "count": len(node.outputs)},
        types[: len(node.outputs)],
    )


def _if_opened(node: OnnxNode) -> Step:
    half = len(node.types) // 2
    pairs = zip(node.types[1 : 1 + half], node.types[1 + half :], strict=True)
    types = [_either(node, a, b) for a, b in pairs if a is not None and b is not None]
    return Step(CHOICE, None, {"count": len(node.outputs)}, types[: len(node.outputs)])


def _either(node: OnnxNode, a: TensorType, b: TensorType) -> TensorType:
    """What is known of a value that is of type ``a`` or ``b``."""
    if a.shape is None or b.shape is None or a.rank != b.rank:
        return TensorType(a.dtype, None)
    shape = tuple(x if same(x, y) else node.fresh() for x, y in zip(a.known, b.known, strict=True))
    return TensorType(a.dtype, shape)


def _settled(
    node: OnnxNode,
    lead: Sequence[TensorType],
    states: list[TensorType],
    rest: Sequence[TensorType],
    skip: int,
) -> Body:
    """The body of a loop for states of types that hold in every round: those that it changes are
    left open."""
    for _ in range(3):
        body = node.body("body", [*lead, *states, *rest])
        made = [v.type for v in body.graph.outputs[skip : skip + len(states)]]
        fit = [_joined(a, b) for a, b in zip(states, made, strict=True)]
        if fit == states:
            return body
        states[:] = fit
    return body


def _loop(node: OnnxNode) -> Step:
    states = [node.types[i] for i in range(2, len(node.types))]
    if any(t is None for t in states):
        raise UnsupportedUse("a Loop whose state is left out")
    body = _settled(node, [TensorType("i64", ()), TensorType("bool", ())], states, (), 1)  # type: ignore[arg-type]
    made = [v.type for v in body.graph.outputs[1:]]
    scans = [TensorType(t.dtype, None) for t in made[len(states) :]]
    types = [*(t for t in states if t is not None), *scans]
    attrs = {
        "own": len(node.types),
        "body": body,
        "states": len(states),
        "empty": [_empty(t, 0) for t in made[len(states) :]],
        "count": len(node.outputs),
    }
    return Step("loop", None, attrs, _with_inferred(node, types))


def _empty(row: TensorType, place: int) -> list[Any]:
    """Element type and shape of no such rows, one after the other in dimension ``place``; as in
    onnxruntime, sizes that are not known are 0."""
    shape = [s if isinstance(s, int) else 0 for s in row.shape or ()]
    at = place % (len(shape) + 1)
    return [row.dtype, [*shape[:at], 0, *shape[at:]]]


def _with_inferred(node: OnnxNode, types: Sequence[TensorType]) -> list[TensorType]:
    """``types``, and what ONNX's inference or the file says where they leave the rank open."""
    if all(t.shape is not None for t in types[: len(node.outputs)]):
        return list(types[: len(node.outputs)])
    found = node.inferred()
    return [
        f if t.shape is None and f.dtype == t.dtype else t
        for t, f in zip(types, found, strict=False)
    ][: len(node.outputs)]


def _scan(node: OnnxNode) -> Step:
    """One dimension of some inputs runs through the body; before opset 9 there was a batch around
    it."""
    if node.opset < 9:
        raise UnsupportedUse("a Scan over batches of sequences of several lengths")
    a, count = node.attrs, node.attrs["num_scan_inputs"]
    held = len(node.types) - count
    axes = [d % node.rank(held + k) for k, d in enumerate(a.get("scan_input_axes") or [0] * count)]
    states = [node.type(i) for i in range(held)]
    slices = []
    for k, d in enumerate(axes):
        shape = node.shape(held + k)
        slices.append(TensorType(node.type(held + k).dtype, (*shape[:d], *shape[d + 1 :])))
    body = _settled(node, (), states, slices, 0)
    made = [v.type for v in body.graph.outputs[held:]]
    attrs = {
        "own": len(node.types),
        "body": body,
        "states": held,
        "dims": axes,
        "backwards": list(a.get("scan_input_directions") or [0] * count),
        "places": list(a.get("scan_output_axes") or [0] * len(made)),
        "flipped": list(a.get("scan_output_directions") or [0] * len(made)),
        "count": len(node.outputs),
    }
    attrs["empty"] = [_empty(t, d) for t, d in zip(made, attrs["places"], strict=True)]
    length = node.shape(held)[axes[0]]
    types = list(states)
    for t, d in zip(made, attrs["places"], strict=True):
        at = None if t.shape is None else d % (t.rank + 1)
        types.append(
            TensorType(t.dtype, None if at is None else (*t.known[:at], length, *t.known[at:]))
        )
    return Step("scan", None, attrs, _with_inferred(node, types))


op("branch", _closed, run=runs("branch"))
op(
    CHOICE,
    _chosen,
    run=runs(CHOICE),
    samples=(
        Sample((Arg((), "bool"), Arg((6, 4)), Arg((6, 4))), {"count": 1}, free=2),
        Sample((Arg((), "bool"), *[Arg((6, 4))] * 4), {"count": 2}, free=4),
    ),
)
op("loop", _closed, run=runs("loop"))
op("scan", _closed, run=runs("scan"))
op("called", _called, run=runs("called"))
spell("branch", "If", read=_if)
spell(CHOICE, OPENED, read=_if_opened)
spell("loop", "Loop", read=_loop)
spell("scan", "Scan", read=_scan)
