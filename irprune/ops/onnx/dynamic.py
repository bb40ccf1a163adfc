"""Uses that no reader covers because shapes, bounds or ranks are known only at run time: torch runs
them, their axes freeze."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.dtype import computed_type
from irprune.ir.graph import Node, TensorType
from irprune.ops.onnx.importer import OnnxNode, Step, runs_named
from irprune.ops.registry import Unsupported
from irprune.ops.registry import op as declare

__all__ = ["at_run_time"]

op = partial(declare, family="dynamic")


def _refuse(axes: Axes, node: Node) -> None:
    raise Unsupported(node.attrs["why"])


_FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "Slice": ("dynamic_slice", {}),
    "Pad": ("dynamic_pad", {"mode": "constant"}),
    "Range": ("dynamic_range", {}),
    "Reshape": ("dynamic_reshape", {"allowzero": 0}),
    "Expand": ("dynamic_expand", {}),
    "Tile": ("dynamic_tile", {}),
    "ConstantOfShape": ("dynamic_full", {"value": 0.0, "dtype": "f32"}),
    "OneHot": ("dynamic_one_hot", {"axis": -1}),
    "TopK": ("dynamic_topk", {"axis": -1, "largest": 1, "sorted": 1}),
    "Split": ("dynamic_split", {"axis": 0}),
    "Squeeze": ("dynamic_squeeze", {}),
    "Unsqueeze": ("dynamic_unsqueeze", {}),
    "ReduceSum": ("dynamic_sum", {"keepdims": 1, "noop_with_empty_axes": 0}),
    "Concat": ("dynamic_concat", {"axis": 0}),
    "Cast": ("dynamic_cast", {"to": 1}),
    "CastLike": ("dynamic_cast_like", {}),
    "GatherElements": ("dynamic_gather_elements", {"axis": 0}),
    "MatMul": ("dynamic_matmul", {}),
    "Transpose": ("dynamic_transpose", {"perm": None}),
    "Gather": ("dynamic_gather", {"axis": 0}),
    "Shape": ("dynamic_shape", {"start": 0, "end": None}),
    "Identity": ("passed_on", {}),
}
op("at_run_time", _refuse, run=runs_named)


def at_run_time(node: OnnxNode, why: str) -> Step | None:
    """``node`` as torch runs it without knowing more; None where it takes more than that, or an
    input type that torch lacks."""
    name, defaults = _FUNCTIONS.get(node.target, ("", {}))
    since = {
        "Slice": 10,
        "Pad": 11,
        "Reshape": 5,
        "Expand": 8,
        "TopK": 10,
        "Split": 13,
        "Squeeze": 13,
        "Unsqueeze": 13,
        "ReduceSum": 13,
    }
    if (
        not name
        or node.opset < since.get(node.target, 0)
        or any(t is not None and t.dtype == "str" for t in node.types)
    ):
        return None
    attrs = {k: node.attrs.get(k, d) for k, d in defaults.items()}
    if node.target == "ConstantOfShape" and "value" in node.attrs:
        from onnx import numpy_helper

        attrs["dtype"] = computed_type(node.attrs["value"].data_type)
        attrs["value"] = numpy_helper.to_array(node.attrs["value"]).reshape(-1)[0].item()
    if node.target == "Cast":
        attrs["to"] = computed_type(node.attrs["to"])
    if node.target == "Split":
        attrs["count"] = node.results
    if "" in attrs.values():
        return None
    kinds = node.inferred()
    if node.target == "Identity":
        kinds = [node.types[0] or TensorType("f32", None)]
    return Step("at_run_time", None, {"function": name, "why": why, **attrs}, kinds)
