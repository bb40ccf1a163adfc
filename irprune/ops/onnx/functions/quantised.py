"""Quantised operators of ONNX in torch."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import torch.nn.functional as F


def spread_scale(scale, x, dim, block):
    """A scale or zero point that broadcasts against ``x``."""
    if scale.dim() == 0 or scale.numel() == 1:
        return scale.reshape([])
    if scale.dim() == 1:
        return scale.reshape([-1 if k == dim else 1 for k in range(x.dim())])
    return scale.repeat_interleave(block, dim).narrow(dim, 0, x.shape[dim])


def quantize_linear(x, scale, zero=None, *, dim, block, dtype):
    info = torch.iinfo(dtype)
    y = torch.round(x.float() / spread_scale(scale, x, dim, block).float())
    y = y if zero is None else y + spread_scale(zero.to(torch.int32), x, dim, block)
    return y.clamp(info.min, info.max).to(torch.int32).to(dtype)


def dequantize_linear(x, scale, zero=None, *, dim, block, dtype):
    y = x.to(torch.int32)
    y = y if zero is None else y - spread_scale(zero.to(torch.int32), x, dim, block)
    y = y.to(scale.dtype) * spread_scale(scale, x, dim, block)
    return y.to(dtype)


def dynamic_quantize(x):
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, torch.ones_like(low))
    zero = torch.round(-low / scale).clamp(0, 255)
    return (
        (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8),
        scale,
        zero.to(torch.uint8),
    )


def matmul_integer(a, b, a_zero=None, b_zero=None, *, places):
    x, y = a.to(torch.float64), b.to(torch.float64)
    if a_zero is not None:
        z = a_zero.to(torch.float64)
        x = x - (z[:, None] if z.dim() == 1 and z.numel() > 1 else z)
    y = y if b_zero is None else y - b_zero.to(torch.float64)
    return (x @ y).to(torch.int32)


def qlinear_matmul(a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero, *, places):
    def rows(t):
        return t[:, None] if t.dim() == 1 and t.numel() > 1 else t

    x = (a.to(torch.float64) - rows(a_zero.to(torch.float64))) * rows(a_scale.to(torch.float64))
    w = (b.to(torch.float64) - b_zero.to(torch.float64)) * b_scale.to(torch.float64)
    info = torch.iinfo(y_zero.dtype)
    y = torch.round((x @ w) / y_scale.to(torch.float64)) + y_zero.to(torch.float64)
    return y.clamp(info.min, info.max).to(torch.int32).to(y_zero.dtype)


def conv_integer(x, w, x_zero=None, w_zero=None, *, stride, padding, dilation, groups, places):
    n = w.dim() - 2
    a, b = x.to(torch.float64), w.to(torch.float64)
    a = a if x_zero is None else a - x_zero.to(torch.float64).reshape([])
    if w_zero is not None:
        b = b - w_zero.to(torch.float64).reshape([-1, *[1] * (n + 1)] if w_zero.numel() > 1 else [])
    return (F.conv1d, F.conv2d, F.conv3d)[n - 1](
        F.pad(a, padding), b, None, stride, 0, dilation, groups
    ).to(torch.int32)


def qlinear_conv(
    x,
    x_scale,
    x_zero,
    w,
    w_scale,
    w_zero,
    y_scale,
    y_zero,
    b=None,
    *,
    stride,
    padding,
    dilation,
    groups,
    places,
):
    n = w.dim() - 2
    per = [-1, *[1] * (n + 1)]
    a = x.to(torch.float64) - x_zero.to(torch.float64).reshape([])
    k = w.to(torch.float64) - w_zero.to(torch.float64).reshape(per if w_zero.numel() > 1 else [])
    y = (F.conv1d, F.conv2d, F.conv3d)[n - 1](
        F.pad(a, padding), k, None, stride, 0, dilation, groups
    )
    y = y if b is None else y + b.to(torch.float64).reshape([-1, *[1] * n])
    scale = x_scale.to(torch.float64).reshape([]) * w_scale.to(torch.float64).reshape(
        [-1, *[1] * n] if w_scale.numel() > 1 else []
    )
    info = torch.iinfo(y_zero.dtype)
    y = torch.round(y * scale / y_scale.to(torch.float64).reshape([])) + y_zero.to(
        torch.float64
    ).reshape([])
    return y.clamp(info.min, info.max).to(torch.int32).to(y_zero.dtype)


def unrounded(x, scale, zero):
    """What an integer with one scale stands for."""
    return (x.float() - (0 if zero is None else zero.float().reshape([]))) * scale.reshape([])


def rounded(y, scale, zero, like):
    """The integers that stand for ``y``, of the type of ``like``."""
    info = torch.iinfo(like.dtype)
    y = torch.round(y / scale.reshape([])) + (0 if zero is None else zero.float().reshape([]))
    return y.clamp(info.min, info.max).to(torch.int32).to(like.dtype)


def qlinear_binary(a, b, a_scale, a_zero, b_scale, b_zero, y_scale, y_zero=None, *, kind):
    x, y = unrounded(a, a_scale, a_zero), unrounded(b, b_scale, b_zero)
    return rounded(x + y if kind == "add" else x * y, y_scale, y_zero, a)


def qlinear_unary(x, x_scale, x_zero, y_scale, y_zero=None, *, kind, alpha):
    y = unrounded(x, x_scale, x_zero)
    return rounded(
        torch.sigmoid(y) if kind == "sigmoid" else F.leaky_relu(y, alpha), y_scale, y_zero, x
    )


def qlinear_along(x, x_scale, x_zero, y_scale, y_zero=None, *, kind, dims, gone):
    y = unrounded(x, x_scale, x_zero)
    if kind == "mean":
        return rounded(y.mean(dims, keepdim=True), y_scale, y_zero, x)
    flat = y.flatten(dims[0]) if len(dims) > 1 else y
    return rounded(flat.softmax(dims[0]).reshape(y.shape), y_scale, y_zero, x)


def qlinear_concat(y_scale, y_zero, *triples, dim):
    many = [
        unrounded(triples[i], triples[i + 1], triples[i + 2]) for i in range(0, len(triples), 3)
    ]
    return rounded(torch.cat(many, dim), y_scale, y_zero, triples[0])


def qlinear_gemm(
    a,
    a_scale,
    a_zero,
    b,
    b_scale,
    b_zero,
    c=None,
    y_scale=None,
    y_zero=None,
    *,
    trans_a,
    trans_b,
    alpha,
):
    x = a.double() - a_zero.double().reshape([])
    per = [-1, 1] if trans_b else [1, -1]
    w = b.double() - (
        b_zero.double().reshape(per) if b_zero.numel() > 1 else b_zero.double().reshape([])
    )
    y = (x.mT if trans_a else x) @ (w.mT if trans_b else w)
    y = y if c is None else y + c.double()
    y = (y * alpha * a_scale.double().reshape([]) * b_scale.double().reshape(-1)).float()
    return y if y_scale is None else rounded(y, y_scale, y_zero, a)


def integer_matmul(a, b, *rest, dynamic, columns, zeros):
    if dynamic:
        b_scale, b_zero, bias = [*rest, None, None][:3]
        a, a_scale, a_zero = dynamic_quantize(a)
    else:
        a_scale, b_scale, a_zero, b_zero, bias = [*rest, None, None, None][:5]
    x = a.double() if a_zero is None else a.double() - a_zero.double().reshape([])
    w = b.double() if b_zero is None else b.double() - b_zero.double()
    y = ((x @ w) * a_scale.double().reshape([]) * b_scale.double()).to(a_scale.dtype)
    return y if bias is None else y + bias


def matmul_nbits(x, matrix, scales, zeros=None, order=None, bias=None, *, n, k, bits, block_size):
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=x.device)

    def opened(bytes_):
        return ((bytes_.to(torch.int32)[..., None] >> shifts) & (2**bits - 1)).flatten(-2)

    numbers, blocks, zero = opened(matrix), matrix.shape[1], 2 ** (bits - 1)
    if zeros is not None:
        zero = zeros.reshape(n, -1)
        zero = (zero if zeros.is_floating_point() else opened(zero))[:, :blocks, None]
    w = (numbers - zero).to(x.dtype) * scales.to(x.dtype).reshape(n, blocks, 1)
    y = x @ w.flatten(1)[:, :k].T
    return y if bias is None else y + bias
