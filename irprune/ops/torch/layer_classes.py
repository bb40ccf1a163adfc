"""What the classes of layers of ``torch.nn`` say: what a layer computes, and the attributes that
hold its sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from torch import nn

from irprune.ir.graph import Node

__all__ = [
    "dropout_name",
    "drops_inside",
    "is_batch_norm",
    "is_convolution",
    "is_layer_norm",
    "is_linear",
    "is_transposed_linear",
    "layer_sizes",
    "root_mean_square",
]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_linear(module: nn.Module | None) -> bool:
    """Whether it is ``nn.Linear`` itself, and no class derived from it."""
    return type(module) is nn.Linear


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Whether it is a convolution of ``torch.nn`` itself, which is not transposed."""
    return type(module) in _CONVOLUTIONS


def is_batch_norm(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._NormBase]:
    """Whether it normalises by statistics that it holds, as batch norms do."""
    return isinstance(module, nn.modules.batchnorm._NormBase)


def is_layer_norm(module: nn.Module | None) -> bool:
    """Whether it is ``nn.LayerNorm`` itself, and no class derived from it."""
    return type(module) is nn.LayerNorm


def drops_inside(module: nn.Module) -> bool:
    """Whether it is a layer that leaves elements out in training within an operator of its own."""
    return isinstance(module, nn.MultiheadAttention) and module.dropout > 0


def dropout_name(kind: type | None) -> str:
    """The class of ``torch.nn`` that does what the dropout layer ``kind`` does; "" where it is
    none."""
    if kind is None or not issubclass(kind, nn.modules.dropout._DropoutNd):
        return ""
    return kind.__name__ if kind.__module__ == nn.Dropout.__module__ else nn.Dropout.__name__


def root_mean_square(norm: nn.Module, eps: float) -> nn.RMSNorm:
    """The norm by the root of the mean square over the dimensions of the layer norm ``norm``, with
    a weight where that has one."""
    assert isinstance(norm, nn.LayerNorm)
    weight: Any = norm.weight  # None where the norm has none
    like = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
    made = nn.RMSNorm(
        list(norm.normalized_shape), eps, elementwise_affine=weight is not None, **like
    )
    return made.train(norm.training)


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is the linear layer of transformers, whose matrix has the inputs first."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D"


def layer_sizes(module: nn.Module, node: Node | None) -> Iterator[tuple[str, Any]]:
    """The size attributes of a layer of ``torch.nn``, or of the transposed linear layer of
    transformers, with their values; none of other modules."""
    w = module._parameters.get("weight")
    if is_transposed_linear(module) and w is not None:
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
    elif is_batch_norm(module):
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
