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


def conv_fused(x, w, b=None, *, stride, padding, dilation, groups, activation, parameters):
    y = conv_padded(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)
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
