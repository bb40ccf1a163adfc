"""Pooling and resampling of ONNX in torch."""

# mypy: ignore-errors
from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def pool_windows(x, value, kernel, stride, dilation, begins, ends, ceil):
    """The windows of ``x`` as [n, c, places..., positions in the window], padded with ``value``."""
    n = len(kernel)
    grown = list(ends)
    if ceil:
        for i in range(n):
            span = x.shape[2 + i] + begins[i] + ends[i] - dilation[i] * (kernel[i] - 1) - 1
            count = -(-span // stride[i]) + 1
            if (count - 1) * stride[i] >= x.shape[2 + i] + begins[i]:
                count -= 1
            grown[i] += max(0, (count - 1) * stride[i] - span)
    flat = [p for i in range(n - 1, -1, -1) for p in (begins[i], grown[i])]
    y = F.pad(x, flat, value=value)
    for i in range(n):
        y = y.unfold(2 + i, dilation[i] * (kernel[i] - 1) + 1, stride[i])[..., :: dilation[i]]
    return y.flatten(-n)


def max_pool_padded(x, *, kernel, stride, dilation, begins, ends, ceil, indices, storage_order):
    floating = x.dtype.is_floating_point
    low = float("-inf") if floating else torch.iinfo(x.dtype).min
    y, at = pool_windows(x, low, kernel, stride, dilation, begins, ends, ceil).max(-1)
    if not indices:
        return y
    n, c, *sizes = x.shape
    places = torch.arange(math.prod(sizes), device=x.device).reshape(sizes)
    if storage_order:
        places = (
            torch.arange(math.prod(sizes), device=x.device)
            .reshape(sizes[::-1])
            .permute(*range(len(sizes))[::-1])
        )
    places = pool_windows(
        places.expand(1, 1, *sizes).to(torch.float64),
        -1.0,
        kernel,
        stride,
        dilation,
        begins,
        ends,
        ceil,
    )
    found = places.expand(n, c, *places.shape[2:]).gather(-1, at[..., None]).squeeze(-1).long()
    offset = torch.arange(n * c, device=x.device).reshape(n, c, *[1] * len(sizes)) * math.prod(
        sizes
    )
    return y, found + offset


def avg_pool_padded(x, *, kernel, stride, dilation, begins, ends, ceil, count_include_pad):
    total = pool_windows(x, 0.0, kernel, stride, dilation, begins, ends, ceil).sum(-1)
    ones = torch.ones_like(x[:1, :1])
    if count_include_pad:
        n = len(kernel)
        ones = F.pad(
            ones, [p for i in range(n - 1, -1, -1) for p in (begins[i], ends[i])], value=1.0
        )
        none = [0] * n
        count = pool_windows(ones, 0.0, kernel, stride, dilation, none, none, ceil).sum(-1)
        # A window that begins in the padding is not taken
        count = count[(..., *(slice(s) for s in total.shape[2:]))]
    else:
        count = pool_windows(ones, 0.0, kernel, stride, dilation, begins, ends, ceil).sum(-1)
    return total / count


def lp_pool(x, *, kernel, stride, dilation, begins, ends, ceil, p):
    return (pool_windows(x, 0.0, kernel, stride, dilation, begins, ends, ceil).abs() ** p).sum(
        -1
    ) ** (1.0 / p)


def resize(
    x,
    *,
    axes,
    sizes,
    scales,
    mode,
    coordinates,
    nearest,
    cubic,
    exclude_outside,
    antialias,
    extrapolation,
    roi,
):
    """One dimension after the other: every way of resizing that ONNX knows is separable."""
    for k, d in enumerate(axes):
        before, after = x.shape[d], sizes[k]
        scale = scales[k] if scales is not None else after / before
        at = torch.arange(after, device=x.device, dtype=torch.float64)
        outside = None
        if coordinates == "half_pixel":
            place = (at + 0.5) / scale - 0.5
        elif coordinates == "half_pixel_symmetric":
            adjustment = after / (scale * before)
            place = before / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
        elif coordinates == "pytorch_half_pixel":
            place = (at + 0.5) / scale - 0.5 if after > 1 else torch.zeros_like(at)
        elif coordinates == "align_corners":
            place = (
                at * (before - 1) / (scale * before - 1)
                if scale * before != 1
                else torch.zeros_like(at)
            )
        elif coordinates == "tf_crop_and_resize":
            first, last = roi[k]
            place = (
                first * (before - 1) + at * (last - first) * (before - 1) / (after - 1)
                if after > 1
                else 0.5 * (first + last) * (before - 1) + 0 * at
            )
            outside = (place < 0) | (place > before - 1)
        elif coordinates == "tf_half_pixel_for_nn":
            place = (at + 0.5) / scale
        else:
            place = at / scale
        x = x.movedim(d, -1)
        if mode == "nearest":
            pick = {
                "round_prefer_floor": torch.ceil(place - 0.5),
                "round_prefer_ceil": torch.floor(place + 0.5),
                "floor": torch.floor(place),
                "ceil": torch.ceil(place),
            }[nearest]
            y = x[..., pick.clamp(0, before - 1).long()]
        else:
            wide = min(scale, 1.0) if antialias else 1.0
            reach = 1 if mode == "linear" else 2
            count = math.ceil(reach / wide) * 2 + 1
            base = (
                torch.floor(place)[:, None]
                + torch.arange(count, device=x.device, dtype=torch.float64)
                - count // 2
            )
            gap = ((base - place[:, None]) * wide).abs()
            if mode == "linear":
                weight = (1 - gap).clamp(min=0)
            else:
                a = cubic
                near = ((a + 2) * gap - (a + 3)) * gap * gap + 1
                far = ((a * gap - 5 * a) * gap + 8 * a) * gap - 4 * a
                weight = torch.where(
                    gap <= 1, near, torch.where(gap < 2, far, torch.zeros_like(gap))
                )
            if exclude_outside:
                weight = torch.where(
                    (base < 0) | (base > before - 1), torch.zeros_like(weight), weight
                )
            weight = weight / weight.sum(-1, keepdim=True)
            y = (x[..., base.clamp(0, before - 1).long()] * weight.to(x.dtype)).sum(-1)
        if outside is not None:
            y = torch.where(
                outside, torch.full((), extrapolation, dtype=y.dtype, device=y.device), y
            )
        x = y.movedim(-1, d)
    return x
