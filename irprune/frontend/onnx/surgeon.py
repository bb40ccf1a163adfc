"""Graphs of onnx-graphsurgeon, in and out: for those who build and edit their models with it.

What goes through it carries what a ``gs.Graph`` can carry: it has no place for metadata, doc
strings of tensors and nodes, or quantization annotations. Files do not go through it (see
``irprune.emit.onnx.emitter``)."""

from __future__ import annotations

from typing import Any

import onnx

from irprune.errors import IrpruneError

__all__ = ["from_surgeon", "to_surgeon"]


def from_surgeon(graph: Any) -> onnx.ModelProto:
    """The model of a ``gs.Graph``, which is not changed. Raises IrpruneError where
    onnx-graphsurgeon cannot export it."""
    import onnx_graphsurgeon as gs

    try:
        model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    except (
        gs.OnnxGraphSurgeonException,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as refused:
        why = str(refused).strip().splitlines()
        raise IrpruneError(
            f"onnx-graphsurgeon cannot export the graph: {why[0] if why else type(refused).__name__}",
            str(graph.name),
            "gs.export_onnx(graph) says more",
        ) from refused
    return model


def to_surgeon(model: onnx.ModelProto) -> Any:
    """``model`` as a ``gs.Graph``; weights are read from it when they are asked for."""
    import onnx_graphsurgeon as gs

    return gs.import_onnx(model)
