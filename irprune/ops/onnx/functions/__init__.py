"""ONNX operators that no single ATen overload says, in torch: operands first, then the entry's
attributes by name.

Each function stands on its own (torch, ``math`` and ``F`` alone, and what ``HELPERS`` lists for
it), because emitted modules carry its source."""

from __future__ import annotations

from irprune.ops.assertions import *  # noqa: F403
from irprune.ops.onnx.functions.attention import *  # noqa: F403
from irprune.ops.onnx.functions.control import *  # noqa: F403
from irprune.ops.onnx.functions.dynamic import *  # noqa: F403
from irprune.ops.onnx.functions.experts import *  # noqa: F403
from irprune.ops.onnx.functions.frozen import *  # noqa: F403
from irprune.ops.onnx.functions.places import *  # noqa: F403
from irprune.ops.onnx.functions.pointwise import *  # noqa: F403
from irprune.ops.onnx.functions.products import *  # noqa: F403
from irprune.ops.onnx.functions.quantised import *  # noqa: F403
from irprune.ops.onnx.functions.recurrence import *  # noqa: F403
from irprune.ops.onnx.functions.reductions import *  # noqa: F403
from irprune.ops.onnx.functions.sequences import *  # noqa: F403
from irprune.ops.onnx.functions.windows import *  # noqa: F403
from irprune.ops.training import *  # noqa: F403

HELPERS: dict[str, tuple[str, ...]] = {
    "gradient_to": ("GradientTo",),
    "loop": ("stacked",),
    "scan": ("stacked",),
    "dynamic_pad": ("pad_by",),
    "dynamic_gather_elements": ("gather_elements",),
    "dynamic_gather": ("gather_at",),
    "dynamic_full": ("dynamic_cast",),
    "projected_attention": ("keys_that_count",),
    "quantised_attention": ("projected_attention", "keys_that_count"),
    "multi_head_attention": ("keys_that_count",),
    "group_query_attention": ("onnx_attention", "rotary"),
    "max_pool_padded": ("pool_windows",),
    "lp_pool": ("pool_windows",),
    "avg_pool_padded": ("pool_windows",),
    "onnx_lstm": ("activation_of", "scanned"),
    "dynamic_lstm": ("onnx_lstm", "activation_of", "scanned", "dynamic_quantize"),
    "onnx_gru": ("activation_of", "scanned"),
    "onnx_rnn": ("activation_of", "scanned"),
    "quantize_linear": ("spread_scale",),
    "dequantize_linear": ("spread_scale",),
    "qlinear_binary": ("unrounded", "rounded"),
    "qlinear_unary": ("unrounded", "rounded"),
    "qlinear_along": ("unrounded", "rounded"),
    "qlinear_concat": ("unrounded", "rounded"),
    "integer_matmul": ("dynamic_quantize",),
    "qlinear_gemm": ("rounded",),
}
"""The other functions that a function calls."""
