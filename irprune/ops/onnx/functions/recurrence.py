"""LSTM, GRU and RNN of ONNX in torch, step by step."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import torch.nn.functional as F

from irprune.ops.onnx.functions.quantised import dynamic_quantize


def activation_of(names, alpha, beta, k, default):
    """Activation ``k`` of a recurrent cell."""
    name = (names or default)[k]
    with_alpha = {"Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu"}
    with_beta = {"Affine", "ScaledTanh", "HardSigmoid"}
    before = list((names or default)[:k])
    i, j = sum(n in with_alpha for n in before), sum(n in with_beta for n in before)
    a = (
        alpha[i]
        if alpha and i < len(alpha)
        else {"LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "HardSigmoid": 0.2, "Elu": 1.0}.get(
            name, 1.0
        )
    )
    b = beta[j] if beta and j < len(beta) else {"HardSigmoid": 0.5}.get(name, 1.0)
    return {
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Relu": torch.relu,
        "Softsign": lambda x: x / (1 + x.abs()),
        "Softplus": F.softplus,
        "LeakyRelu": lambda x: F.leaky_relu(x, a),
        "ThresholdedRelu": lambda x: torch.where(x > a, x, torch.zeros_like(x)),
        "Elu": lambda x: F.elu(x, a),
        "HardSigmoid": lambda x: torch.clamp(a * x + b, 0, 1),
        "Affine": lambda x: a * x + b,
        "ScaledTanh": lambda x: a * torch.tanh(b * x),
    }[name]


def scanned(x, lengths, states, layout, direction, step):
    """Run ``step(k, x_t, states)`` over time in each direction; past a sequence's length states
    stay and results are zero."""
    if layout:
        x = x.transpose(0, 1)
    count = states[0].shape[0]
    results, last = [], []
    for k in range(count):
        now = [s[k] for s in states]
        order = range(x.shape[0])
        if direction == "reverse" or k == 1:
            order = reversed(order)
        made = [None] * x.shape[0]
        for t in order:
            new = step(k, x[t], now)
            if lengths is not None:
                inside = (t < lengths)[:, None]
                new = [torch.where(inside, a, b) for a, b in zip(new, now, strict=True)]
                made[t] = torch.where(inside, new[0], torch.zeros_like(new[0]))
            else:
                made[t] = new[0]
            now = new
        results.append(torch.stack(made))
        last.append(now)
    y = torch.stack(results, 1)
    ends = [torch.stack([n[i] for n in last]) for i in range(len(states))]
    if layout:
        return (y.permute(2, 0, 1, 3), *(e.transpose(0, 1) for e in ends))
    return (y, *ends)


def onnx_lstm(
    x,
    w,
    r,
    b=None,
    lengths=None,
    h=None,
    c=None,
    p=None,
    *,
    hidden_size,
    layout,
    direction,
    clip,
    activations,
    alpha,
    beta,
    input_forget,
    seen=None,
):
    batch, n = x.shape[0 if layout else 1], w.shape[0]
    h = (
        torch.zeros(n, batch, hidden_size, dtype=x.dtype, device=x.device)
        if h is None
        else h.transpose(0, 1)
        if layout
        else h
    )
    c = torch.zeros_like(h) if c is None else c.transpose(0, 1) if layout else c
    bias = (
        torch.zeros(n, 4 * hidden_size, dtype=x.dtype, device=x.device)
        if b is None
        else b[:, : 4 * hidden_size] + b[:, 4 * hidden_size :]
    )

    def limit(v):
        return v if clip is None else v.clamp(-clip, clip)

    def step(k, xt, state):
        f, g, o = (
            activation_of(activations, alpha, beta, 3 * k + i, ["Sigmoid", "Tanh", "Tanh"] * n)
            for i in range(3)
        )
        hk, ck = state
        hk = hk if seen is None else seen(hk)
        gi, go, gf, gc = (xt @ w[k].mT + hk @ r[k].mT + bias[k]).chunk(4, -1)
        if p is not None:
            pi, po, pf = p[k].chunk(3, -1)
            gi, gf = gi + pi * ck, gf + pf * ck
        it = f(limit(gi))
        ft = 1 - it if input_forget else f(limit(gf))
        new = ft * ck + it * g(limit(gc))
        if p is not None:
            go = go + po * new
        return [f(limit(go)) * o(new), new]

    return scanned(x, lengths, [h, c], layout, direction, step)


def dynamic_lstm(
    x,
    w,
    r,
    b=None,
    lengths=None,
    h=None,
    c=None,
    p=None,
    w_scale=None,
    w_zero=None,
    r_scale=None,
    r_zero=None,
    *,
    hidden_size,
    direction,
    clip,
    input_forget,
):
    def opened(matrix, scale, zero):
        each = [matrix.shape[0], 1, -1]
        return ((matrix.to(x.dtype) - zero.to(x.dtype).reshape(each)) * scale.reshape(each)).mT

    def seen(v):
        q, scale, zero = dynamic_quantize(v)
        return (q.to(v.dtype) - zero.to(v.dtype)) * scale

    return onnx_lstm(
        seen(x),
        opened(w, w_scale, w_zero),
        opened(r, r_scale, r_zero),
        b,
        lengths,
        h,
        c,
        p,
        hidden_size=hidden_size,
        layout=0,
        direction=direction,
        clip=clip,
        activations=None,
        alpha=None,
        beta=None,
        input_forget=input_forget,
        seen=seen,
    )


def onnx_gru(
    x,
    w,
    r,
    b=None,
    lengths=None,
    h=None,
    *,
    hidden_size,
    layout,
    direction,
    clip,
    activations,
    alpha,
    beta,
    linear_before_reset,
):
    batch, n = x.shape[0 if layout else 1], w.shape[0]
    h = (
        torch.zeros(n, batch, hidden_size, dtype=x.dtype, device=x.device)
        if h is None
        else h.transpose(0, 1)
        if layout
        else h
    )
    both = torch.zeros(n, 6 * hidden_size, dtype=x.dtype, device=x.device) if b is None else b
    wb, rb = both[:, : 3 * hidden_size], both[:, 3 * hidden_size :]

    def limit(v):
        return v if clip is None else v.clamp(-clip, clip)

    def step(k, xt, state):
        f, g = (
            activation_of(activations, alpha, beta, 2 * k + i, ["Sigmoid", "Tanh"] * n)
            for i in range(2)
        )
        (hk,) = state
        xz, xr, xh = (xt @ w[k].mT + wb[k]).chunk(3, -1)
        rz, rr, rh = r[k].chunk(3, 0)
        bz, br, bh = rb[k].chunk(3, -1)
        z, reset = f(limit(xz + hk @ rz.mT + bz)), f(limit(xr + hk @ rr.mT + br))
        inner = reset * (hk @ rh.mT + bh) if linear_before_reset else (reset * hk) @ rh.mT + bh
        new = g(limit(xh + inner))
        return [(1 - z) * new + z * hk]

    return scanned(x, lengths, [h], layout, direction, step)


def onnx_rnn(
    x,
    w,
    r,
    b=None,
    lengths=None,
    h=None,
    *,
    hidden_size,
    layout,
    direction,
    clip,
    activations,
    alpha,
    beta,
):
    batch, n = x.shape[0 if layout else 1], w.shape[0]
    h = (
        torch.zeros(n, batch, hidden_size, dtype=x.dtype, device=x.device)
        if h is None
        else h.transpose(0, 1)
        if layout
        else h
    )
    bias = (
        torch.zeros(n, hidden_size, dtype=x.dtype, device=x.device)
        if b is None
        else b[:, :hidden_size] + b[:, hidden_size:]
    )

    def step(k, xt, state):
        f = activation_of(activations, alpha, beta, k, ["Tanh"] * n)
        v = xt @ w[k].mT + state[0] @ r[k].mT + bias[k]
        return [f(v if clip is None else v.clamp(-clip, clip))]

    return scanned(x, lengths, [h], layout, direction, step)
