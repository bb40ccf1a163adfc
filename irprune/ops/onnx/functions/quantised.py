"""Quantised operators of ONNX in torch."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import torch.nn.functional as F


def integer_type(name):
    return {"i8": torch.int8, "u8": torch.uint8, "i16": torch.int16, "u16": torch.uint16, "i32": torch.int32}[name]


def spread_scale(scale, x, dim, block):
    """A scale or zero point that broadcasts against ``x``."""
    if scale.dim() == 0 or scale.numel() == 1:
        return scale.reshape([])
    if scale.dim() == 1:
        return scale.reshape([-1 if k == dim else 1 for k in range(x.dim())])
    return scale.repeat_interleave(block, dim).narrow(dim, 0, x.shape[dim])


def quantize_linear(x, scale, zero=None, *, dim, block, dtype):
    kind = integer_type(dtype)
    info = torch.iinfo(kind)
    y = torch.round(x.float() / spread_scale(scale, x, dim, block).float())
    y = y if zero is None else y + spread_scale(zero.to(torch.int32), x, dim, block)
    return y.clamp(info.min, info.max).to(torch.int32).to(kind)


def dequantize_linear(x, scale, zero=None, *, dim, block, dtype):
    y = x.to(torch.int32)
    y = y if zero is None else y - spread_scale(zero.to(torch.int32), x, dim, block)
    y = y.to(scale.dtype) * spread_scale(scale, x, dim, block)
    return y.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}[dtype])


def dynamic_quantize(x):
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


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
    return (F.conv1d, F.conv2d, F.conv3d)[n - 1](F.pad(a, padding), b, None, stride, 0, dilation, groups).to(torch.int32)


def qlinear_conv(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, b=None, *, stride, padding, dilation, groups, places):
    n = w.dim() - 2
    per = [-1, *[1] * (n + 1)]
    a = x.to(torch.float64) - x_zero.to(torch.float64).reshape([])
    k = w.to(torch.float64) - w_zero.to(torch.float64).reshape(per if w_zero.numel() > 1 else [])
    y = (F.conv1d, F.conv2d, F.conv3d)[n - 1](F.pad(a, padding), k, None, stride, 0, dilation, groups)
    y = y if b is None else y + b.to(torch.float64).reshape([-1, *[1] * n])
    scale = x_scale.to(torch.float64).reshape([]) * w_scale.to(torch.float64).reshape([-1, *[1] * n] if w_scale.numel() > 1 else [])
    info = torch.iinfo(y_zero.dtype)
    y = torch.round(y * scale / y_scale.to(torch.float64).reshape([])) + y_zero.to(torch.float64).reshape([])
    return y.clamp(info.min, info.max).to(torch.int32).to(y_zero.dtype)
