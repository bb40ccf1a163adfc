"""Products and convolutions of ONNX in torch."""

# mypy: ignore-errors
from __future__ import annotations

import torch


def gemm(a, b, c=None, *, trans_a, trans_b, alpha, beta):
    y = (a.mT if trans_a else a) @ (b.mT if trans_b else b)
    y = y if alpha == 1 else alpha * y
    return y if c is None else y + (c if beta == 1 else beta * c)


def deform_conv(
    x, w, offset, mask=None, b=None, *, groups, offset_groups, stride, begins, dilation
):
    """Every tap reads between four pixels, zeros outside of the image."""
    n, c, height, width = x.shape
    kh, kw = w.shape[2:]
    oh, ow = offset.shape[2:]
    moved = offset.reshape(n, offset_groups, kh * kw, 2, oh, ow)
    image = x.reshape(n, offset_groups, c // offset_groups, height * width)
    taps = torch.arange(kh * kw, device=x.device).reshape(-1, 1, 1)
    rows = (
        torch.arange(oh, device=x.device)[:, None] * stride[0]
        - begins[0]
        + taps // kw * dilation[0]
        + moved[:, :, :, 0]
    )
    columns = (
        torch.arange(ow, device=x.device) * stride[1]
        - begins[1]
        + taps % kw * dilation[1]
        + moved[:, :, :, 1]
    )
    top, left = rows.floor(), columns.floor()
    read = 0
    for i in (0, 1):
        for j in (0, 1):
            r, k = top + i, left + j
            share = (1 - (rows - r).abs()) * (1 - (columns - k).abs())
            inside = (r >= 0) & (r < height) & (k >= 0) & (k < width)
            at = (
                (r.clamp(0, height - 1) * width + k.clamp(0, width - 1))
                .long()
                .flatten(2)[:, :, None]
            )
            pixels = image.gather(3, at.expand(-1, -1, image.shape[2], -1)).unflatten(
                3, rows.shape[2:]
            )
            read = read + pixels * (share * inside)[:, :, None]
    if mask is not None:
        read = read * mask.reshape(n, offset_groups, 1, kh * kw, oh, ow)
    read = read.reshape(n, groups, c // groups, kh * kw, oh, ow)
    y = torch.einsum(
        "ngckhw,gock->ngohw", read, w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
    ).flatten(1, 2)
    return y if b is None else y + b.reshape(1, -1, 1, 1)
