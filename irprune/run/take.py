"""The kept indices of a weight and the elements at them, of numpy arrays and of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from irprune.ir.graph import Value
from irprune.ir.selection import Indices, Selection
from irprune.ops.arrays import is_tensor

__all__ = ["kept_indices", "take"]

_SHARED = ("torch.float32", "torch.float64", "torch.float16", "torch.int64", "torch.int32")
_INTEGERS = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}
_BLOCK = 1 << 16  # elements


def kept_indices(value: Value, kept: Selection) -> list[Indices | None]:
    """For each dimension of ``value`` the kept indices in terms of the original, None where all
    are.

    Where they depend on another dimension they have as many dimensions as ``value``, to broadcast
    against what is kept of it: for the weight [g o, i, k, k] of a grouped convolution whose inputs
    i are chosen in each group, [None or kept g o, [kept g o, kept i, 1, 1], None, None]."""
    axes = value.axes or ()
    found: dict[int, Indices | None] = {}

    def along(dim: int) -> Indices | None:
        if dim not in found:
            a = axes[dim]
            found[dim] = (
                None
                if not kept.changes(a)
                else within(dim)
                if kept.table(a).outer
                else kept.kept(a)
            )
        return found[dim]

    def within(dim: int) -> Indices:
        mask = kept.present(axes, dim)
        at = []  # for every dimension where in the mask what is kept lies
        for d, n in enumerate(mask.shape):
            index = along(d) if d != dim and n != 1 else np.zeros(1, dtype=np.int64)
            at.append(_spread(np.arange(n) if index is None else index, d, len(axes)))
        # Of size 1 along dim, and all of dim behind
        rows = np.moveaxis(mask, dim, -1)[(*at[:dim], *at[dim + 1 :])]
        chosen: Indices = np.nonzero(rows)[-1].reshape(*rows.shape[:-1], -1)
        return chosen.swapaxes(dim, -1)[..., 0]

    return [along(dim) for dim in range(len(axes))]


def _spread(index: Indices, dim: int, rank: int) -> Indices:
    """``index`` as an array of ``rank`` dimensions."""
    return (
        index
        if index.ndim == rank > 1
        else index.reshape([-1 if d == dim else 1 for d in range(rank)])
    )


def take(array: Any, indices: Sequence[Indices | None]) -> Any:
    """``array`` (torch or numpy) at ``indices`` (see ``kept_indices``) along each dimension; a
    copy."""
    if all(index is None for index in indices):
        return array
    if array.ndim > 1 and (
        tied := [d for d, index in enumerate(indices) if index is not None and index.ndim > 1]
    ):
        return _take_tied(array, indices, tied)
    if not is_tensor(array):
        return _take(array, indices)
    import torch

    array = array.detach()
    if (
        array.device.type == "cpu"
        and array.layout is torch.strided
        and array.element_size() in _INTEGERS
    ):
        # numpy copies runs where torch copies elements, and waits for no other threads; what it has
        # no name for it takes as bits
        if str(array.dtype) in _SHARED:
            return torch.from_numpy(_take(array.numpy(), indices))
        raw = array.view(getattr(torch, _INTEGERS[array.element_size()])).numpy()
        return torch.from_numpy(_take(raw, indices)).view(array.dtype)
    for dim, index in enumerate(indices):
        if index is not None:
            array = array.index_select(dim, torch.from_numpy(index).to(array.device))
    return array


def _take(array: Any, indices: Sequence[Indices | None]) -> Any:
    cut = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    rows = indices[0]
    if rows is None or len(cut) == 1 or array.size <= _BLOCK:
        for dim, index in cut:
            array = array.take(index, axis=dim)
        return array
    *middle, (last, columns) = cut[1:]
    made = np.empty(
        [n if i is None else len(i) for n, i in zip(array.shape, indices, strict=True)],
        dtype=array.dtype,
    )
    step = max(1, _BLOCK * array.shape[0] // array.size)
    for at in range(0, len(rows), step):  # what is taken between the dimensions stays in cache
        block = array.take(rows[at : at + step], axis=0)
        for dim, index in middle:
            block = block.take(index, axis=dim)
        block.take(columns, axis=last, out=made[at : at + step], mode="clip")
    return made


def _take_tied(array: Any, indices: Sequence[Indices | None], tied: Sequence[int]) -> Any:
    """Where the indices along the dimensions ``tied`` depend on others, all from the first to the
    last of these are taken as one."""
    shape, rank = tuple(array.shape), array.ndim
    bound = [d for d in range(rank) if d in tied or any(indices[t].shape[d] != 1 for t in tied)]  # type: ignore[union-attr]
    lo, hi = bound[0], bound[-1] + 1
    flat: Any = 0
    for d in range(lo, hi):
        index = indices[d]
        flat = flat * shape[d] + _spread(np.arange(shape[d]) if index is None else index, d, rank)
    flat = flat.reshape(flat.shape[lo:hi])
    made = take(
        array.reshape(*shape[:lo], -1, *shape[hi:]),
        [*indices[:lo], flat.reshape(-1), *indices[hi:]],
    )
    return made.reshape(*made.shape[:lo], *flat.shape, *made.shape[lo + 1 :])
