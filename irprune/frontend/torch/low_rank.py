"""Layers of a module as two: a product with a thin matrix, and one with another."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from irprune.errors import IrpruneError, gist
from irprune.ops.torch.layer_classes import is_convolution, is_linear, is_transposed_linear

__all__ = ["LowRank", "SplitLayer", "can_split", "put_layers", "split_layers", "with_layers"]


@dataclass(frozen=True)
class SplitLayer:
    """The weights of the two layers that stand in for one: ``first`` [k, r], with what a kernel
    covers in k, and ``second`` [r, o]."""

    first: torch.Tensor
    second: torch.Tensor


class LowRank(nn.Sequential):
    """Two layers in the place of one: the first without a bias makes the few numbers, of which the
    second makes the result. What code reads of the one layer, it finds."""

    @property
    def weight(self) -> torch.Tensor:
        """The matrix or kernel that the two stand for, laid out as that of the layer was."""
        first, second = _weight(self[0]), _weight(self[1])
        return (second.flatten(1) @ first.flatten(1)).reshape(second.shape[0], *first.shape[1:])

    @property
    def bias(self) -> Any:
        """The bias, which the second layer adds."""
        return self[1].bias

    @property
    def in_features(self) -> int:
        """The number of inputs."""
        return int(_weight(self[0]).shape[1])

    @property
    def out_features(self) -> int:
        """The number of outputs."""
        return int(_weight(self[1]).shape[0])


def can_split(model: nn.Module | None, weight: str) -> bool:
    """Whether the layer that holds ``weight`` may be replaced by two: a plain linear layer or
    convolution of one group, which nothing hooks into."""
    owner, _, own = weight.rpartition(".")
    if model is None or own != "weight" or not owner:
        return False
    try:
        layer = model.get_submodule(owner)
    except AttributeError:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    if any(hooks) or "parametrizations" in layer._modules:
        return False
    if is_convolution(layer):
        return bool(layer.groups == 1) and not isinstance(layer.padding, str)
    return is_linear(layer) or is_transposed_linear(layer)


def split_layers(model: nn.Module, split: Mapping[str, SplitLayer]) -> dict[str, LowRank]:
    """By the path of each layer whose weight ``split`` names, the two that stand in for it, in its
    type and on its device."""
    return {
        weight.rpartition(".")[0]: _two(model.get_submodule(weight.rpartition(".")[0]), one)
        for weight, one in split.items()
    }


def put_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Hang ``layers`` into ``model`` itself, by their paths; returns what stood there."""
    before = {}
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        holder = model.get_submodule(parent)
        before[path] = holder._modules[name]
        holder._modules[name] = layer
    return {path: layer for path, layer in before.items() if layer is not None}


def with_layers(model: nn.Module, split: Mapping[str, SplitLayer]) -> nn.Module:
    """A copy of ``model`` with two layers in the place of each whose weight ``split`` names.

    Raises IrpruneError for a module that cannot be copied."""
    try:
        made = copy.deepcopy(model)
    except Exception as refused:  # whatever the user's classes raise
        raise IrpruneError(
            f"the module cannot be copied: {gist(refused)}",
            type(model).__name__,
            "low_rank puts two layers in the place of one in a copy of it",
        ) from refused
    put_layers(made, split_layers(made, split))
    return made


def _weight(layer: nn.Module) -> torch.Tensor:
    held = layer.weight
    assert isinstance(held, torch.Tensor)
    return held


def _two(layer: nn.Module, split: SplitLayer) -> LowRank:
    held = _weight(layer)
    kind: dict[str, Any] = {"device": held.device, "dtype": held.dtype}
    rank, (first_in, outs) = split.first.shape[1], (split.first.shape[0], split.second.shape[1])
    bias = layer.bias
    assert bias is None or isinstance(bias, torch.Tensor)
    if is_convolution(layer):
        plain = type(layer)
        first: nn.Module = plain(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=layer.padding_mode,
            **kind,
        )
        second: nn.Module = plain(rank, outs, 1, bias=bias is not None, **kind)
    else:
        first = nn.Linear(first_in, rank, bias=False, **kind)
        second = nn.Linear(rank, outs, bias=bias is not None, **kind)
    made = LowRank(first, second).train(layer.training)
    with torch.no_grad():
        for part, matrix in zip(made, (split.first, split.second), strict=True):
            _weight(part).copy_(matrix.T.reshape(_weight(part).shape))
        if bias is not None:
            made.bias.copy_(bias)
    for parameter in made.parameters():
        parameter.requires_grad_(held.requires_grad)
    return made
