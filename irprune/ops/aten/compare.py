"""Comparisons, logic and selection by a mask: element-wise, with results that are true or false."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.dtype import is_integer
from irprune.ir.graph import Node, Value, Weight
from irprune.ops.aten.elementwise import binary, broadcast
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="compare")

_X = Arg((2, 6, 5), "i64", 0, 3)
_F = Arg((2, 6, 5))
_BOOL = Arg((2, 6, 5), "bool")


def _equal(axes: Axes, node: Node) -> None:
    """Element-wise; where integers of one operand meet each of a list in the other (ids and the
    numbers of a vocabulary, which makes rows that are one-hot), the list is no channel."""
    broadcast(axes, node)
    shape = node.out.shape
    for value in node.inputs:
        if value is None or not is_integer(value.dtype) or _is_number(value):
            continue
        lead = len(shape) - value.rank
        for k, a in enumerate(node.out.axes or ()):
            spread = k < lead or value.shape[k - lead] == 1
            if spread and shape[k] != 1:
                axes.freeze(a, "a vocabulary: ids are compared with each of its numbers")


def _is_number(value: Value) -> bool:
    """Whether ``value`` is a single number that is known, no id."""
    return value.rank == 0 or (isinstance(value, Weight) and all(s == 1 for s in value.shape))


# integers that are compared with a column meet one of it each: its two other axes are vocabularies
for _name, _alias, _onnx in (("eq", "", "Equal"), ("ne", "not_equal", "")):
    binary(
        _name,
        " ".join(f"{n}.{v}" for n in (_name, _alias) if n for v in ("Tensor", "Scalar")),
        onnx=_onnx,
        a=_X,
        number=1,
        rule=_equal,
        free=1,
        learned=False,
    )
for _name, _alias, _onnx in (
    ("lt", "less", "Less"),
    ("le", "less_equal", "LessOrEqual"),
    ("gt", "greater", "Greater"),
    ("ge", "greater_equal", "GreaterOrEqual"),
):
    binary(
        _name,
        " ".join(f"{n}.{v}" for n in (_name, _alias) if n for v in ("Tensor", "Scalar")),
        onnx=_onnx,
        a=_X,
        number=1,
        learned=False,
    )
binary("isclose", a=_X)
for _name in ("and", "or", "xor"):
    binary(f"logical_{_name}", onnx=_name.capitalize(), a=_BOOL, learned=False)
    _bitwise = [f"bitwise_{_name}.{v}" for v in ("Tensor", "Scalar", "Scalar_Tensor")] + [
        f"__{_name}__.{v}" for v in ("Tensor", "Scalar")
    ]
    binary(f"bitwise_{_name}", " ".join(_bitwise), a=_X, number=1)
op(
    "logical_not",
    broadcast,
    aten=("logical_not.default",),
    onnx=("Not",),
    samples=(Sample((_BOOL,), free=3),),
)
op(
    "bitwise_not",
    broadcast,
    aten=("bitwise_not.default",),
    samples=(Sample((_BOOL,), free=3), Sample((_X,), free=3)),
)
for _name, _onnx in (
    ("isnan", "IsNaN"),
    ("isinf", ""),
    ("isfinite", ""),
    ("isneginf", ""),
    ("isposinf", ""),
    ("isreal", ""),
    ("signbit", ""),
):
    op(
        _name,
        broadcast,
        aten=(f"{_name}.default",),
        onnx=(_onnx,) if _onnx else (),
        samples=(Sample((_F,), free=3),),
        learned=False,
    )

_COLUMN = Arg((6, 1))
op(
    "where",
    broadcast,
    aten=("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar"),
    onnx=("Where",),
    samples=(
        Sample((_BOOL, _COLUMN, Arg((2, 1, 5))), free=3),
        Sample((Arg((6, 1), "bool"), _F, Arg(())), free=3),
        Sample((_BOOL, _COLUMN), {"other": 0.5}, free=3, target="aten.where.ScalarOther"),
        Sample((_BOOL, _COLUMN), {"self": 0.5}, free=3, target="aten.where.ScalarSelf"),
        Sample((_BOOL,), {"self": 0.5, "other": 2.0}, free=3, target="aten.where.Scalar"),
    ),
    learned=False,
    rearranges=True,
)
op(
    "masked_fill",
    broadcast,
    aten=("masked_fill.Scalar", "masked_fill.Tensor"),
    samples=(
        Sample((_F, Arg((6, 1), "bool")), {"value": -9.0}, free=3),
        Sample((_COLUMN, _BOOL), {"value": -9.0}, free=3),
        Sample((_F, Arg((6, 1), "bool"), Arg(())), free=3, target="aten.masked_fill.Tensor"),
    ),
    learned=False,
)


def _isin(axes: Axes, node: Node) -> None:
    """Elements pass; what they are looked up in is read whole."""
    for value in node.inputs[1:]:
        for a in axes.of(value) if value is not None else ():
            axes.freeze(a, f"looked up in '{value.name if value is not None else ''}'")
    node.out.axes = axes.of(node.operand(0))


op(
    "isin",
    _isin,
    aten=("isin.Tensor_Tensor", "isin.Tensor_Scalar"),
    samples=(
        Sample((_X, Arg((4,), "i64", 0, 3)), free=3),
        Sample((_X,), {"test_element": 1}, free=3, target="aten.isin.Tensor_Scalar"),
    ),
)


def _bucketize(axes: Axes, node: Node) -> None:
    """Values pass; the boundaries are read whole."""
    for a in axes.of(node.operand(1)):
        axes.freeze(a, "boundaries of buckets")
    node.out.axes = axes.of(node.operand(0))


def _searchsorted(axes: Axes, node: Node) -> None:
    """Boundaries may be batched as the values are."""
    edges, own = axes.of(node.operand(0)), axes.of(node.operand(1))
    axes.freeze(edges[-1], "boundaries of buckets")
    if len(edges) > 1:
        for a, b in zip(edges[:-1], own[:-1], strict=True):
            axes.unify(a, b)
    if node.has(2):
        for a, b in zip(edges, axes.of(node.operand(2)), strict=True):
            axes.unify(a, b)
    node.out.axes = own


op(
    "bucketize",
    _bucketize,
    aten=("bucketize.Tensor",),
    samples=(Sample((_F, Arg((4,), values=(-2, -1, 0, 1))), free=3),),
)
op(
    "searchsorted",
    _searchsorted,
    aten=("searchsorted.Tensor",),
    samples=(
        Sample((Arg((4,), values=(-2, -1, 0, 1)), _F), free=3),
        Sample((Arg((2, 3), values=(-1, 0, 1) * 2), Arg((2, 5))), free=2),
    ),
)
