"""Random weights under which a wrong slice shows.

Fresh layers are a poor test: norms are the identity, running statistics are 0 and 1, biases are
often zero, so that many a channel may be taken for another and the output stays the same. Here
every channel gets values of its own, at a scale that neither explodes nor vanishes through the
depth of the network."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

M = TypeVar("M", bound=nn.Module)


def norm_weight(*shape: int) -> nn.Parameter:
    """A norm's scale, drawn from [0.5, 1.5]."""
    return nn.Parameter(torch.empty(*shape).uniform_(0.5, 1.5))


def normal(*shape: int, std: float) -> nn.Parameter:
    """A parameter drawn from N(0, std**2)."""
    return nn.Parameter(torch.empty(*shape).normal_(std=std))


def randomize(model: M, damp: str = "", factor: float = 0.3) -> M:
    """Draw the weights of all linear, convolution and norm layers of ``model`` in place, and return
    it.

    ``damp`` names the layer that ends each residual branch: its weight is scaled by ``factor``.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            nn.init.normal_(module.weight, std=_std(module))
        elif (
            isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))
            and module.weight is not None
        ):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        else:
            continue
        if isinstance(module.bias, Tensor):
            nn.init.normal_(module.bias, std=0.1)
        if damp and name.rpartition(".")[2] == damp:
            with torch.no_grad():
                module.weight.mul_(factor)
    return model


def _std(module: nn.Linear | _ConvNd) -> float:
    """The standard deviation that keeps the variance: 2 / fan_in before a ReLU, 1 / fan_in for
    linear layers."""
    if isinstance(module, nn.Linear):
        return 1 / math.sqrt(module.in_features)
    fan_in = module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, _ConvTransposeNd):
        fan_in = max(1, fan_in // math.prod(module.stride))
    return math.sqrt(2 / fan_in)


def calibrate(model: M, *args: Any) -> M:
    """Set the running statistics of all batch norms from one forward pass, and return the model.

    Variances are kept above a tenth of their layer's mean: a channel that hardly moved here must
    not explode elsewhere."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average: the statistics of this pass alone
    with torch.no_grad():
        model.train()(*args)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:
            norm.running_var.copy_(torch.maximum(norm.running_var, 0.1 * norm.running_var.mean()))
    return model
