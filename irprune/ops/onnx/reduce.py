"""Reductions as ONNX spells them: which dimensions was an attribute, then an input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from irprune.ir.graph import TensorType
from irprune.ops.aten.reduce import filled, like_operand, reduction
from irprune.ops.onnx.importer import OnnxNode, Step, runs, spell, variant
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


def _reduce(name: str, since: int = 18, **attrs: Any) -> Callable[[OnnxNode], Step]:
    def read(node: OnnxNode) -> Step:
        dims = _dims(node, since)
        if dims is None:
            return Step("identity", (0,), {}, [like(node)])
        keep = bool(node.attrs.get("keepdims", 1))
        if node.rank() == 0:
            return Step(
                name + "_whole" if False else name,
                (0,),
                {"dim": [], "keepdim": keep, **attrs},
                [like(node)],
            )
        return Step(
            name, (0,), {"dim": dims, "keepdim": keep, **attrs}, [reduced_type(node, dims, keep)]
        )

    return read


_X = Arg((2, 6, 5), low=0.1)
for _name in ("reduce_log_sum", "reduce_prod"):
    op(
        _name,
        reduction,
        run=runs(_name),
        silence=filled(0.0 if _name == "reduce_log_sum" else 1.0),
        samples=(Sample((_X,), {"dim": [1, 2], "keepdim": True}, free=3),),
    )
op(
    "reduce_sum_square",
    reduction,
    run=runs("reduce_sum_square"),
    silence=filled(0.0),
    samples=(Sample((_X,), {"dim": [1, 2], "keepdim": True}, free=3),),
)
for _onnx, _entry, _more in (
    ("ReduceMean", "mean", {}),
    ("ReduceMax", "amax", {}),
    ("ReduceMin", "amin", {}),
    ("ReduceLogSumExp", "logsumexp", {}),
    ("ReduceL1", "vector_norm", {"ord": 1}),
    ("ReduceL2", "vector_norm", {"ord": 2}),
    ("ReduceLogSum", "reduce_log_sum", {}),
    ("ReduceProd", "reduce_prod", {}),
    ("ReduceSumSquare", "reduce_sum_square", {}),
):
    spell((_entry, "identity"), _onnx, read=_reduce(_entry, **_more))
spell(("sum", "identity"), "ReduceSum", read=_reduce("sum", since=13))


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
            Step(f"{name}_turned", (0,), {"dim": dim, **turned}, kind)
            if any(turned.values())
            else Step(name, (0,), {"dim": dim}, kind)
        )

    return read


for _name, _onnx, _element in (("cumsum", "CumSum", 0.0), ("cumprod", "CumProd", 1.0)):
    op(
        f"{_name}_turned",
        like_operand,
        run=runs(f"{_name}_turned"),
        silence=filled(_element),
        samples=(Sample((Arg((2, 6, 5)),), {"dim": 1, "exclusive": 1, "reverse": 1}, free=3),),
    )
    spell((_name, f"{_name}_turned"), _onnx, read=_running(_name))


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
