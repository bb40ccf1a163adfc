"""A module with another basis in one of its widths: new tensors in a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from irprune.errors import IrpruneError, gist
from irprune.frontend.torch.pretrained import is_pretrained
from irprune.ops.torch.layer_classes import is_layer_norm, is_linear, root_mean_square

__all__ = ["in_basis", "layer_norm_at", "placed", "takes_bias", "with_basis"]


def layer_norm_at(model: nn.Module, path: str) -> bool:
    """Whether a plain layer norm stands at ``path``, which another norm may replace."""
    return is_layer_norm(_at(model, path))


def takes_bias(model: nn.Module, path: str, weight: str) -> bool:
    """Whether a plain linear layer that holds ``weight`` stands at ``path``, and has no bias."""
    layer = _at(model, path)
    if layer is None or not is_linear(layer):
        return False
    return layer.bias is None and weight == f"{path}.weight"


def _at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def with_basis(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], norms: Mapping[str, float]
) -> nn.Module:
    """A copy of ``model`` with ``tensors`` in the place of its parameters and buffers of these
    names, in their types; names that share a tensor stay tied. The layer norms at ``norms`` become
    root mean square norms with these epsilons. A bias that is not there yet is added.

    Raises IrpruneError for a module that cannot be copied."""
    try:
        made = copy.deepcopy(model)
    except Exception as refused:  # whatever the user's classes raise
        raise IrpruneError(
            f"the module cannot be copied: {gist(refused)}",
            type(model).__name__,
            "rotate turns the weights of a copy of it",
        ) from refused
    for path, eps in norms.items():
        _set_module(made, path, root_mean_square(made.get_submodule(path), eps))
    done: dict[int, nn.Parameter | torch.Tensor] = {}
    for name, tensor in tensors.items():
        owner, _, own = name.rpartition(".")
        if owner in norms and own == "bias":
            continue
        layer = made.get_submodule(owner)
        old = layer._parameters.get(own, layer._buffers.get(own))
        if id(tensor) not in done:
            like = old if old is not None else layer.weight
            assert isinstance(like, torch.Tensor)
            # of their own memory: files know names by the memory that they share
            held = tensor.to(like.device, like.dtype).clone().contiguous()
            done[id(tensor)] = (
                held if own in layer._buffers else nn.Parameter(held, like.requires_grad)
            )
        _set_tensor(layer, own, done[id(tensor)])
    if is_pretrained(made):
        _say_untied(made)
    return made


def _say_untied(model: Any) -> None:
    """Let the config say that the embeddings are not tied any more, where they are not."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if table is None or head is None or head.weight is table.weight:
        return
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def placed(
    model: nn.Module, source: nn.Module, tensors: Mapping[str, Any], norms: Mapping[str, float]
) -> list[tuple[nn.Module, str, Any]]:
    """Put copies of the tensors and norms of ``source`` with these names into ``model`` itself;
    returns what stood there, to be put back by ``restored``."""
    before: list[tuple[nn.Module, str, Any]] = []
    for path in norms:
        parent, _, own = path.rpartition(".")
        holder = model.get_submodule(parent)
        before.append((holder, own, holder._modules[own]))
        holder._modules[own] = copy.deepcopy(source.get_submodule(path))
    done: dict[int, Any] = {}
    for name in tensors:
        owner, _, own = name.rpartition(".")
        if owner in norms:
            continue
        layer, theirs = model.get_submodule(owner), source.get_submodule(owner)
        held = theirs._parameters.get(own, theirs._buffers.get(own))
        if own in layer._modules or held is None:
            raise KeyError(name)
        old = layer._parameters.get(own, layer._buffers.get(own))
        before.append((layer, own, old))
        if id(held) not in done:
            done[id(held)] = copy.deepcopy(held)
        _set_tensor(layer, own, done[id(held)])
    return before


@contextmanager
def in_basis(
    model: nn.Module, source: nn.Module, tensors: Mapping[str, Any], norms: Mapping[str, float]
) -> Iterator[None]:
    """``placed``, with everything as it was where what goes on with it fails."""
    configs: list[Any] = []
    if is_pretrained(model):
        own: Any = model
        configs = [own.config, own.config.get_text_config()]
    tied = [getattr(c, "tie_word_embeddings", None) for c in configs]
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        before = placed(model, source, tensors, norms)
        if configs:
            _say_untied(model)
        yield
    except BaseException as failed:
        for layer, name, old in reversed(before):
            if isinstance(old, nn.Module):
                layer._modules[name] = old
            else:
                _set_tensor(layer, name, old)
        for config, was in zip(configs, tied, strict=True):
            if was is not None:
                config.tie_word_embeddings = was
        if isinstance(failed, (AttributeError, KeyError)):
            raise IrpruneError(
                f"the instance has no {gist(failed)}",
                type(model).__name__,
                "give the module that was pruned, or one of the same class",
            ) from failed
        raise


def _set_module(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = layer


def _set_tensor(layer: nn.Module, name: str, tensor: Any) -> None:
    if name in layer._buffers:
        layer._buffers[name] = tensor
    else:
        layer._parameters[name] = tensor
