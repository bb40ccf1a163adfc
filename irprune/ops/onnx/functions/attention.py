"""Attention, rotary embeddings and fused residual norms in torch."""

# mypy: ignore-errors
from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def onnx_attention(
    q,
    k,
    v,
    mask=None,
    past_key=None,
    past_value=None,
    lengths=None,
    *,
    q_num_heads,
    kv_num_heads,
    is_causal,
    scale,
    softcap,
    mode,
    results,
    left=-1,
    right=-1,
    sinks=None,
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
            torch.zeros(mask.shape, dtype=raw.dtype, device=raw.device).masked_fill(
                ~mask, float("-inf")
            )
            if mask.dtype == torch.bool
            else mask
        )
        m = F.pad(m, [0, t - m.shape[-1]], value=float("-inf")) if m.shape[-1] < t else m
    else:
        m = torch.zeros(s, t, dtype=raw.dtype, device=raw.device)
    rows, columns = (
        torch.arange(s, device=raw.device)[:, None] + past,
        torch.arange(t, device=raw.device),
    )
    seen = None if lengths is None else columns < lengths[:, None, None, None]
    ahead = columns - (rows if lengths is None else rows + (lengths[:, None, None, None] - s))
    for limited, inside in (
        (is_causal, ahead <= 0),
        (left >= 0, ahead >= -left),
        (right >= 0, ahead <= right),
    ):
        if limited:
            seen = inside if seen is None else seen & inside
    if seen is not None:
        m = torch.where(seen, m, torch.full((), float("-inf"), dtype=raw.dtype, device=raw.device))
    if softcap:
        raw = softcap * torch.tanh(raw / softcap)
    capped = raw
    raw = raw + m
    if sinks is None:
        shares = raw.softmax(-1)
    else:  # a further product of each head, with nothing behind it
        beside = sinks.to(raw.dtype).reshape(1, -1, 1, 1).expand(*raw.shape[:3], 1)
        shares = torch.cat([raw, beside], -1).softmax(-1)[..., :-1]
    shares = torch.where(
        torch.isneginf(raw).all(-1, keepdim=True), torch.zeros_like(shares), shares
    )
    y = shares @ v
    y = y.transpose(1, 2).flatten(2) if flat else y
    if results == 1:
        return y
    return (y, whole_key, whole_value, {0: held, 1: capped, 2: raw, 3: shares}[mode])[:results]


def keys_that_count(mask, batch, total, filter, like):
    """What is added to the products: ``mask`` is a length for each sequence, or a number for each
    key, or for each query and key."""
    if mask.dim() == 1:
        mask = torch.arange(total, device=like.device) < mask[:, None]
    mask = (1 - mask.to(like.dtype)) * filter
    return mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]


def projected_attention(
    x,
    w,
    b=None,
    mask=None,
    past=None,
    bias=None,
    *,
    num_heads,
    sizes,
    is_causal,
    scale,
    filter,
    results,
):
    y = x @ w if b is None else x @ w + b
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in y.split(sizes, -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    raw = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    raw = raw if bias is None else raw + bias
    rows, total = raw.shape[-2:]
    if is_causal:
        at = torch.arange(total, device=x.device)
        raw = torch.where(
            at <= at[total - rows :, None],
            raw,
            torch.full((), filter, dtype=raw.dtype, device=x.device),
        )
    if mask is not None:
        raw = raw + keys_that_count(mask, x.shape[0], total, filter, raw)
    y = (raw.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return y if results == 1 else (y, torch.stack([k, v]))


def quantised_attention(
    x, w, b, mask, past, bias, x_scale, w_scale, x_zero=None, w_zero=None, **attrs
):
    """As projected attention; numbers are integers less their zero point, times their scale."""
    kind = x_scale.dtype
    x = (x.to(kind) - (0 if x_zero is None else x_zero.to(kind))) * x_scale
    w = (w.to(kind) - (0 if w_zero is None else w_zero.to(kind))) * w_scale
    return projected_attention(x, w, b, mask, past, bias, **attrs)


def multi_head_attention(
    q,
    k,
    v,
    bias=None,
    padding=None,
    mask=None,
    past_key=None,
    past_value=None,
    *,
    q_num_heads,
    kv_num_heads,
    is_causal,
    scale,
    filter,
    results,
):
    if bias is not None:
        sizes = [t.shape[-1] if t.dim() == 3 else t.shape[1] * t.shape[3] for t in (q, k, v)]
        added = bias.split(sizes)
        q, k, v = (
            t + a if t.dim() == 3 else t + a.unflatten(0, (t.shape[1], 1, -1))
            for t, a in zip((q, k, v), added, strict=True)
        )
    q, k, v = (
        t if t.dim() == 4 else t.unflatten(-1, (q_num_heads, -1)).transpose(1, 2) for t in (q, k, v)
    )
    k = k if past_key is None else torch.cat([past_key, k], 2)
    v = v if past_value is None else torch.cat([past_value, v], 2)
    if padding is not None:
        unseen = keys_that_count(padding, q.shape[0], k.shape[2], filter, q)
        mask = unseen if mask is None else mask + unseen
    raw = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    raw = raw if mask is None else raw + mask
    if is_causal:
        at = torch.arange(k.shape[2], device=q.device)
        later = at > at[k.shape[2] - q.shape[2] :, None]
        raw = raw.masked_fill(later, float("-inf"))
    y = (raw.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return y if results == 1 else (y, k, v)[:results]


def group_query_attention(
    q,
    k,
    v,
    past_key=None,
    past_value=None,
    lengths=None,
    total=None,
    cos=None,
    sin=None,
    positions=None,
    bias=None,
    sinks=None,
    *,
    q_num_heads,
    kv_num_heads,
    is_causal,
    scale,
    softcap,
    do_rotary,
    rotary_interleaved,
    window,
    smooth,
    results,
):
    """Sequences of one length, none of them padded: ``lengths`` and ``total`` then say what the
    shapes do."""
    past = 0 if past_key is None else past_key.shape[2]
    if do_rotary:
        at = (torch.arange(q.shape[1], device=q.device) + past).expand(q.shape[0], -1)
        q = rotary(
            q,
            cos,
            sin,
            at,
            num_heads=q_num_heads,
            interleaved=rotary_interleaved,
            rotated=2 * cos.shape[-1],
        )
        k = rotary(
            k,
            cos,
            sin,
            at,
            num_heads=kv_num_heads,
            interleaved=rotary_interleaved,
            rotated=2 * cos.shape[-1],
        )
    if smooth and sinks is None:
        sinks = torch.zeros(q_num_heads, dtype=q.dtype, device=q.device)
    return onnx_attention(
        q,
        k,
        v,
        bias,
        past_key,
        past_value,
        q_num_heads=q_num_heads,
        kv_num_heads=kv_num_heads,
        is_causal=1,
        scale=scale,
        softcap=softcap,
        mode=0,
        results=results,
        left=window - 1 if window > 0 else -1,
        sinks=sinks,
    )


def embedding_norm(
    ids, segments, words, places, kinds, weight, bias, mask=None, at=None, *, eps, results
):
    at = torch.arange(ids.shape[1], device=ids.device) if at is None else at
    total = F.embedding(ids, words) + F.embedding(at, places)
    total = total if kinds is None or segments is None else total + F.embedding(segments, kinds)
    y = F.layer_norm(total, [total.shape[-1]], weight, bias, eps)
    counts = (
        torch.zeros(ids.shape[0], dtype=torch.int32, device=ids.device)
        if mask is None
        else mask.sum(1).int()
    )
    return y if results == 1 else (y, counts, total)[:results]


def rotary(x, cos, sin, positions=None, *, num_heads, interleaved, rotated):
    flat = x.dim() == 3
    y = x.unflatten(-1, (num_heads, -1)).transpose(1, 2) if flat else x
    size = rotated or y.shape[-1]
    if positions is not None:
        if positions.numel() == 1:
            positions = positions.reshape(1, 1) + torch.arange(y.shape[2], device=x.device)
        cos, sin = cos[positions], sin[positions]
    cos, sin = (
        t[:, None, :, : size // 2] if t.dim() == 3 else t[None, None, :, : size // 2]
        for t in (cos, sin)
    )
    head, rest = y[..., :size], y[..., size:]
    a, b = (head[..., 0::2], head[..., 1::2]) if interleaved else head.chunk(2, -1)
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    turned = (
        torch.stack([real, imaginary], -1).flatten(-2)
        if interleaved
        else torch.cat([real, imaginary], -1)
    )
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
