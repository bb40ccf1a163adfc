"""The arrays that weights load, which are numpy's or torch's: what one is, and one as the other.

Whoever needs the numbers of a weight asks here; torch is imported only where an array is torch's or
is to become so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from irprune.ir.dtype import FROM_NUMPY, is_borrowed, numpy_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["as_numpy", "as_tensor", "is_meta", "is_tensor", "like"]


def is_tensor(array: Any) -> TypeGuard[torch.Tensor]:
    """Whether an array of a weight is torch's; else it is numpy's."""
    return not isinstance(array, (np.ndarray, np.generic))


def is_meta(array: Any) -> bool:
    """Whether an array has a shape and no values: a tensor on the ``meta`` device."""
    return is_tensor(array) and array.is_meta


def as_numpy(array: Any) -> NDArray[Any]:
    """``array`` in numpy, of the same element type (``ml_dtypes``' where numpy has none), without a
    copy where it can be; a tensor is detached and comes to the CPU."""
    if not is_tensor(array):
        return np.asarray(array)
    import torch

    from irprune.ops.dtypes import FROM_TORCH

    plain = array.detach().cpu().resolve_conj().resolve_neg()
    kind = numpy_dtype(FROM_TORCH[plain.dtype])
    if is_borrowed(kind):
        bits = plain.contiguous().view(torch.int16 if kind.itemsize == 2 else torch.uint8).numpy()
        return bits.view(kind)
    made: NDArray[Any] = plain.numpy()
    return made


def as_tensor(array: Any) -> torch.Tensor:
    """``array`` as a detached tensor of the same element type, where it lies, without a copy where
    it can be."""
    if is_tensor(array):
        return array.detach()
    import torch

    from irprune.ops.dtypes import TO_TORCH

    plain = np.asarray(array)
    if is_borrowed(plain.dtype):
        bits = plain.view("i2" if plain.dtype.itemsize == 2 else "u1").copy()
        return torch.as_tensor(bits).view(TO_TORCH[FROM_NUMPY[plain.dtype.name]])
    # torch has no read-only tensors
    return torch.as_tensor(plain if plain.flags.writeable else plain.copy())


def like(array: Any, numbers: NDArray[Any]) -> Any:
    """``numbers`` as an array of the library, the element type and the device of ``array``."""
    return array.new_tensor(numbers) if is_tensor(array) else numbers.astype(array.dtype)


def checksum(array: Any) -> bytes:
    """The sum of the bytes of a numpy array or tensor, eight at a time, and a few of them."""
    if is_tensor(array):
        import torch

        array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    raw = np.ascontiguousarray(as_numpy(array)).reshape(-1).view(np.uint8)
    whole = len(raw) // 8 * 8
    with np.errstate(over="ignore"):
        total = raw[:whole].view(np.uint64).sum(dtype=np.uint64)
    some = raw[:: max(1, len(raw) // 4096)]
    return bytes(total.tobytes() + some.tobytes() + raw[whole:].tobytes())
