"""Types of results by ONNX's own inference, for operators whose axis rule does not give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from irprune.frontend.onnx.proto import dtype_of, identifier, is_named, type_proto
from irprune.frontend.onnx.source import OnnxSource
from irprune.frontend.onnx.types import without_data
from irprune.ir.graph import TensorType
from irprune.ir.size import Size, Sym, symbol

__all__ = ["Inference"]


class Inference:
    """Of one file: ``constant`` gives the tensor of a name where it is known, ``fresh`` a symbol
    for a size that is not."""

    def __init__(
        self,
        source: OnnxSource,
        constant: Callable[[str], NDArray[Any] | None],
        fresh: Callable[[], Sym],
    ) -> None:
        self.source, self.constant, self.fresh = source, constant, fresh
        proto = source.model.graph
        self.declared = {v.name: v.type for v in (*proto.value_info, *proto.output)}
        self.whole: dict[str, onnx.TypeProto] | None = None

    def of(
        self,
        node: onnx.NodeProto,
        opset: int,
        types: list[TensorType | None],
        symbols: dict[str, Sym],
    ) -> list[TensorType]:
        """ONNX's own inference for one node, then what the file declares, then unknown."""
        found: dict[str, onnx.TypeProto] = {}
        try:
            schema = onnx.defs.get_schema(
                node.op_type, opset, node.domain if node.domain != "ai.onnx" else ""
            )
            if any(
                a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
                for a in node.attribute
            ):
                found = self._whole_inference()
            else:
                known = {n: self.constant(n) for n in node.input if n}
                data = {
                    n: numpy_helper.from_array(a, n)
                    for n, a in known.items()
                    if a is not None and a.dtype != object
                }
                given = {
                    n: type_proto(t, symbols)
                    for n, t in zip(node.input, types, strict=False)
                    if n and t is not None
                }
                found = onnx.shape_inference.infer_node_outputs(
                    schema,
                    node,
                    given,
                    data,
                    opset_imports=list(self.source.model.opset_import),
                    ir_version=self.source.model.ir_version,
                )
        except (
            onnx.defs.SchemaError,
            onnx.shape_inference.InferenceError,
            KeyError,
            RuntimeError,
            ValueError,
            TypeError,
        ):
            pass  # no type from here; the declared one is next
        out = []
        for name in node.output:
            kind = self._type_from(found.get(name), symbols)
            if kind is None or kind.shape is None:
                kind = self._type_from(self.declared.get(name), symbols) or kind
            out.append(
                kind or TensorType(next((t.dtype for t in types if t is not None), "f32"), None)
            )
        return out

    def _type_from(
        self, proto: onnx.TypeProto | None, symbols: dict[str, Sym]
    ) -> TensorType | None:
        if proto is None or not proto.WhichOneof("value"):
            return None
        if not proto.HasField("tensor_type"):
            return TensorType(proto.WhichOneof("value") or "?", None)
        if not proto.tensor_type.HasField("shape"):
            return TensorType(dtype_of(proto.tensor_type.elem_type), None)
        shape: list[Size] = []
        for d in proto.tensor_type.shape.dim:
            if d.HasField("dim_value"):
                shape.append(d.dim_value if d.dim_value >= 0 else self.fresh())
            elif is_named(d.dim_param):
                key = d.dim_param
                shape.append(symbols.get(key) or symbol(identifier(key)))
            else:
                shape.append(self.fresh())
        return TensorType(dtype_of(proto.tensor_type.elem_type), tuple(shape))

    def _whole_inference(self) -> dict[str, onnx.TypeProto]:
        """Types from ONNX's inference over the whole model, for results of nodes with subgraphs."""
        if self.whole is None:
            light = without_data(self.source.model)
            done = onnx.shape_inference.infer_shapes(light, data_prop=True)
            self.whole = {v.name: v.type for v in (*done.graph.value_info, *done.graph.output)}
        return self.whole
