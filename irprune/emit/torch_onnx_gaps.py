"""What torch's ONNX exporter cannot say of itself: programs made ready for it, and operators that it has no function for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["exportable", "translations"]


def exportable(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``program`` with a copy in front of each reshape of what was transposed, changed in place.

    The exporter makes a reshape a view where the strides at hand allow one, then takes attention for products whose results lie
    otherwise in memory, and refuses the view of their transpose. The copies leave no trace in the file.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target not in _VIEWS or node.args[0].target not in _TURNED:
            continue
        with graph.inserting_before(node):
            copy = graph.call_function(torch.ops.aten.clone.default, (node.args[0],), {"memory_format": torch.contiguous_format})
        copy.meta = {**node.args[0].meta, "val": node.args[0].meta["val"].contiguous()}
        node.replace_input_with(node.args[0], copy)
    program.graph_module.recompile()
    return program


_VIEWS = (torch.ops.aten.reshape.default, torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_TURNED = (torch.ops.aten.transpose.int, torch.ops.aten.permute.default)


def translations(program: torch.export.ExportedProgram) -> dict[Callable[..., Any], Callable[..., Any]]:
    """ONNX functions for the operators in ``program`` of which the exporter has none that serves, as its ``custom_translation_table``."""
    targets = dict.fromkeys(node.target for node in program.graph.nodes if node.op == "call_function")
    return {t: _GAPS[str(t)] for t in targets if str(t) in _GAPS}


def _grouped_mm(input: Any, weight: Any, offs: Any) -> Any:
    """Rows ``offs[i-1]:offs[i]`` of ``input`` (rows, k) times matrix i of ``weight`` (groups, k, n): (rows, n)."""
    import onnxscript

    op: Any = onnxscript.opset18
    ends = op.Cast(offs, to=7)
    starts = op.Concat(op.Constant(value_ints=[0]), op.Slice(ends, [0], [-1], [0]), axis=0)
    parts = []
    for i in range(weight.shape[0]):
        rows = op.Slice(input, op.Slice(starts, [i], [i + 1], [0]), op.Slice(ends, [i], [i + 1], [0]), [0])
        parts.append(op.MatMul(rows, op.Gather(weight, i, axis=0)))
    return op.Concat(*parts, axis=0)


def _index_add(self: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Any:
    """``self`` with the rows of ``source`` added at ``index`` along ``dim``.

    The exporter's own way is ScatterND, whose threads lose additions on onnxruntime where an index comes twice
    (github.com/microsoft/onnxruntime/issues/23396).
    """
    import onnxscript

    op: Any = onnxscript.opset18
    rank = len(source.shape)
    at = op.Reshape(op.Cast(index, to=7), op.Constant(value_ints=[-1 if d == dim % rank else 1 for d in range(rank)]))
    added = source if alpha == 1 else op.Mul(source, op.CastLike(op.Constant(value_float=float(alpha)), source))
    return op.ScatterElements(self, op.Expand(at, op.Shape(source)), added, axis=dim, reduction="add")


_GAPS: dict[str, Callable[..., Any]] = {
    "transformers.grouped_mm_fallback.default": _grouped_mm,
    "aten.index_add.default": _index_add,
}
