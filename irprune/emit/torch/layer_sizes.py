"""The size attributes of layers of libraries, from the shapes that their tensors have now and
from the nodes that they run as."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from irprune.ir.graph import Node

__all__ = ["layer_sizes"]


def layer_sizes(module: nn.Module, node: Node | None) -> Iterator[tuple[str, Any]]:
    """The size attributes of a layer of ``torch.nn``, or of the transposed linear layer of
    transformers, with their values; none of other modules."""
    w = module._parameters.get("weight")
    kind = type(module)
    if (
        f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D"
        and w is not None
    ):
        yield from (("nx", w.shape[0]), ("nf", w.shape[1]))
        return
    if isinstance(module, nn.Linear) and w is not None:
        yield from (("in_features", w.shape[1]), ("out_features", w.shape[0]))
    elif isinstance(module, nn.modules.conv._ConvNd) and w is not None:
        groups = node.attrs.get("groups", 1) if node is not None else module.groups
        across, along = w.shape[0], w.shape[1] * groups
        swap = isinstance(module, nn.modules.conv._ConvTransposeNd)
        yield from (
            ("groups", groups),
            ("in_channels", across if swap else along),
            ("out_channels", along if swap else across),
        )
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = next((t for t in (w, module.running_mean) if t is not None), None)
        if sized is not None:
            yield "num_features", sized.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and w is not None:
        yield "normalized_shape", tuple(w.shape)
    elif isinstance(module, nn.GroupNorm):
        if node is not None and "num_groups" in node.attrs:
            yield "num_groups", node.attrs["num_groups"]
        if w is not None:
            yield "num_channels", w.shape[0]
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and w is not None:
        yield from (("num_embeddings", w.shape[0]), ("embedding_dim", w.shape[1]))
    elif isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        first: Any = module._parameters["weight_ih_l0"]
        yield from (("input_size", first.shape[1]), ("hidden_size", first.shape[0] // gates))
        if module.proj_size:
            yield "proj_size", module._parameters["weight_hr_l0"].shape[0]  # type: ignore[union-attr]
    elif isinstance(module, nn.RNNCellBase):
        yield from (
            ("input_size", module.weight_ih.shape[1]),
            ("hidden_size", module.weight_hh.shape[1]),
        )
    elif isinstance(module, nn.PReLU) and w is not None:
        yield "num_parameters", w.shape[0]
    elif isinstance(module, nn.Bilinear) and w is not None:
        yield from (
            ("out_features", w.shape[0]),
            ("in1_features", w.shape[1]),
            ("in2_features", w.shape[2]),
        )
