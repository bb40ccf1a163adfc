"""Attention, rotary embeddings and fused residual norms in torch."""

# mypy: ignore-errors
from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def onnx_attention(
    q, k, v, mask=None, past_key=None, past_value=None, *, q_num_heads, kv_num_heads, is_causal, scale, softcap, mode, results
):
    flat = q.dim() == 3
    if flat:
        q = q.unflatten(-1, (q_num_heads, -1)).transpose(1, 2)
        k, v = (t.unflatten(-1, (kv_num_heads, -1)).transpose(1, 2) for t in (k, v))
    k = k if past_key is None else torch.cat([past_key, k], 2)
    v = v if past_value is None else torch.cat([past_value, v], 2)
    whole_key, whole_value = k, v
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    root = math.sqrt(q.shape[-1] ** -0.5 if scale is None else scale)
    raw = (q * root) @ (k * root).mT
    held = raw
    s, t = raw.shape[-2:]
    past = 0 if past_key is None else past_key.shape[2]
    if mask is not None:
        m = (
            torch.zeros(mask.shape, dtype=raw.dtype, device=raw.device).masked_fill(~mask, float("-inf"))
            if mask.dtype == torch.bool
            else mask
        )
        m = F.pad(m, [0, t - m.shape[-1]], value=float("-inf")) if m.shape[-1] < t else m
    else:
        m = torch.zeros(s, t, dtype=raw.dtype, device=raw.device)
    if is_causal:
        rows, columns = torch.arange(s, device=raw.device)[:, None] + past, torch.arange(t, device=raw.device)
        m = torch.where(columns <= rows, m, torch.full((), float("-inf"), dtype=raw.dtype, device=raw.device))
    if softcap:
        raw = softcap * torch.tanh(raw / softcap)
    capped = raw
    raw = raw + m
    shares = raw.softmax(-1)
    shares = torch.where(torch.isneginf(raw).all(-1, keepdim=True), torch.zeros_like(shares), shares)
    y = shares @ v
    y = y.transpose(1, 2).flatten(2) if flat else y
    if results == 1:
        return y
    return (y, whole_key, whole_value, {0: held, 1: capped, 2: raw, 3: shares}[mode])[:results]


def projected_attention(x, w, b=None, mask=None, past=None, bias=None, *, num_heads, sizes, is_causal, scale, filter):
    y = x @ w if b is None else x @ w + b
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in y.split(sizes, -1))
    raw = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    raw = raw if bias is None else raw + bias
    if is_causal:
        rows = torch.arange(raw.shape[-1], device=x.device)
        raw = torch.where(rows <= rows[:, None], raw, torch.full((), filter, dtype=raw.dtype, device=x.device))
    if mask is not None:
        raw = raw + (1 - mask.to(raw.dtype))[:, None, None, :] * filter
    return (raw.softmax(-1) @ v).transpose(1, 2).flatten(2)


def rotary(x, cos, sin, positions=None, *, num_heads, interleaved, rotated):
    flat = x.dim() == 3
    y = x.unflatten(-1, (num_heads, -1)).transpose(1, 2) if flat else x
    size = rotated or y.shape[-1]
    if positions is not None:
        if positions.numel() == 1:
            positions = positions.reshape(1, 1) + torch.arange(y.shape[2], device=x.device)
        cos, sin = cos[positions], sin[positions]
    cos, sin = (t[:, None, :, : size // 2] if t.dim() == 3 else t[None, None, :, : size // 2] for t in (cos, sin))
    head, rest = y[..., :size], y[..., size:]
    a, b = (head[..., 0::2], head[..., 1::2]) if interleaved else head.chunk(2, -1)
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    turned = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    y = torch.cat([turned, rest], -1)
    return y.transpose(1, 2).flatten(2) if flat else y


def residual_norm(x, skip, weight, bias=None, extra=None, *, eps, rms, results):
    if rms:
        bias, extra = None, bias
    total = x + skip if extra is None else x + skip + extra
    y = total if rms else total - total.mean(-1, keepdim=True)
    y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + eps) * weight
    y = y if bias is None else y + bias
    return y if results == 1 else (y, total, total, total)[:results]
