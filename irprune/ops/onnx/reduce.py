"""Reductions as ONNX spells them: which dimensions was an attribute, then an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from irprune.ir.dtype import is_integer
from irprune.ir.graph import TensorType
from irprune.ops.aten.reduce import filled, like_operand, reduction
from irprune.ops.onnx.importer import (
    PREVIOUS,
    OnnxNode,
    Step,
    runs,
    sampled,
    spell,
    use,
    variant,
)
from irprune.ops.onnx.types import like, position, reduced_type
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="reduce")

__all__: list[str] = []


def _dims(node: OnnxNode, since: int) -> list[int] | None:
    """The reduced dimensions counted from the front; None where an empty list means that nothing is
    reduced."""
    rank = node.rank()
    given = node.moved("axes", 1, since)
    if not given:
        return (
            None
            if node.attrs.get("noop_with_empty_axes", 0) and node.opset >= since
            else list(range(rank))
        )
    return sorted({position(int(d), rank) for d in given})  # type: ignore[arg-type]


def _reduce(
    name: str, alone: str = "identity", since: int = 18, **attrs: Any
) -> Callable[[OnnxNode], Step]:
    """``alone`` is what remains of the operator for each element where no dimension is reduced."""

    def read(node: OnnxNode) -> Step:
        dims = _dims(node, since)
        if dims is None:
            return Step(alone, (0,), {}, [like(node)])
        keep = bool(node.attrs.get("keepdims", 1))
        own = node.type(0).dtype
        more = {**attrs, "dtype": own} if name == "sum" and is_integer(own) else attrs
        if node.rank() == 0:
            return Step(name, (0,), {"dim": [], "keepdim": keep, **more}, [like(node)])
        return Step(
            name, (0,), {"dim": dims, "keepdim": keep, **more}, [reduced_type(node, dims, keep)]
        )

    return read


_X = Arg((2, 6, 5), low=0.1)
op(
    "reduce_prod",
    reduction,
    run=runs("reduce_prod"),
    silence=filled(1.0),
    samples=(Sample((_X,), {"dim": [1, 2], "keepdim": True}, free=3),),
)
for _onnx, _entry, _alone, _more in (
    ("ReduceMean", "mean", "identity", {}),
    ("ReduceMax", "amax", "identity", {}),
    ("ReduceMin", "amin", "identity", {}),
    ("ReduceLogSumExp", "logsumexp", "identity", {}),
    ("ReduceL1", "vector_norm", "abs", {"ord": 1}),
    ("ReduceL2", "vector_norm", "abs", {"ord": 2}),
    ("ReduceProd", "reduce_prod", "identity", {}),
):
    spell((_entry, _alone), _onnx, read=_reduce(_entry, _alone, **_more))
spell(("sum", "identity"), "ReduceSum", read=_reduce("sum", since=13))


def _log_sum(node: OnnxNode) -> list[Step]:
    total = _reduce("sum", "log")(node)
    kind = list(total.types or ())
    return [total] if total.op == "log" else [total, Step("log", (PREVIOUS,), {}, kind)]


def _sum_square(node: OnnxNode) -> list[Step]:
    total = _reduce("sum", "square")(node)
    if total.op == "square":
        return [total]
    return [Step("square", (0,), {}, [like(node)]), replace(total, operands=(PREVIOUS,))]


spell(("sum", "log"), "ReduceLogSum", read=_log_sum)
spell(("sum", "square"), "ReduceSumSquare", read=_sum_square)


def _arg(name: str) -> Callable[[OnnxNode], Step]:
    def read(node: OnnxNode) -> Step:
        dim, keep = (
            position(node.attrs.get("axis", 0), node.rank()),
            bool(node.attrs.get("keepdims", 1)),
        )
        last = "last_" if node.attrs.get("select_last_index", 0) else ""
        return Step(
            last + name,
            (0,),
            {"dim": dim, "keepdim": keep},
            [reduced_type(node, [dim], keep, "i64")],
        )

    return read


for _name, _onnx in (("argmax", "ArgMax"), ("argmin", "ArgMin")):
    variant(_name, f"last_{_name}", f"last_{_name}")
    spell((_name, f"last_{_name}"), _onnx, read=_arg(_name))


def _softmax(name: str) -> Callable[[OnnxNode], Step]:
    """Before opset 13 the dimensions from ``axis`` on counted as one."""

    def read(node: OnnxNode) -> Step:
        rank = node.rank()
        dim = position(node.attrs.get("axis", -1 if node.opset >= 13 else 1), rank) if rank else 0
        if node.opset >= 13 or dim == rank - 1 or all(s == 1 for s in node.shape()[dim + 1 :]):
            return Step(name, (0,), {"dim": dim}, [like(node)])
        return Step(f"{name}_joint", (0,), {"dim": list(range(dim, rank))}, [like(node)])

    return read


for _name in ("softmax", "log_softmax"):
    op(
        f"{_name}_joint",
        like_operand,
        run=runs(f"{_name}_joint"),
        silence=filled(float("-inf")),
        samples=(Sample((Arg((2, 6, 5)),), {"dim": [1, 2]}, free=3),),
    )
spell(("softmax", "softmax_joint"), "Softmax", read=_softmax("softmax"))
spell(("log_softmax", "log_softmax_joint"), "LogSoftmax", read=_softmax("log_softmax"))


def _running(name: str) -> Callable[[OnnxNode], Step]:
    def read(node: OnnxNode) -> Step:
        given = node.given(1)
        assert given is not None
        dim, kind = position(int(given.reshape(-1)[0]), node.rank()), [like(node)]
        turned = {k: node.attrs.get(k, 0) for k in ("exclusive", "reverse")}
        return (
            Step(f"{name}_reversed", (0,), {"dim": dim, **turned}, kind)
            if any(turned.values())
            else Step(name, (0,), {"dim": dim}, kind)
        )

    return read


for _name, _onnx, _element in (("cumsum", "CumSum", 0.0), ("cumprod", "CumProd", 1.0)):
    op(
        f"{_name}_reversed",
        like_operand,
        run=runs(f"{_name}_reversed"),
        silence=filled(_element),
        samples=(Sample((Arg((2, 6, 5)),), {"dim": 1, "exclusive": 1, "reverse": 1}, free=3),),
    )
    spell((_name, f"{_name}_reversed"), _onnx, read=_running(_name))


def _topk(node: OnnxNode) -> Step:
    dim = position(node.attrs.get("axis", -1), node.rank())
    if node.opset < 10:
        k = node.attrs["k"]
    else:
        given = node.sizes(1)
        assert given is not None
        k = given[0]
    shape = tuple(k if d == dim else s for d, s in enumerate(node.shape()))
    attrs = {
        "k": k,
        "dim": dim,
        "largest": bool(node.attrs.get("largest", 1)),
        "sorted": bool(node.attrs.get("sorted", 1)),
    }
    return Step("topk", (0,), attrs, [like(node, shape=shape), TensorType("i64", shape)])


spell("topk", "TopK", read=_topk)

# -- samples ---------------------------------------------------------------------------------------

_AXES = Arg((2,), "i64", values=(1, -1))
_BELOW = Arg((2, 6, 5), low=-2.0, high=2.0)
for _onnx in "Mean Max Min LogSumExp L1 L2 LogSum Prod SumSquare".split():
    sampled(f"Reduce{_onnx}", use(_X, free=3, axes=[1], keepdims=0), use(_X, free=3))
    sampled(f"Reduce{_onnx}", use(_X, _AXES, free=3, opset=18))
    _any = _X if _onnx == "LogSum" else _BELOW
    sampled(f"Reduce{_onnx}", use(_any, free=3, opset=18, noop_with_empty_axes=1))
sampled("ReduceSum ReduceProd", use(Arg((2, 2, 5), "i32", 1, 3), free=3))
sampled("ReduceSumSquare", use(Arg((2, 6, 5), "i32", 1, 9), free=3))
sampled("ReduceSum", use(_X, _AXES, free=3, keepdims=0), use(_X, free=3, noop_with_empty_axes=1))
sampled("ArgMax ArgMin", use(_X, free=2, axis=1), use(_X, free=2, axis=1, keepdims=0))
sampled("ArgMax ArgMin", use(_X, free=2, axis=1, select_last_index=1))
sampled("Softmax LogSoftmax", use(_X, free=3, axis=1), use(_X, free=3, opset=11))
sampled("CumSum", use(_X, Arg((), "i64", values=(1,)), free=3))
sampled("CumSum", use(_X, Arg((), "i64", values=(1,)), free=3, exclusive=1, reverse=1))
sampled("CumProd", use(_X, Arg((), "i64", values=(1,)), free=3, opset=26))
sampled("CumProd", use(_X, Arg((), "i64", values=(1,)), free=3, opset=26, exclusive=1, reverse=1))
sampled("TopK", use(_X, Arg((1,), "i64", values=(2,)), free=2, axis=1, read=(0, 1)))
sampled("TopK", use(_X, Arg((1,), "i64", values=(2,)), free=2, axis=1, largest=0, read=(0, 1)))
