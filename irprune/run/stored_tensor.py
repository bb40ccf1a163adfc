"""Tensors whose values lie somewhere else, in a file for example, and are read when an operator
uses them: one handle for models that are larger than memory.

Such a tensor stands in a module as a parameter does. Whatever is computed from it reads the values,
uses them and drops them, so that a call of the module holds what one operator takes. To detach or
to convert it reads nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from irprune.ops.torch.dispatched import CONVERT, is_handle

__all__ = [
    "StoredTensor",
    "as_parameter_like",
    "is_stored",
    "module_device",
    "moved",
    "read",
    "read_whole",
    "state_bytes",
]


class StoredTensor(torch.Tensor):
    """A tensor of a known shape whose values ``read`` gives each time that they are used.

    Args:
        read: Gives the values, as a tensor that the caller may keep.
        shape: Its shape.
        dtype: Its element type.
        device: Where ``read`` puts it.
    """

    read: Callable[[], torch.Tensor]

    @staticmethod
    def __new__(
        cls,
        read: Callable[[], torch.Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> StoredTensor:
        made: StoredTensor = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=device or torch.device("cpu")
        )
        made.read = read
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, StoredTensor):
            if is_handle(func):
                return StoredTensor(first.read, first.shape, first.dtype, first.device)
            if func is CONVERT:
                return first.converted(kwargs.get("dtype"), kwargs.get("device"))
            if func._schema.is_mutable:
                raise RuntimeError("a tensor that is read from a file cannot be written to")
        return func(*_read_all(args), **_read_all(kwargs))

    def converted(
        self, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> StoredTensor:
        """The same values in another element type or on another device, read when they are
        used."""
        dtype, device = dtype or self.dtype, device or self.device
        return StoredTensor(partial(_as, self.read, dtype, device), self.shape, dtype, device)

    @property  # type: ignore[override]
    def data(self) -> StoredTensor:
        """A detached handle to the same values."""
        return self.detach()  # type: ignore[return-value]

    @data.setter
    def data(self, value: Any) -> None:
        raise RuntimeError("a tensor that is read from a file cannot be written to")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"StoredTensor({list(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = as_parameter_like(self, StoredTensor(self.read, self.shape, self.dtype, self.device))
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Where it is pickled its values are."""
        return as_parameter_like(self, self.read()).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def is_stored(model: nn.Module) -> bool:
    """Whether a parameter or buffer of ``model`` is read when it is used."""
    return any(isinstance(t, StoredTensor) for t in _tensors(model))


def module_device(model: nn.Module) -> torch.device:
    """Where the parameters and buffers of ``model`` lie; the CPU where it has none."""
    return next((t.device for t in _tensors(model)), torch.device("cpu"))


def state_bytes(model: nn.Module) -> int:
    """What the parameters and buffers of ``model`` take, read or not."""
    return sum(t.nbytes for t in _tensors(model))


def read(tensor: torch.Tensor) -> torch.Tensor:
    """The values of ``tensor``: read, where it is a handle; else it as it is."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


def read_whole(model: nn.Module) -> nn.Module:
    """``model`` itself, with the values of all its tensors in memory."""
    return _replaced(model, lambda t: t.read())


def moved(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of ``model`` on ``device`` with its floating-point tensors in ``dtype``; what is read
    when it is used still is."""
    made = copy.deepcopy(model)

    def convert(t: torch.Tensor) -> torch.Tensor:
        return t.to(device, dtype if t.is_floating_point() and dtype is not None else t.dtype)

    return _replaced(made, convert, every=True)


def _replaced(
    model: nn.Module, make: Callable[[Any], torch.Tensor], every: bool = False
) -> nn.Module:
    """``model`` with what ``make`` gives in the place of its stored tensors, or of ``every`` one;
    what is tied stays tied."""
    done: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                if tensor is None or not (every or isinstance(tensor, StoredTensor)):
                    continue
                if id(tensor) not in done:
                    done[id(tensor)] = as_parameter_like(tensor, make(tensor.detach()))
                place[name] = done[id(tensor)]  # type: ignore[assignment]
    return model


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def as_parameter_like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """``new``, a parameter where ``old`` is one."""
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _read_all(tree: Any) -> Any:
    return pytree.tree_map(lambda x: x.read() if isinstance(x, StoredTensor) else x, tree)


def _as(read: Callable[[], torch.Tensor], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return read().to(device, dtype)
