"""Products and convolutions of ONNX in torch."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import torch.nn.functional as F


def gemm(a, b, c=None, *, trans_a, trans_b, alpha, beta):
    y = (a.mT if trans_a else a) @ (b.mT if trans_b else b)
    y = y if alpha == 1 else alpha * y
    return y if c is None else y + (c if beta == 1 else beta * c)


def fused_matmul(a, b, *, trans_a, trans_b, alpha):
    return alpha * ((a.mT if trans_a else a) @ (b.mT if trans_b else b))


def conv_padded(x, w, b=None, *, stride, padding, dilation, groups):
    n = w.dim() - 2
    conv = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    return conv(F.pad(x, padding), w, b, stride, 0, dilation, groups)


def conv_fused(
    x, w, b=None, added=None, *, stride, padding, dilation, groups, activation, parameters
):
    y = conv_padded(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return activated(y if added is None else y + added, activation, parameters)


def gemm_fused(a, b, c=None, *, trans_a, trans_b, alpha, beta, activation, parameters):
    return activated(
        gemm(a, b, c, trans_a=trans_a, trans_b=trans_b, alpha=alpha, beta=beta),
        activation,
        parameters,
    )


def activated(y, activation, parameters):
    if activation == "Relu":
        return F.relu(y)
    if activation == "LeakyRelu":
        return F.leaky_relu(y, parameters[0] if parameters else 0.01)
    if activation == "HardSigmoid":
        alpha, beta = parameters or (0.2, 0.5)
        return torch.clamp(alpha * y + beta, 0, 1)
    if activation == "Clip":
        return torch.clamp(y, *parameters)
    return {"Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "": lambda t: t}[activation](y)


def conv_transpose_padded(x, w, b=None, *, stride, padding, output_padding, groups, dilation):
    n = w.dim() - 2
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    y = conv(x, w, b, stride, 0, 0, groups, dilation)
    end = list(reversed(output_padding))
    crop = [v for i in range(n) for v in (-padding[2 * i], end[i] - padding[2 * i + 1])]
    y = F.pad(y, crop)
    if b is not None and any(v > 0 for v in crop):
        inside = F.pad(torch.ones_like(y[:1, :1]), [0] * 2 * n)
        for i in range(n):
            d = y.dim() - 1 - i
            grown = max(0, crop[2 * i + 1])
            if grown:
                inside.narrow(d, y.shape[d] - grown, grown).zero_()
        y = torch.where(inside > 0, y, b.reshape(1, -1, *[1] * n))
    return y


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
