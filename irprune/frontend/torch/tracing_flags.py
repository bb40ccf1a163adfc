"""What library code hears when it asks whether it is captured, or whether to check arguments:
models branch on the answer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["as_exported", "as_run", "formatted", "idle_conversions", "taken_branches", "unchecked"]


@contextlib.contextmanager
def as_exported() -> Iterator[None]:
    """``torch.compiler.is_compiling()`` and ``is_exporting()`` answer True, as under
    ``torch.export``."""
    flags = {
        k: getattr(torch.compiler, k)
        for k in ("_is_compiling_flag", "_is_exporting_flag")
        if hasattr(torch.compiler, k)
    }
    for k in flags:
        setattr(torch.compiler, k, True)
    try:
        yield
    finally:
        for k, v in flags.items():
            setattr(torch.compiler, k, v)


@contextlib.contextmanager
def as_run() -> Iterator[None]:
    """Every answer is that of a plain call: ``torch._subclasses.FakeTensor`` knows a fake tensor
    for torch's own code alone."""
    package = torch._subclasses
    package.FakeTensor = _Unknown  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        package.FakeTensor = FakeTensor  # type: ignore[misc]


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """``torch.distributions`` do not look at the values of their arguments: there is a branch in
    that which can only raise."""
    kind = torch.distributions.Distribution
    before = kind._validate_args
    kind.set_default_validate_args(False)
    try:
        yield
    finally:
        kind.set_default_validate_args(before)


@contextlib.contextmanager
def formatted() -> Iterator[None]:
    """A tensor of one value in a formatted string is that value, as outside of a capture: forward
    may look something up by it."""

    def value(tensor: torch.Tensor, spec: str) -> str:
        return format(tensor.item(), spec) if tensor.dim() == 0 else object.__format__(tensor, spec)

    FakeTensor.__format__ = value  # type: ignore[method-assign]
    try:
        yield
    finally:
        del FakeTensor.__format__


@contextlib.contextmanager
def idle_conversions() -> Iterator[None]:
    """A conversion of a layer to the type and device that it has (``self.layer.to(x.dtype)``)
    leaves its parameters what they are, as outside of a capture; torch puts new ones in the place
    of fake ones, which no gradient reaches."""
    convert: Any = nn.Module._apply

    def apply(module: nn.Module, fn: Callable[[Any], Any], recurse: bool = True) -> nn.Module:
        held = [*module.parameters(recurse), *module.buffers(recurse)]
        with _disable_current_modes():
            alike = (torch.empty([0] * t.dim(), dtype=t.dtype, device=t.device) for t in held)
            idle = all(fn(t) is t for t in alike)
        made: nn.Module = module if idle else convert(module, fn, recurse)
        return made

    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = convert  # type: ignore[method-assign]


@contextlib.contextmanager
def taken_branches() -> Iterator[None]:
    """``torch.cond`` runs the branch that the example takes, as a branch of Python's does."""
    before = torch.cond

    def cond(
        pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()
    ) -> Any:
        return (true_fn if bool(pred) else false_fn)(*operands)

    torch.cond = cond
    try:
        yield
    finally:
        torch.cond = before


class _ToTorchAlone(type):
    def __instancecheck__(cls, x: object) -> bool:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        return isinstance(x, FakeTensor) and asking.partition(".")[0] == "torch"


class _Unknown(metaclass=_ToTorchAlone):
    """Stands for ``FakeTensor``."""
