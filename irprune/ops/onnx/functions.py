"""ONNX operators that no single ATen overload says, in torch: operands first, then the entry's attributes by name.

Each function stands on its own (torch and ``F`` alone, no helper unless it is listed in ``HELPERS``), because emitted modules carry its source.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

HELPERS: dict[str, tuple[str, ...]] = {
    "conv_fused": ("conv_padded",),
    "max_pool_padded": ("pool_windows",),
    "lp_pool": ("pool_windows",),
    "avg_pool_padded": ("pool_windows",),
}

# -- element-wise ------------------------------------------------------------------------------------------------------


def pow_tensor(x, exponent):
    return torch.pow(x, exponent).to(x.dtype)


def sum_of(*xs):
    out = xs[0]
    for x in xs[1:]:
        out = out + x
    return out


def mean_of(*xs):
    out = xs[0]
    for x in xs[1:]:
        out = out + x
    return out / len(xs)


def max_of(*xs):
    out = xs[0]
    for x in xs[1:]:
        out = torch.maximum(out, x)
    return out


def min_of(*xs):
    out = xs[0]
    for x in xs[1:]:
        out = torch.minimum(out, x)
    return out


def selu_scaled(x, *, alpha, gamma):
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(torch.clamp(x, max=0)) - 1))


def hard_sigmoid(x, *, alpha, beta):
    return torch.clamp(alpha * x + beta, 0, 1)


def thresholded_relu(x, *, alpha):
    return torch.where(x > alpha, x, torch.zeros_like(x))


def softsign(x):
    return x / (1 + x.abs())


def shrink(x, *, bias, lambd):
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def swish(x, *, alpha):
    return x * torch.sigmoid(alpha * x)


def quick_gelu(x, *, alpha):
    return x * torch.sigmoid(alpha * x)


def is_infinite(x, *, detect_negative, detect_positive):
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_negative:
        found = found | torch.isneginf(x)
    if detect_positive:
        found = found | torch.isposinf(x)
    return found


def bias_gelu(x, bias=None, *, approximate):
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def clip(x, low=None, high=None):
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


# -- products ----------------------------------------------------------------------------------------------------------


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


# -- pooling -----------------------------------------------------------------------------------------------------------


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
        places = torch.arange(math.prod(sizes), device=x.device).reshape(sizes[::-1]).permute(*range(len(sizes))[::-1])
    places = pool_windows(places.expand(1, 1, *sizes).to(torch.float64), -1.0, kernel, stride, dilation, begins, ends, ceil)
    found = places.expand(n, c, *places.shape[2:]).gather(-1, at[..., None]).squeeze(-1).long()
    offset = torch.arange(n * c, device=x.device).reshape(n, c, *[1] * len(sizes)) * math.prod(sizes)
    return y, found + offset


def avg_pool_padded(x, *, kernel, stride, dilation, begins, ends, ceil, count_include_pad):
    total = pool_windows(x, 0.0, kernel, stride, dilation, begins, ends, ceil).sum(-1)
    ones = torch.ones_like(x[:1, :1])
    if count_include_pad:
        n = len(kernel)
        ones = F.pad(ones, [p for i in range(n - 1, -1, -1) for p in (begins[i], ends[i])], value=1.0)
        none = [0] * n
        count = pool_windows(ones, 0.0, kernel, stride, dilation, none, none, ceil).sum(-1)
        count = count[(..., *(slice(s) for s in total.shape[2:]))]  # a window that begins in the padding is not taken
    else:
        count = pool_windows(ones, 0.0, kernel, stride, dilation, begins, ends, ceil).sum(-1)
    return total / count


def lp_pool(x, *, kernel, stride, dilation, begins, ends, ceil, p):
    return (pool_windows(x, 0.0, kernel, stride, dilation, begins, ends, ceil).abs() ** p).sum(-1) ** (1.0 / p)


def depth_to_space(x, *, block):
    n, c, h, w = x.shape
    return (
        x.reshape(n, block, block, c // (block * block), h, w)
        .permute(0, 3, 4, 1, 5, 2)
        .reshape(n, c // (block * block), h * block, w * block)
    )


def space_to_depth(x, *, block):
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, h // block, block, w // block, block)
        .permute(0, 3, 5, 1, 2, 4)
        .reshape(n, c * block * block, h // block, w // block)
    )


def resize(x, *, axes, sizes, scales, mode, coordinates, nearest, cubic, exclude_outside, antialias, extrapolation, roi):
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
            place = at * (before - 1) / (scale * before - 1) if scale * before != 1 else torch.zeros_like(at)
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
            base = torch.floor(place)[:, None] + torch.arange(count, device=x.device, dtype=torch.float64) - count // 2
            gap = ((base - place[:, None]) * wide).abs()
            if mode == "linear":
                weight = (1 - gap).clamp(min=0)
            else:
                a = cubic
                near = ((a + 2) * gap - (a + 3)) * gap * gap + 1
                far = ((a * gap - 5 * a) * gap + 8 * a) * gap - 4 * a
                weight = torch.where(gap <= 1, near, torch.where(gap < 2, far, torch.zeros_like(gap)))
            if exclude_outside:
                weight = torch.where((base < 0) | (base > before - 1), torch.zeros_like(weight), weight)
            weight = weight / weight.sum(-1, keepdim=True)
            y = (x[..., base.clamp(0, before - 1).long()] * weight.to(x.dtype)).sum(-1)
        if outside is not None:
            y = torch.where(outside, torch.full((), extrapolation, dtype=y.dtype, device=y.device), y)
        x = y.movedim(-1, d)
    return x


# -- normalisation -----------------------------------------------------------------------------------------------------


def layer_norm_full(x, weight=None, bias=None, *, normalized_shape, eps):
    dims = list(range(x.dim() - len(normalized_shape), x.dim()))
    mean = x.mean(dims, keepdim=True)
    scale = torch.rsqrt(((x - mean) ** 2).mean(dims, keepdim=True) + eps)
    y = (x - mean) * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, scale


def group_norm_by_group(x, scale, bias, *, num_groups, eps, cudnn_enabled):
    y = x.reshape(x.shape[0], num_groups, -1)
    y = y - y.mean(2, keepdim=True)
    y = y * torch.rsqrt((y * y).mean(2, keepdim=True) + eps)
    return (y * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape)


def local_response_norm(x, *, size, alpha, beta, bias):
    y = F.pad((x * x).movedim(1, -1), [(size - 1) // 2, size // 2])
    return x / (bias + alpha / size * y.unfold(-1, size, 1).sum(-1).movedim(-1, 1)) ** beta


def lp_normalize(x, *, dim, p):
    norm = torch.linalg.vector_norm(x, p, dim, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def mean_variance_norm(x, *, dim):
    mean = x.mean(dim, keepdim=True)
    return (x - mean) / (((x * x).mean(dim, keepdim=True) - mean * mean).clamp(min=0).sqrt() + 1e-9)


# -- reductions --------------------------------------------------------------------------------------------------------


def reduce_log_sum(x, *, dim, keepdim):
    return torch.log(x.sum(dim, keepdim=keepdim))


def reduce_prod(x, *, dim, keepdim):
    for d in sorted(dim, reverse=True):
        x = x.prod(d, keepdim=keepdim)
    return x


def reduce_sum_square(x, *, dim, keepdim):
    return (x * x).sum(dim, keepdim=keepdim)


def softmax_joint(x, *, dim):
    return x.flatten(dim[0]).softmax(dim[0]).reshape(x.shape)


def log_softmax_joint(x, *, dim):
    return x.flatten(dim[0]).log_softmax(dim[0]).reshape(x.shape)


def cumsum_turned(x, *, dim, exclusive, reverse):
    y = x.flip(dim) if reverse else x
    y = y.cumsum(dim) - y if exclusive else y.cumsum(dim)
    return y.flip(dim) if reverse else y


# -- places ------------------------------------------------------------------------------------------------------------


def slice_back(x, *, dim, start, end, step):
    return x.index_select(dim, torch.arange(start, end, step, device=x.device))


def pad_by(x, *, pad, mode):
    """Reflecting, repeating and wrapping in any dimensions, by indices."""
    for i in range(0, len(pad), 2):
        before, after, d = pad[i], pad[i + 1], x.dim() - 1 - i // 2
        if before == 0 and after == 0:
            continue
        size = x.shape[d]
        at = torch.arange(-before, size + after, device=x.device)
        if mode == "edge":
            at = at.clamp(0, size - 1)
        elif mode == "wrap":
            at = at % size
        else:
            span = max(2 * (size - 1), 1)
            at = at % span
            at = torch.where(at >= size, span - at, at) if size > 1 else torch.zeros_like(at)
        x = x.index_select(d, at)
    return x


def pad_filled(x, value, *, pad, mode):
    """What is padded is known only at run time: zeros there, then the value where a padded mask is false."""
    inside = F.pad(torch.ones_like(x, dtype=torch.bool), pad)
    return torch.where(inside, F.pad(x, pad), value.to(x.dtype).reshape([]))


def triangle_of(x, *, upper, diagonal):
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def gather_at(x, index, *, dim):
    size = x.shape[dim]
    flat = torch.where(index < 0, index + size, index).reshape(-1)
    return x.index_select(dim, flat.long()).unflatten(dim, index.shape) if index.dim() else x.index_select(dim, flat.long()).squeeze(dim)


def gather_elements(x, index, *, dim):
    return x.gather(dim, torch.where(index < 0, index + x.shape[dim], index).long())


def scatter_elements(x, index, updates, *, dim, reduction):
    index = torch.where(index < 0, index + x.shape[dim], index).long()
    if reduction == "none":
        return x.scatter(dim, index, updates)
    return x.scatter_reduce(dim, index, updates, {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction])


def gather_nd(x, index, *, batch_dims):
    depth = index.shape[-1]
    lead = [
        torch.arange(index.shape[b], device=x.device).reshape([-1 if k == b else 1 for k in range(index.dim() - 1)])
        for b in range(batch_dims)
    ]
    places = [torch.where(p < 0, p + x.shape[batch_dims + k], p).long() for k, p in enumerate(index.unbind(-1))] if depth else []
    return x[(*lead, *places)]


def scatter_nd(x, index, updates, *, reduction):
    places = tuple(torch.where(p < 0, p + x.shape[k], p).long() for k, p in enumerate(index.unbind(-1)))
    if reduction in ("none", "add"):
        return x.index_put(places, updates, accumulate=reduction == "add")
    width = math.prod(x.shape[len(places) :])
    flat = torch.zeros_like(places[0])
    for k, p in enumerate(places):
        flat = flat * x.shape[k] + p
    rows = flat.reshape(-1, 1).expand(-1, width)
    how = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return x.reshape(-1, width).scatter_reduce(0, rows, updates.reshape(-1, width), how).reshape(x.shape)


def one_hot_at(index, *, depth, dim, off, on, dtype):
    kind = {
        "f32": torch.float32,
        "f64": torch.float64,
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "i64": torch.int64,
        "i32": torch.int32,
        "bool": torch.bool,
        "i8": torch.int8,
        "u8": torch.uint8,
    }[dtype]
    index = torch.where(index < 0, index + depth, index).unsqueeze(dim)
    classes = torch.arange(depth, device=index.device).reshape([-1 if k == dim else 1 for k in range(index.dim())])
    return torch.where(
        index == classes, torch.full((), on, dtype=kind, device=index.device), torch.full((), off, dtype=kind, device=index.device)
    )


# -- from sizes --------------------------------------------------------------------------------------------------------


def sizes(*, values, shape, dtype, device=None):
    kind = {"i64": torch.int64, "i32": torch.int32, "f32": torch.float32, "f64": torch.float64, "f16": torch.float16}[dtype]
    flat = [torch.scalar_tensor(v, dtype=kind, device=device) for v in values]
    return torch.stack(flat).reshape(shape) if flat else torch.zeros(shape, dtype=kind, device=device)


def arange_from(*, start, end, step, dtype, device=None):
    kind = {
        "f32": torch.float32,
        "f64": torch.float64,
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "i64": torch.int64,
        "i32": torch.int32,
        "i16": torch.int16,
    }[dtype]
    return torch.arange(start, end, step, dtype=kind, device=device)


def eye_like(x, *, diagonal, dtype):
    kind = {
        "f32": torch.float32,
        "f64": torch.float64,
        "f16": torch.float16,
        "i64": torch.int64,
        "i32": torch.int32,
        "bool": torch.bool,
        "u64": torch.uint64,
        "u32": torch.uint32,
    }[dtype]
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return (torch.arange(x.shape[1], device=x.device) == rows + diagonal).to(kind)


# -- recurrence ----------------------------------------------------------------------------------------------------------

HELPERS |= {"onnx_lstm": ("activation_of", "scanned"), "onnx_gru": ("activation_of", "scanned"), "onnx_rnn": ("activation_of", "scanned")}


def activation_of(names, alpha, beta, k, default):
    """Activation ``k`` of a recurrent cell."""
    name = (names or default)[k]
    with_alpha = {"Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu"}
    with_beta = {"Affine", "ScaledTanh", "HardSigmoid"}
    before = list((names or default)[:k])
    i, j = sum(n in with_alpha for n in before), sum(n in with_beta for n in before)
    a = alpha[i] if alpha and i < len(alpha) else {"LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "HardSigmoid": 0.2, "Elu": 1.0}.get(name, 1.0)
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
    """Run ``step(k, x_t, states)`` over time in each direction; past a sequence's length states stay and results are zero."""
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
    x, w, r, b=None, lengths=None, h=None, c=None, p=None, *, hidden_size, layout, direction, clip, activations, alpha, beta, input_forget
):
    batch, n = x.shape[0 if layout else 1], w.shape[0]
    h = torch.zeros(n, batch, hidden_size, dtype=x.dtype, device=x.device) if h is None else h.transpose(0, 1) if layout else h
    c = torch.zeros_like(h) if c is None else c.transpose(0, 1) if layout else c
    bias = (
        torch.zeros(n, 4 * hidden_size, dtype=x.dtype, device=x.device) if b is None else b[:, : 4 * hidden_size] + b[:, 4 * hidden_size :]
    )

    def limit(v):
        return v if clip is None else v.clamp(-clip, clip)

    def step(k, xt, state):
        f, g, o = (activation_of(activations, alpha, beta, 3 * k + i, ["Sigmoid", "Tanh", "Tanh"] * n) for i in range(3))
        hk, ck = state
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


def onnx_gru(x, w, r, b=None, lengths=None, h=None, *, hidden_size, layout, direction, clip, activations, alpha, beta, linear_before_reset):
    batch, n = x.shape[0 if layout else 1], w.shape[0]
    h = torch.zeros(n, batch, hidden_size, dtype=x.dtype, device=x.device) if h is None else h.transpose(0, 1) if layout else h
    both = torch.zeros(n, 6 * hidden_size, dtype=x.dtype, device=x.device) if b is None else b
    wb, rb = both[:, : 3 * hidden_size], both[:, 3 * hidden_size :]

    def limit(v):
        return v if clip is None else v.clamp(-clip, clip)

    def step(k, xt, state):
        f, g = (activation_of(activations, alpha, beta, 2 * k + i, ["Sigmoid", "Tanh"] * n) for i in range(2))
        (hk,) = state
        xz, xr, xh = (xt @ w[k].mT + wb[k]).chunk(3, -1)
        rz, rr, rh = r[k].chunk(3, 0)
        bz, br, bh = rb[k].chunk(3, -1)
        z, reset = f(limit(xz + hk @ rz.mT + bz)), f(limit(xr + hk @ rr.mT + br))
        inner = reset * (hk @ rh.mT + bh) if linear_before_reset else (reset * hk) @ rh.mT + bh
        new = g(limit(xh + inner))
        return [(1 - z) * new + z * hk]

    return scanned(x, lengths, [h], layout, direction, step)


def onnx_rnn(x, w, r, b=None, lengths=None, h=None, *, hidden_size, layout, direction, clip, activations, alpha, beta):
    batch, n = x.shape[0 if layout else 1], w.shape[0]
    h = torch.zeros(n, batch, hidden_size, dtype=x.dtype, device=x.device) if h is None else h.transpose(0, 1) if layout else h
    bias = torch.zeros(n, hidden_size, dtype=x.dtype, device=x.device) if b is None else b[:, :hidden_size] + b[:, hidden_size:]

    def step(k, xt, state):
        f = activation_of(activations, alpha, beta, k, ["Tanh"] * n)
        v = xt @ w[k].mT + state[0] @ r[k].mT + bias[k]
        return [f(v if clip is None else v.clamp(-clip, clip))]

    return scanned(x, lengths, [h], layout, direction, step)


# -- quantisation --------------------------------------------------------------------------------------------------------

HELPERS |= {
    "quantize_linear": ("spread_scale", "integer_type"),
    "dequantize_linear": ("spread_scale",),
    "qlinear_matmul": ("integer_type",),
    "qlinear_conv": ("integer_type",),
}


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


# -- attention -----------------------------------------------------------------------------------------------------------


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
