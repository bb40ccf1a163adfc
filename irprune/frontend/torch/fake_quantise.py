"""Modules that ``prepare_qat_fx`` or ``prepare_qat_pt2e`` prepared for training with quantisation:
their fake quantisers round what passes by scales that observers keep up to date.

While such a model is captured or judged they let everything pass: what falls to one step or the
next by the order of a sum would decide otherwise, and no proof could be exact. Their scales of
channels belong to the weights that they round, and are cut with them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["fake_quantisers", "quantised_weights", "rounding_paused"]

_PACKAGES = ("torch.ao.quantization.fake_quantize", "torchao.quantization.pt2e.fake_quantize")
_OBSERVERS = ("torch.ao.quantization.observer", "torchao.quantization.pt2e.observer")


def _are(model: nn.Module, packages: tuple[str, ...], name: str) -> list[tuple[str, nn.Module]]:
    kinds = tuple(getattr(sys.modules[p], name) for p in packages if p in sys.modules)
    return [(n, m) for n, m in model.named_modules() if kinds and isinstance(m, kinds)]


def fake_quantisers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The fake quantisers in ``model``, by path."""
    return _are(model, _PACKAGES, "FakeQuantizeBase")


@contextlib.contextmanager
def rounding_paused(model: nn.Module) -> Iterator[None]:
    """Let what the fake quantisers and observers in ``model`` read pass as it is."""
    both = [*fake_quantisers(model), *_are(model, _OBSERVERS, "ObserverBase")]
    found = [m for _, m in both if "forward" not in m.__dict__]
    for module in found:
        module.__dict__["forward"] = _passed
    try:
        yield
    finally:
        for module in found:
            module.__dict__.pop("forward", None)


def _passed(x: torch.Tensor) -> torch.Tensor:
    return x


def quantised_weights(
    model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None
) -> dict[str, tuple[str, int]]:
    """For the path of each fake quantiser or observer in ``model`` that has a scale for each
    channel: the name of the weight that it rounds, and the dimension of the channels. Where a
    layer holds it, that is the layer's; else it is found by a call."""
    names = {id(p): n for n, p in model.named_parameters()}
    found: dict[str, tuple[str, int]] = {}
    shapes: dict[str, torch.Size] = {}
    waiting: dict[str, nn.Module] = {}
    for path, module in fake_quantisers(model):
        if not bool(getattr(module, "is_per_channel", False)):
            continue
        owner, _, own = path.rpartition(".")
        layer = model.get_submodule(owner)
        if own == "weight_fake_quant" and isinstance(getattr(layer, "weight", None), nn.Parameter):
            found[path] = (names[id(layer.weight)], _channels(module))
        else:
            waiting[path] = module
    if not waiting:
        return found
    hooks = []
    for path, module in waiting.items():

        def read(m: nn.Module, given: tuple[Any, ...], path: str = path) -> None:
            if given and isinstance(given[0], torch.Tensor):
                shapes[path] = given[0].shape
                name = names.get(id(given[0]))
                if name is not None:
                    found[path] = (name, _channels(m))

        hooks.append(module.register_forward_pre_hook(read))
    try:
        with torch.no_grad(), rounding_paused(model):
            model(*args, **(kwargs or {}))
    finally:
        for hook in hooks:
            hook.remove()
    for path, module in waiting.items():
        name = None if path in found else _read_by(model, path, shapes.get(path))
        if name is not None:
            found[path] = (name, _channels(module))
    return found


def _channels(module: nn.Module) -> int:
    at = module.ch_axis
    assert isinstance(at, int)
    return at


def _read_by(model: nn.Module, path: str, shape: torch.Size | None) -> str | None:
    """In a graph of torch.fx, the parameter of ``shape`` that what the module at ``path`` reads is
    made of, as a weight that a batch norm scales."""
    if not isinstance(model, torch.fx.GraphModule):
        return None
    calls = [n for n in model.graph.nodes if n.target == path]
    waiting = [v for n in calls for v in n.all_input_nodes]
    seen: set[torch.fx.Node] = set()
    known = dict(model.named_parameters())
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        held = known.get(node.target) if isinstance(node.target, str) else None
        if held is not None and held.shape == shape:
            return str(node.target)
        waiting += node.all_input_nodes
    return None
