"""Operators whose shapes and bounds come as tensors, in torch; ``why`` says what nobody knew
before."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import torch.nn.functional as F

from irprune.ops.onnx.functions.places import gather_at, gather_elements, pad_by


def dynamic_slice(x, starts, ends, axes=None, steps=None, *, why):
    axes = range(starts.numel()) if axes is None else axes.reshape(-1).tolist()
    steps = [1] * starts.numel() if steps is None else steps.reshape(-1).tolist()
    for d, start, end, step in zip(
        axes, starts.reshape(-1).tolist(), ends.reshape(-1).tolist(), steps, strict=True
    ):
        size = x.shape[d]
        at = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        x = x.index_select(d, torch.tensor(list(at), dtype=torch.int64, device=x.device))
    return x


def dynamic_pad(x, pads, value=None, axes=None, *, mode, why):
    dims = (
        list(range(x.dim())) if axes is None else [d % x.dim() for d in axes.reshape(-1).tolist()]
    )
    flat, pads = [0] * (2 * x.dim()), pads.reshape(-1).tolist()
    for k, d in enumerate(dims):
        at = 2 * (x.dim() - 1 - d)
        flat[at], flat[at + 1] = pads[k], pads[len(dims) + k]
    if mode != "constant":
        return pad_by(x, pad=flat, mode=mode)
    return F.pad(x, flat, value=0 if value is None else value.item())


def dynamic_range(start, end, step, *, why):
    count = torch.ceil((end - start).double() / step.double()).clamp(min=0)
    return start + torch.arange(int(count), dtype=start.dtype, device=start.device) * step


def dynamic_reshape(x, shape, *, allowzero, why):
    sizes = shape.reshape(-1).tolist()
    return x.reshape([x.shape[k] if s == 0 and not allowzero else s for k, s in enumerate(sizes)])


def dynamic_expand(x, shape, *, why):
    return x.expand(torch.broadcast_shapes(x.shape, shape.reshape(-1).tolist()))


def dynamic_tile(x, repeats, *, why):
    return x.repeat(repeats.reshape(-1).tolist())


def dynamic_full(shape, *, value, dtype, why):
    return dynamic_cast(
        torch.full(shape.reshape(-1).tolist(), value, device=shape.device), to=dtype, why=why
    )


def dynamic_one_hot(index, depth, values, *, axis, why):
    index = torch.where(index < 0, index + depth, index).unsqueeze(axis)
    shape = [1] * index.dim()
    shape[axis] = -1
    classes = torch.arange(int(depth), device=index.device).reshape(shape)
    return torch.where(index == classes, values[1], values[0])


def dynamic_topk(x, k, *, axis, largest, sorted, why):
    return tuple(x.topk(int(k), axis, bool(largest), bool(sorted)))


def dynamic_split(x, sizes=None, *, axis, count, why):
    return tuple(
        x.split(-(-x.shape[axis] // count) if sizes is None else sizes.reshape(-1).tolist(), axis)
    )


def dynamic_squeeze(x, axes=None, *, why):
    return x.squeeze() if axes is None else x.squeeze(axes.reshape(-1).tolist())


def dynamic_unsqueeze(x, axes, *, why):
    rank = x.dim() + axes.numel()
    for d in sorted(d % rank for d in axes.reshape(-1).tolist()):
        x = x.unsqueeze(d)
    return x


def dynamic_sum(x, axes=None, *, keepdims, noop_with_empty_axes, why):
    dims = [] if axes is None else axes.reshape(-1).tolist()
    if not dims and noop_with_empty_axes:
        return x
    return x.sum(dims or list(range(x.dim())), keepdim=bool(keepdims), dtype=x.dtype)


def passed_on(x, *, why):
    return x


def dynamic_matmul(a, b, *, why):
    return a @ b


def dynamic_transpose(x, *, perm, why):
    return x.permute(perm or list(range(x.dim()))[::-1])


def dynamic_cast_like(x, like, *, why):
    return x.to(like.dtype)


def dynamic_gather_elements(x, index, *, axis, why):
    return gather_elements(x, index, dim=axis)


def dynamic_concat(*xs, axis, why):
    return torch.cat(xs, axis)


def dynamic_gather(x, index, *, axis, why):
    return gather_at(x, index, dim=axis % x.dim())


def dynamic_shape(x, *, start, end, why):
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def dynamic_cast(x, *, to, why):
    return x.to(to)
