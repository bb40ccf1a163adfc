"""Integer products that saturate: whether this processor's do, and what that changes in a model.

On processors with AVX2 or AVX-512 and without VNNI onnxruntime multiplies u8 with s8 by an
instruction (VPMADDUBSW) that adds two products up in sixteen bits with saturation. Weights within
64 never reach the bound: ``reduce_range=True`` of onnxruntime's quantisation makes such ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.order import target_of
from irprune.ops.onnx.float_forms import PRODUCTS
from irprune.run.error import relative_error
from irprune.validate.onnx_run import run_model

__all__ = ["changed_by_saturation", "mixes_signs", "products_saturate"]

Array = NDArray[Any]


@cache
def products_saturate() -> bool:
    """Whether onnxruntime's products of u8 with s8 on this machine are others than those of the
    integers."""
    depth = 64
    weight = numpy_helper.from_array(np.full((depth, 8), 127, np.int8), "w")
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [4, depth])
    product = helper.make_tensor_value_info("y", TensorProto.INT32, [4, 8])
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "product", [x], [product], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (y,) = run_model(model, {"x": np.full((4, depth), 255, np.uint8)}, optimise=False)
    return bool((y != 255 * 127 * depth).any())


def mixes_signs(model: onnx.ModelProto) -> bool:
    """Whether ``model`` multiplies u8 with stored s8 in operators of integers."""
    stored = {t.name: t.data_type for t in model.graph.initializer}
    for node in model.graph.node:
        zero, right = PRODUCTS.get(target_of(node), (None, ()))
        left = (
            TensorProto.UINT8
            if zero is None or zero >= len(node.input)
            else stored.get(node.input[zero], TensorProto.UINT8)
        )
        if left == TensorProto.UINT8 and any(
            stored.get(node.input[i]) == TensorProto.INT8 for i in right
        ):
            return True
    return False


def changed_by_saturation(
    model: onnx.ModelProto, inputs: Mapping[str, Array], data: Mapping[str, Loader] | None = None
) -> float | None:
    """By how much ``model`` on this machine differs from itself with products that do not saturate.

    None where it may differ and onnxruntime has no other products for it.
    """
    if not products_saturate():
        return 0.0
    as_it_is = run_model(model, inputs, data=data)
    try:
        return relative_error(as_it_is, run_model(model, inputs, data=data, precise=True))
    except (
        IrpruneError
    ):  # onnxruntime 1.31 makes u8 of weights beside s8 too, for which QGemm has no kernel
        return None if mixes_signs(model) else 0.0
