"""Reductions: an axis that is reduced may shrink where the value can be taken over the indices that
are present.

A sum of what is present is the sum with zeros in the place of the rest, a maximum the one with
minus infinity: each operator names its neutral element. Means, variances and norms are counted over
who is present."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, Value
from irprune.ops.aten.contraction import zeroed
from irprune.ops.aten.norm import masked_mean
from irprune.ops.aten.shape import position
from irprune.ops.registry import Arg, Rule, Sample
from irprune.ops.registry import op as declare

__all__ = ["filled", "is_read", "like_operand", "neutral", "reduced", "reduction"]

op = partial(declare, family="reduce")

INF = float("inf")
_X = Arg((2, 6, 5))
_POSITIVE = Arg((2, 6, 5), low=0.5, high=1.5)
_BOOL = Arg((2, 6, 5), "bool")


def reduced(node: Node) -> list[int]:
    """The dimensions named by ``dim``, counted from the front; all where none is."""
    rank, dims = node.operand(0).rank, node.attrs.get("dim")
    if dims is None or dims == []:
        return list(range(rank))
    return sorted({position(d, rank) for d in ([dims] if isinstance(dims, int) else dims) if rank})


def reduction(axes: Axes, node: Node) -> None:
    """The reduced dimensions leave, or stay with size 1."""
    own, gone = axes.of(node.operand(0)), set(reduced(node))
    keep = node.attrs.get("keepdim", False)
    made = tuple(axes.one if k in gone else a for k, a in enumerate(own) if keep or k not in gone)
    for value in node.outputs:
        value.axes = made


def like_operand(axes: Axes, node: Node) -> None:
    """Results of the operand's shape."""
    for value in node.outputs:
        value.axes = axes.of(node.operand(0))


def is_read(value: Value) -> bool:
    """Whether a node or the graph's caller reads ``value``."""
    graph = value.producer.graph if value.producer is not None else None
    return bool(value.users) or graph is None or any(value is out for out in graph.outputs)


def neutral(torch: Any, x: Any, mask: Any, element: float) -> Any:
    """``x`` with ``element`` where ``mask`` is false; infinities become the extreme values of
    integers."""
    if mask is None:
        return x
    if x.dtype == torch.bool:
        element = element > 0
    elif abs(element) == INF and not x.dtype.is_floating_point:
        info = torch.iinfo(x.dtype)
        element = info.max if element > 0 else info.min
    return torch.where(mask, x, torch.full((), element, dtype=x.dtype, device=x.device))


def filled(element: float) -> Callable[..., Any]:
    """The operator with its neutral ``element`` in the place of what is absent along its
    dimensions."""

    def silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
        mask = present(node.operand(0), reduced(node))
        return run(neutral(torch, operands[0], mask, element), *operands[1:])

    return silence


def _some(
    attrs: dict[str, Any] | None = None, arg: Arg = _X, target: str = ""
) -> tuple[Sample, ...]:
    more = attrs or {}
    return (
        Sample((arg,), {"dim": [1], "keepdim": True, **more}, free=3, target=target),
        Sample((arg,), {"dim": [1, -1], "keepdim": False, **more}, free=3, target=target),
    )


def _whole(name: str, arg: Arg = _X, **attrs: Any) -> Sample:
    return Sample((arg,), attrs, free=3, target=f"aten.{name}")


# -- sums and extremes -----------------------------------------------------------------------------

op(
    "sum",
    reduction,
    silence=filled(0.0),
    aten=("sum.dim_IntList", "sum.default"),
    samples=(*_some(), _whole("sum.default")),
)
op("nansum", reduction, silence=filled(0.0), aten=("nansum.default",), samples=_some())
op(
    "prod",
    reduction,
    silence=filled(1.0),
    aten=("prod.dim_int", "prod.default"),
    samples=(Sample((_X,), {"dim": -2}, free=3), _whole("prod.default")),
)
op(
    "amax",
    reduction,
    silence=filled(-INF),
    aten=("amax.default",),
    samples=(*_some(), Sample((Arg((4, 6), "i64", -9, 9),), {"dim": [0]}, free=2)),
)
op("amin", reduction, silence=filled(INF), aten=("amin.default",), samples=_some())
op(
    "max_whole",
    reduction,
    silence=filled(-INF),
    aten=("max.default",),
    samples=(_whole("max.default"),),
)
op(
    "min_whole",
    reduction,
    silence=filled(INF),
    aten=("min.default",),
    samples=(_whole("min.default"),),
)
op(
    "logsumexp",
    reduction,
    silence=filled(-INF),
    aten=("logsumexp.default", "special_logsumexp.default"),
    samples=_some(),
)
for _name, _element in (("any", 0.0), ("all", 1.0)):
    op(
        _name,
        reduction,
        silence=filled(_element),
        aten=(f"{_name}.dim", f"{_name}.dims", f"{_name}.default"),
        samples=(
            Sample((_BOOL,), {"dim": 1, "keepdim": True}, free=3),
            *_some(arg=_BOOL, target=f"aten.{_name}.dims"),
            _whole(f"{_name}.default", _BOOL),
        ),
    )
op(
    "is_all_true",
    reduction,
    silence=filled(1.0),
    aten=("_is_all_true.default",),
    samples=(_whole("_is_all_true.default", _BOOL),),
)
op(
    "is_any_true",
    reduction,
    silence=filled(0.0),
    aten=("_is_any_true.default",),
    samples=(_whole("_is_any_true.default", _BOOL),),
)
op(
    "count_nonzero",
    reduction,
    silence=filled(0.0),
    aten=("count_nonzero.dim_IntList", "count_nonzero.default"),
    samples=(
        Sample((Arg((4, 6), "i64", 0, 2),), {"dim": [1]}, free=2),
        Sample((Arg((4, 6), "i64", 0, 2),), free=2, target="aten.count_nonzero.default"),
    ),
)


def _both_extremes(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    mask = present(node.operand(0), reduced(node))
    return run(neutral(torch, operands[0], mask, INF))[0], run(
        neutral(torch, operands[0], mask, -INF)
    )[1]


op(
    "aminmax",
    reduction,
    silence=_both_extremes,
    aten=("aminmax.default",),
    samples=(Sample((_X,), {"dim": 1}, free=3), Sample((_X,), free=3)),
)


def numbered(rule: Rule) -> Rule:
    """``rule`` of an operator whose second result counts indices: where that is read none of them
    may be dropped."""

    def of_node(axes: Axes, node: Node) -> None:
        if is_read(node.outputs[1]):
            for d in reduced(node):
                axes.freeze(axes.of(node.operand(0))[d], f"numbered by {node.op}")
        rule(axes, node)

    return of_node


for _name, _element in (("max", -INF), ("min", INF)):
    op(
        f"{_name}_dim",
        numbered(reduction),
        silence=filled(_element),
        aten=(f"{_name}.dim",),
        samples=(
            Sample((_X,), {"dim": 1, "keepdim": True}, free=2),
            Sample((_X,), {"dim": 1}, free=3, read=(0,)),
        ),
    )


# -- means and spreads -----------------------------------------------------------------------------


def _computing(torch: Any, node: Node, x: Any) -> Any:
    """``x`` in the type that the node computes in, which is never narrower than that of ``x``."""
    from irprune.ops.dtypes import TO_TORCH

    dtype = node.attrs.get("dtype")
    return x if dtype is None else x.to(torch.promote_types(x.dtype, TO_TORCH[dtype]))


def _kept_dims(node: Node, y: Any, dims: list[int]) -> Any:
    return y if node.attrs.get("keepdim") else y.squeeze(dims)


def _mean_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    dims = reduced(node)
    mask = present(node.operand(0), dims)
    if mask is None:
        return run(*operands)
    return _kept_dims(
        node, masked_mean(torch, _computing(torch, node, operands[0]), dims, mask), dims
    )


op(
    "mean",
    reduction,
    silence=_mean_silence,
    aten=("mean.dim", "mean.default"),
    samples=(*_some(), _whole("mean.default")),
)
op("nanmean", reduction, silence=filled(float("nan")), aten=("nanmean.default",), samples=_some())


def _spread_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """Variance or deviation, then the mean where it is asked for, over those present."""
    dims, x = reduced(node), operands[0]
    mask = present(node.operand(0), dims)
    if mask is None:
        return run(*operands)
    correction = node.attrs.get("correction", 1 if node.attrs.get("unbiased", True) else 0)
    mean = masked_mean(torch, x, dims, mask)
    count = mask.expand(x.shape).sum(dims, keepdim=True)
    spread = zeroed(torch, (x - mean) ** 2, mask).sum(dims, keepdim=True) / (
        count - (1 if correction is None else correction)
    ).clamp(min=0)
    spread = _kept_dims(node, spread.sqrt() if node.op.startswith("std") else spread, dims)
    return (spread, _kept_dims(node, mean, dims)) if node.op.endswith("mean") else spread


for _name in ("var", "std", "var_mean", "std_mean"):
    op(
        _name,
        reduction,
        silence=_spread_silence,
        aten=(f"{_name}.correction", f"{_name}.dim", f"{_name}.default"),
        samples=(
            *_some({"correction": 0}, target=f"aten.{_name}.correction"),
            *_some({"unbiased": False}, target=f"aten.{_name}.dim"),
            _whole(f"{_name}.default", unbiased=False),
        ),
    )


# -- norms -----------------------------------------------------------------------------------------


def _norm(axes: Axes, node: Node) -> None:
    """A zero changes no vector norm of an order from 0 on; matrix norms other than Frobenius' are
    taken whole."""
    order, dims = node.attrs.get("p", node.attrs.get("ord", 2)), reduced(node)
    matrix = (
        node.op == "linalg_norm" and node.attrs.get("ord") not in (None, "fro") and len(dims) == 2
    )
    if matrix or (isinstance(order, (int, float)) and order < 0):
        for d in dims:
            axes.freeze(axes.of(node.operand(0))[d], f"norm of order {order}")
    reduction(axes, node)


op(
    "vector_norm",
    _norm,
    silence=filled(0.0),
    aten=("linalg_vector_norm.default",),
    samples=(
        *_some({"ord": 2}),
        *_some({"ord": 1.5}),
        Sample((_POSITIVE,), {"ord": -1, "dim": [1]}, free=2),
        Sample((_X,), {"ord": INF, "dim": None}, free=3),
    ),
)
op(
    "linalg_norm",
    _norm,
    silence=filled(0.0),
    aten=("linalg_norm.default", "linalg_norm.ord_str"),
    samples=(
        *_some(),
        Sample((_X,), {"ord": 1, "dim": [1, 2]}, free=1),
        Sample((_X,), {"ord": "fro", "dim": [1, 2]}, free=3, target="aten.linalg_norm.ord_str"),
    ),
)
op(
    "norm",
    _norm,
    silence=filled(0.0),
    samples=(
        *_some({"p": 2.0}),
        Sample((_X,), {"p": 1.0}, free=3, target="aten.norm.Scalar"),
        *_some({"p": 2.0, "dtype": "f32"}, target="aten.norm.ScalarOpt_dim_dtype"),
        Sample((_X,), {"p": 2, "dtype": "f32"}, free=3, target="aten.norm.ScalarOpt_dtype"),
    ),
    aten=("norm.ScalarOpt_dim", "norm.Scalar", "norm.ScalarOpt_dim_dtype", "norm.ScalarOpt_dtype"),
)
op(
    "frobenius_norm",
    reduction,
    silence=filled(0.0),
    aten=("frobenius_norm.dim", "linalg_matrix_norm.str_ord"),
    samples=(
        Sample((_X,), {"dim": [1, 2]}, free=3, target="aten.frobenius_norm.dim"),
        Sample(
            (_X,), {"ord": "fro", "dim": [1, 2]}, free=3, target="aten.linalg_matrix_norm.str_ord"
        ),
    ),
)


# -- shares of a whole -----------------------------------------------------------------------------

for _name in ("softmax", "log_softmax"):
    op(
        _name,
        like_operand,
        silence=filled(-INF),
        aten=(f"{_name}.int", f"_{_name}.default", f"special_{_name}.default"),
        samples=(
            Sample((_X,), {"dim": 1}, free=3),
            Sample(
                (_X,), {"dim": -1, "half_to_float": False}, free=3, target=f"aten._{_name}.default"
            ),
        ),
    )
