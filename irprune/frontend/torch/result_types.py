"""What operators return on fake tensors, for operands of types that have been seen before.

A result without values follows from the element types, sizes, strides and devices of the operands
and from the other arguments. Torch keeps such results too, but looks them up by a description of
each operand that costs more than all else of a recorded call. Kept are results that are new
tensors, views of the first operand, or the first operand that was written to; numbers and whatever
depends on values go to torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from irprune.frontend.torch.views import shares

__all__ = ["call", "fake_like"]

Key = tuple[Any, ...]
_MOST = 1 << 12
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
# torch's own, whatever tensors answer during a capture
_requires_grad = torch._C.TensorBase.requires_grad.__get__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class _Result:
    """A result: the first operand itself, a view of it from ``offset``, or a new tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int | None = None
    is_operand: bool = False

    def made(self, fake: FakeTensorMode, args: Sequence[Any]) -> Any:
        if self.is_operand:
            return args[0]
        with unset_fake_temporarily():
            if self.offset is None:
                blank = torch.empty_strided(
                    self.shape, self.stride, dtype=self.dtype, device="meta"
                )
            else:
                blank = torch.empty(0, dtype=self.dtype, device="meta")
                blank.set_(args[0].untyped_storage(), self.offset, self.shape, self.stride)
            return FakeTensor(fake, blank, self.device)


_KNOWN: dict[Key, _Result] = {}


def call(fake: FakeTensorMode, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the overload ``func`` returns for tensors of ``fake`` and plain data."""
    key = _key(func, args, kwargs)
    if key is None:
        return func(*args, **kwargs)
    known = _KNOWN.get(key)
    if known is not None:
        return known.made(fake, args)
    made = func(*args, **kwargs)
    found = _learnt(fake, func, args, kwargs, made, key)
    if found is not None:
        if len(_KNOWN) >= _MOST:
            _KNOWN.clear()
        _KNOWN[key] = found
    return made


def fake_like(fake: FakeTensorMode, like: torch.Tensor) -> FakeTensor:
    """A new tensor of ``fake``, made without the round through torch's dispatcher that a call under
    the mode takes."""
    made: FakeTensor = _Result(tuple(like.shape), like.stride(), like.dtype, like.device).made(
        fake, ()
    )
    return made


def _key(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Key | None:
    """All that the result follows from; None where an argument is neither a tensor of a plain kind
    nor plain data."""
    if func.namespace != "aten":
        return None
    parts: list[Any] = [func, torch.is_inference_mode_enabled(), torch.get_default_dtype()]
    if not _describe(args, parts):
        return None
    for name, x in kwargs.items():
        parts.append(name)
        if not _describe((x,), parts):
            return None
    return tuple(parts)


def _describe(args: Sequence[Any], parts: list[Any]) -> bool:
    """Add what there is to know of ``args`` to ``parts``; False where that is not all."""
    for x in args:
        kind = x.__class__
        if kind is FakeTensor:
            found = _type(x)
            if found is None:
                return False
            parts.append(found)
        elif kind in (list, tuple):
            parts += (kind, len(x))
            if not _describe(x, parts):
                return False
        elif kind in _PLAIN:
            parts += (kind, x)  # 1, 1.0 and True are equal
        else:
            return False
    return True


def _type(x: FakeTensor) -> Key | None:
    """All that results follow from of ``x``; None for one whose values are known or whose sizes are
    not, and for what is stored in another way than by strides."""
    if (
        x.constant is not None
        or x.layout is not torch.strided
        or _requires_grad(x)
        or x._has_symbolic_sizes_strides
        or x.is_conj()
        or x.is_neg()
    ):
        return None
    return (
        tuple(x.shape),
        x.stride(),
        x.dtype,
        x.fake_device,
        x.storage_offset(),
        x.is_inference(),
    )


def _learnt(
    fake: FakeTensorMode,
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    made: Any,
    key: Key,
) -> _Result | None:
    """How to make the like of ``made``, which ``func`` returned; None where that would not be
    it."""
    if made.__class__ is not FakeTensor or _type(made) is None:
        return None
    given = tuple(made.shape), made.stride(), made.dtype, made.device
    if func._schema.is_mutable:
        same = bool(args) and made is args[0] and _key(func, args, kwargs) == key
        return _Result(*given, is_operand=True) if same else None
    beside = [i for i, t in enumerate(_tensors((*args, *kwargs.values()))) if shares(made, t)]
    viewed = beside == [0] and args[0].__class__ is FakeTensor and made is not args[0]
    if beside and not viewed:
        return None
    found = _Result(*given, int(made.storage_offset()) if viewed else None)
    like = found.made(fake, args)
    keys = [torch._C._dispatch_key_set(x) for x in (like, made)]
    return found if _type(like) == _type(made) and keys[0] == keys[1] else None


def _tensors(args: Sequence[Any]) -> Iterator[torch.Tensor]:
    for x in args:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from _tensors(x)
