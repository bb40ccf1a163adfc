"""Operators of ONNX that look at whole dimensions, or give as many results as there are, in
torch."""

# mypy: ignore-errors
from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def nonzero_places(x):
    return (
        torch.nonzero(x).mT
        if x.dim()
        else torch.zeros(0, int(x != 0), dtype=torch.int64, device=x.device)
    )


def compress(x, condition, *, axis):
    x = x.reshape(-1) if axis is None else x
    dim = 0 if axis is None else axis
    return x.index_select(dim, torch.nonzero(condition.reshape(-1)).reshape(-1))


def unique(x, *, axis, sorted):
    flat = x.reshape(-1) if axis is None else x
    dim = 0 if axis is None else axis
    values, inverse, counts = torch.unique(flat, return_inverse=True, return_counts=True, dim=dim)
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, places, "amin")
    if not sorted:
        order = first.argsort()
        values, counts, first = values.index_select(dim, order), counts[order], first[order]
        inverse = order.argsort()[inverse]
    return values, first, inverse, counts


def non_max_suppression(boxes, scores, most=None, overlap=None, least=None, *, center_point_box):
    """Places ``(batch, class, box)`` of the boxes that no better one of their class covers."""
    if center_point_box:
        x, y, w, h = boxes.unbind(-1)
        boxes = torch.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
    low, high = (
        torch.minimum(boxes[..., :2], boxes[..., 2:]),
        torch.maximum(boxes[..., :2], boxes[..., 2:]),
    )
    area = (high - low).prod(-1)
    limit = 0.0 if overlap is None else float(overlap)
    found = []
    for b in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            kept = []
            for k in scores[b, c].argsort(descending=True, stable=True).tolist():
                if len(kept) >= (0 if most is None else int(most)):
                    break
                if least is not None and scores[b, c, k] <= least.reshape([]):
                    continue
                sides = (
                    torch.minimum(high[b, kept], high[b, k])
                    - torch.maximum(low[b, kept], low[b, k])
                ).clamp(min=0)
                both = sides.prod(-1)
                if not kept or bool((both / (area[b, kept] + area[b, k] - both) <= limit).all()):
                    kept.append(k)
            found += [[b, c, k] for k in kept]
    return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def max_unpool(x, places, shape=None, *, kernel_shape, pads, strides):
    n = len(kernel_shape)
    strides, pads = strides or [1] * n, pads or [0] * (2 * n)
    sizes = [
        (s - 1) * t + k - pads[i] - pads[n + i]
        for i, (s, t, k) in enumerate(zip(x.shape[2:], strides, kernel_shape, strict=True))
    ]
    y = torch.zeros(math.prod([*x.shape[:2], *sizes]), dtype=x.dtype, device=x.device)
    y = y.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(*x.shape[:2], *sizes)
    if shape is None or shape.tolist() == list(y.shape):
        return y
    return F.pad(
        y,
        [p for s, w in zip(y.shape[:1:-1], shape.tolist()[:1:-1], strict=True) for p in (0, w - s)],
    )


def determinant(x):
    return torch.linalg.det(x)


def fourier(x, length=None, place=None, *, axis, inverse, onesided):
    """The last dimension holds real and imaginary parts; ``axis`` was an attribute, then an
    input."""
    dim = int(place) if place is not None else axis
    dim = dim + x.dim() if dim < 0 else dim
    n = x.shape[dim] if length is None else int(length)
    if inverse and onesided:
        n = 2 * (n - 1) if length is None else n
        whole = torch.view_as_complex(x.contiguous())
        return torch.fft.irfft(whole, n, dim)[..., None]
    whole = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0] + 0j
    made = torch.fft.ifft(whole, n, dim) if inverse else torch.fft.fft(whole, n, dim)
    made = made.narrow(dim, 0, n // 2 + 1) if onesided else made
    return torch.view_as_real(made)


def short_time_fourier(x, step, window=None, length=None, *, onesided):
    size = int(length) if length is not None else window.shape[0]
    frames = (
        x[..., 0].unfold(1, size, int(step))
        if x.dim() == 3 and x.shape[-1] == 1
        else x.squeeze(-1).unfold(1, size, int(step))
    )
    frames = frames if window is None else frames * window
    made = torch.fft.rfft(frames, dim=-1) if onesided else torch.fft.fft(frames, dim=-1)
    return torch.view_as_real(made)


def mel_weight_matrix(bins, length, rate, lowest, highest, *, dtype):
    bins, low, high = int(bins), float(lowest), float(highest)
    count = int(length) // 2 + 1
    ends = 2595 * torch.log10(1 + torch.tensor([low, high], dtype=torch.float64) / 700)
    mel = ends[0] + torch.arange(bins + 2, dtype=torch.float64) * (ends[1] - ends[0]) / (bins + 2)
    at = (
        torch.floor((int(length) + 1) * (700 * (10 ** (mel / 2595) - 1)) / int(rate))
        .long()
        .tolist()
    )
    y = torch.zeros(count, bins)
    for k in range(bins):
        first, centre, last = at[k], at[k + 1], at[k + 2]
        if centre == first:
            y[centre, k] = 1
        else:
            for j in range(first, centre + 1):
                y[j, k] = (j - first) / (centre - first)
        for j in range(centre, last):
            y[j, k] = (last - j) / (last - centre) if last > centre else y[j, k]
    return y.to(dtype)


def bit_cast(x, *, dtype):
    return x.view(dtype)


def hardmax(x, *, dims):
    flat = x.flatten(dims[0]) if len(dims) > 1 else x.movedim(dims[0], -1)
    best = torch.zeros_like(flat).scatter(-1, flat.argmax(-1, keepdim=True), 1)
    return best.reshape(x.shape) if len(dims) > 1 else best.movedim(-1, dims[0])


def reverse_sequence(x, lengths, *, dims):
    time, batch = dims
    at = torch.arange(x.shape[time], device=x.device)
    n = lengths[:, None]
    index = torch.where(at < n, n - 1 - at, at)  # batch × time
    y = x.movedim((batch, time), (0, 1))
    index = index.reshape(*index.shape, *[1] * (y.dim() - 2)).expand(y.shape)
    return y.gather(1, index).movedim((0, 1), (batch, time))


def cache_scatter(past, update, at=None, *, dim, mode):
    start = (
        torch.zeros(past.shape[0], dtype=torch.int64, device=past.device)
        if at is None
        else at.long()
    )
    places = start[:, None] + torch.arange(update.shape[dim], device=past.device)
    places = places % past.shape[dim] if mode == "circular" else places
    shape = [past.shape[0], *[1] * (past.dim() - 1)]
    shape[dim] = update.shape[dim]
    return past.scatter(dim, places.reshape(shape).expand(update.shape), update)


def roi_align(x, boxes, batch, *, size, scale, ratio, mode, half):
    """Bilinear samples of each bin, averaged or the largest."""
    made = []
    for box, b in zip(boxes * scale - (0.5 if half else 0.0), batch.tolist(), strict=True):
        x1, y1, x2, y2 = box.tolist()
        w, h = x2 - x1, y2 - y1
        if not half:
            w, h = max(w, 1.0), max(h, 1.0)
        rows, columns = (
            ratio if ratio > 0 else math.ceil(s / n) for s, n in zip((h, w), size, strict=True)
        )
        sides = []
        for start, length, bins, count, limit in (
            (y1, h, size[0], rows, x.shape[2]),
            (x1, w, size[1], columns, x.shape[3]),
        ):
            at = start + (
                torch.arange(bins * count, dtype=x.dtype, device=x.device) + 0.5
            ) * length / (bins * count)
            outside = (at < -1) | (at > limit)
            at = at.clamp(0, limit - 1)
            low = at.floor().long()
            sides.append((low, (low + 1).clamp(max=limit - 1), at - low, outside))
        (yl, yh, fy, oy), (xl, xh, fx, ox) = sides
        image = x[b]
        rest = (1 - fy)[:, None]
        corners = [
            (yl, xl, rest * (1 - fx)),
            (yl, xh, rest * fx),
            (yh, xl, fy[:, None] * (1 - fx)),
            (yh, xh, fy[:, None] * fx),
        ]
        inside = ~(oy[:, None] | ox)
        parts = [image[:, r][:, :, c] * f * inside for r, c, f in corners]
        if mode == "avg":
            made.append(
                sum(parts)
                .unflatten(1, (size[0], rows))
                .unflatten(3, (size[1], columns))
                .mean((2, 4))
            )
        else:
            most = torch.stack(parts).amax(0)
            made.append(
                most.unflatten(1, (size[0], rows)).unflatten(3, (size[1], columns)).amax((2, 4))
            )
    return torch.stack(made)


def col2im_nd(x, *, image, block, dilation, padding, stride):
    n = len(image)
    wide = [s + padding[i] + padding[n + i] for i, s in enumerate(image)]
    counts = [
        (w - d * (k - 1) - 1) // s + 1
        for w, d, k, s in zip(wide, dilation, block, stride, strict=True)
    ]
    places = torch.zeros([1] * (2 * n), dtype=torch.int64, device=x.device)
    for i in range(n):
        at = (
            torch.arange(block[i], device=x.device)[:, None] * dilation[i]
            + torch.arange(counts[i], device=x.device) * stride[i]
        )
        shape = [1] * (2 * n)
        shape[i], shape[n + i] = at.shape
        places = places * wide[i] + at.reshape(shape)
    y = torch.zeros(
        x.shape[0], x.shape[1] // math.prod(block), math.prod(wide), dtype=x.dtype, device=x.device
    )
    y = y.index_add(2, places.reshape(-1), x.reshape(*y.shape[:2], -1)).reshape(*y.shape[:2], *wide)
    return F.pad(y, [-p for i in range(n - 1, -1, -1) for p in (padding[i], padding[n + i])])
