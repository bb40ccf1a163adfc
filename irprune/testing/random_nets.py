"""Small networks made at random: a few blocks out of many kinds, one after the other, for feature
maps [n, c, h, w] or for sequences [n, t, d], in an element type.

A net that ``irprune.prune`` takes must come out proven, whatever it is; ``tried`` prunes one and
says how that ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune.errors import IrpruneError

__all__ = ["TYPES", "Ended", "nets", "random_net", "tried"]

TYPES = ("float32", "float64", "float16", "bfloat16", "mixed")
Forward = Callable[..., Tensor]


class Block(nn.Module):
    """Parts by name, and what is computed with them: ``how(self, x)``. ``kind`` names it."""

    def __init__(self, kind: str, how: Forward, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.kind, self.how = kind, how
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_parameter(name, nn.Parameter(part))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.how(self, x)
        return made


Make = Callable[[random.Random, int], tuple[Block, int]]
"""Makes a block for inputs of a width; returns it and the width that it gives."""

MAPS: dict[str, Make] = {}
SEQUENCES: dict[str, Make] = {}


def _kind(table: dict[str, Make], name: str) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        table[name] = make
        return make

    return register


def _plain(table: dict[str, Make], name: str, how: Forward) -> None:
    """A kind without parts that keeps the width."""
    table[name] = lambda draw, c: (Block(name, how), c)


def _width(draw: random.Random) -> int:
    return draw.choice((8, 12, 16))


# -- feature maps ----------------------------------------------------------------------------------


@_kind(MAPS, "convolution")
def _convolution(draw: random.Random, c: int) -> tuple[Block, int]:
    k, out = draw.choice((1, 3)), _width(draw)
    conv = nn.Conv2d(c, out, k, padding=k // 2, bias=draw.random() < 0.7)
    return Block("convolution", lambda b, x: F.relu(b.conv(x)), conv=conv), out


@_kind(MAPS, "strided convolution")
def _strided(draw: random.Random, c: int) -> tuple[Block, int]:
    conv = nn.Conv2d(c, 16, 3, padding=1, stride=draw.choice((1, 2)), padding_mode="circular")
    return Block("strided convolution", lambda b, x: F.silu(b.conv(x)), conv=conv), 16


@_kind(MAPS, "grouped convolution")
def _grouped(draw: random.Random, c: int) -> tuple[Block, int]:
    groups = draw.choice([g for g in (2, 4) if c % g == 0])
    conv = nn.Conv2d(c, 2 * c, 3, padding=1, groups=groups)
    return Block("grouped convolution", lambda b, x: F.relu(b.conv(x)), conv=conv), 2 * c


@_kind(MAPS, "depthwise convolution")
def _depthwise(draw: random.Random, c: int) -> tuple[Block, int]:
    parts = {"dw": nn.Conv2d(c, c, 3, padding=1, groups=c), "pw": nn.Conv2d(c, 16, 1)}
    return Block("depthwise convolution", lambda b, x: b.pw(F.relu6(b.dw(x))), **parts), 16


@_kind(MAPS, "transposed convolution")
def _transposed(draw: random.Random, c: int) -> tuple[Block, int]:
    conv = nn.ConvTranspose2d(c, 12, 2, stride=2)
    return Block("transposed convolution", lambda b, x: F.avg_pool2d(F.relu(b.conv(x)), 2), conv=conv), 12  # fmt: skip


@_kind(MAPS, "residual")
def _residual(draw: random.Random, c: int) -> tuple[Block, int]:
    wide = _width(draw)
    parts = {
        "a": nn.Conv2d(c, wide, 3, padding=1),
        "n": nn.BatchNorm2d(wide),
        "b": nn.Conv2d(wide, c, 1),
    }
    return Block("residual", lambda b, x: x + b.b(F.relu(b.n(b.a(x)))), **parts), c


@_kind(MAPS, "concatenation")
def _concatenation(draw: random.Random, c: int) -> tuple[Block, int]:
    parts = {"a": nn.Conv2d(c, 8, 1), "b": nn.Conv2d(c, 4, 3, padding=1)}
    whole = draw.random() < 0.5
    return (
        Block(
            "concatenation",
            lambda b, x: torch.cat([b.a(x), F.relu(b.b(x)), *([x] * whole)], 1),
            **parts,
        ),
        12 + c * whole,
    )


@_kind(MAPS, "split")
def _split(draw: random.Random, c: int) -> tuple[Block, int]:
    conv = nn.Conv2d(c, 24, 1)

    def how(b: Any, x: Tensor) -> Tensor:
        first, second, third = b.conv(x).split([8, 4, 12], 1)
        made: Tensor = torch.cat([F.relu(second), torch.tanh(first)], 1) * third.sigmoid()
        return made

    return Block("split", how, conv=conv), 12


@_kind(MAPS, "gate")
def _gate(draw: random.Random, c: int) -> tuple[Block, int]:
    parts = {"down": nn.Linear(c, 4), "up": nn.Linear(4, c)}

    def how(b: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(b.up(F.relu(b.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]

    return Block("gate", how, **parts), c


@_kind(MAPS, "norm")
def _norm(draw: random.Random, c: int) -> tuple[Block, int]:
    made = draw.choice(
        (
            nn.BatchNorm2d(c),
            nn.GroupNorm(4, c),
            nn.InstanceNorm2d(c, affine=True),
            nn.GroupNorm(1, c),
        )
    )
    return Block("norm", lambda b, x: F.relu(b.n(x)), n=made), c


@_kind(MAPS, "layer norm of channels")
def _channel_norm(draw: random.Random, c: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        return b.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    return Block("layer norm of channels", how, n=nn.LayerNorm(c)), c


@_kind(MAPS, "channel shuffle")
def _shuffle(draw: random.Random, c: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = b.conv(x).reshape(n, 2, 8, h, w).transpose(1, 2).reshape(n, 16, h, w)
        return F.relu(y)

    return Block("channel shuffle", how, conv=nn.Conv2d(c, 16, 1)), 16


@_kind(MAPS, "pixel shuffle")
def _pixels(draw: random.Random, c: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pixel_shuffle(b.conv(x), 2), 2)

    return Block("pixel shuffle", how, conv=nn.Conv2d(c, 32, 1)), 8


@_kind(MAPS, "pad")
def _pad(draw: random.Random, c: int) -> tuple[Block, int]:
    mode = draw.choice(("constant", "reflect", "replicate", "circular"))

    def how(b: Any, x: Tensor) -> Tensor:
        return F.relu(b.conv(F.pad(x, (1, 1, 1, 1), mode=mode)))

    return Block("pad", how, conv=nn.Conv2d(c, 12, 3)), 12


@_kind(MAPS, "padded channels")
def _padded(draw: random.Random, c: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        y = F.relu(b.conv(x))
        return F.pad(y, (0, 0, 0, 0, 2, 2)) + F.pad(x.mean(1, keepdim=True), (0, 0, 0, 0, 0, 11))

    return Block("padded channels", how, conv=nn.Conv2d(c, 8, 1)), 12


@_kind(MAPS, "index of channels")
def _index(draw: random.Random, c: int) -> tuple[Block, int]:
    order = draw.sample(range(c), c)

    def how(b: Any, x: Tensor) -> Tensor:
        part = x.index_select(1, torch.tensor(order[:4]))
        return b.conv(x[:, order]) + b.other(part)  # type: ignore[no-any-return]

    parts = {"conv": nn.Conv2d(c, 8, 1), "other": nn.Conv2d(4, 8, 1)}
    return Block("index of channels", how, **parts), 8


@_kind(MAPS, "written views")
def _views(draw: random.Random, c: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        y = b.conv(x)
        y[:, :4] += y[:, 4:8]
        y[:, 8:].mul_(2).relu_()
        y[..., 0] = 0
        return y.clone()  # type: ignore[no-any-return]

    return Block("written views", how, conv=nn.Conv2d(c, 12, 1)), 12


@_kind(MAPS, "shared convolution")
def _shared(draw: random.Random, c: int) -> tuple[Block, int]:
    conv = nn.Conv2d(c, c, 3, padding=1)
    return Block("shared convolution", lambda b, x: F.relu(b.conv(F.relu(b.conv(x)))), conv=conv), c


@_kind(MAPS, "broadcast")
def _broadcast(draw: random.Random, c: int) -> tuple[Block, int]:
    parts = {"scale": torch.rand(c, 1, 1) + 0.5, "shift": torch.randn(1, c, 1, 1) / 4}
    return Block("broadcast", lambda b, x: x * b.scale + b.shift, **parts), c


@_kind(MAPS, "spectrum")
def _spectrum(draw: random.Random, c: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        y = torch.fft.rfft2(x.float(), norm="ortho")
        return b.conv(torch.cat([y.real, y.imag], 1).to(x.dtype))  # type: ignore[no-any-return]

    return Block("spectrum", how, conv=nn.Conv2d(2 * c, 12, 1)), 12


@_kind(MAPS, "attention of places")
def _places(draw: random.Random, c: int) -> tuple[Block, int]:
    parts = {
        "q": nn.Conv2d(c, 4, 1),
        "k": nn.Conv2d(c, 4, 1),
        "v": nn.Conv2d(c, 8, 1),
        "o": nn.Conv2d(8, c, 1),
    }

    def how(b: Any, x: Tensor) -> Tensor:
        q, k, v = (m(x).flatten(2) for m in (b.q, b.k, b.v))
        mixed = v @ torch.softmax(q.transpose(1, 2) @ k, -1).transpose(1, 2)
        return x + b.o(mixed.unflatten(2, x.shape[2:]))  # type: ignore[no-any-return]

    return Block("attention of places", how, **parts), c


for _name, _how in {
    "flip": lambda b, x: x.flip(3),
    "flip of channels": lambda b, x: x + x.flip(1),
    "roll": lambda b, x: x.roll((1, -1), (2, 3)),
    "roll of channels": lambda b, x: x + x.roll(2, 1),
    "pool": lambda b, x: F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1),
    "resize": lambda b, x: F.interpolate(x, size=tuple(x.shape[2:]), mode="nearest") * 2,
    "slices": lambda b, x: x[:, ::2].repeat_interleave(2, 1) if x.shape[1] % 2 == 0 else x,
    "sum over places": lambda b, x: x.cumsum(2) / 4,
    "maximum of channels": lambda b, x: x - x.amax(1, keepdim=True),
    "softmax of channels": lambda b, x: x * x.softmax(1),
    "twice in double": lambda b, x: x.double().tanh().to(x.dtype),
    "transposed places": lambda b, x: x.transpose(2, 3).contiguous().transpose(2, 3) * 0.5,
}.items():
    _plain(MAPS, _name, _how)


# -- sequences -------------------------------------------------------------------------------------


@_kind(SEQUENCES, "linear")
def _linear(draw: random.Random, d: int) -> tuple[Block, int]:
    out = _width(draw)
    f = draw.choice((F.relu, F.gelu, F.silu, torch.tanh))
    return Block("linear", lambda b, x: f(b.f(x)), f=nn.Linear(d, out)), out


@_kind(SEQUENCES, "feed forward")
def _feed(draw: random.Random, d: int) -> tuple[Block, int]:
    parts = {"n": nn.LayerNorm(d), "a": nn.Linear(d, 24), "b": nn.Linear(24, d)}
    return Block("feed forward", lambda b, x: x + b.b(F.gelu(b.a(b.n(x)))), **parts), d


@_kind(SEQUENCES, "gated feed forward")
def _gated(draw: random.Random, d: int) -> tuple[Block, int]:
    parts = {"g": nn.Linear(d, 32, bias=False), "b": nn.Linear(16, d, bias=False)}

    def how(b: Any, x: Tensor) -> Tensor:
        gate, value = b.g(x).chunk(2, -1)
        return x + b.b(F.silu(gate) * value)  # type: ignore[no-any-return]

    return Block("gated feed forward", how, **parts), d


@_kind(SEQUENCES, "root mean square norm")
def _rms(draw: random.Random, d: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)
        return b.scale * y.to(x.dtype)  # type: ignore[no-any-return]

    return Block("root mean square norm", how, scale=torch.rand(d) + 0.5), d


def _heads(draw: random.Random, how: str) -> Make:
    def make(draw: random.Random, d: int) -> tuple[Block, int]:
        parts = {"qkv": nn.Linear(d, 48), "o": nn.Linear(16, d)}

        def attend(b: Any, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            y = b.qkv(x)
            if how == "slices":
                q, k, v = y.reshape(n, t, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            elif how == "thirds":
                q, k, v = (z.reshape(n, t, 2, 8).transpose(1, 2) for z in y.chunk(3, -1))
            else:
                q, k, v = (z.reshape(n, t, 2, 8).transpose(1, 2) for z in y.split(16, -1))
            if how == "parts":
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                mixed = torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, -1) @ v
            return x + b.o(mixed.transpose(1, 2).reshape(n, t, 16))  # type: ignore[no-any-return]

        return Block(f"attention by {how}", attend, **parts), d

    return make


for _way in ("slices", "thirds", "parts"):
    SEQUENCES[f"attention by {_way}"] = _heads(random.Random(0), _way)


@_kind(SEQUENCES, "grouped queries")
def _grouped_queries(draw: random.Random, d: int) -> tuple[Block, int]:
    parts = {"q": nn.Linear(d, 16), "k": nn.Linear(d, 8), "v": nn.Linear(d, 8), "o": nn.Linear(16, d)}  # fmt: skip

    def how(b: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = b.q(x).view(n, t, 4, 4).transpose(1, 2)
        k, v = (f(x).view(n, t, 2, 4).transpose(1, 2).repeat_interleave(2, 1) for f in (b.k, b.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + b.o(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return Block("grouped queries", how, **parts), d


@_kind(SEQUENCES, "packed attention")
def _packed(draw: random.Random, d: int) -> tuple[Block, int]:
    part = nn.MultiheadAttention(d, 2, batch_first=True)
    return Block("packed attention", lambda b, x: x + b.a(x, x, x, need_weights=False)[0], a=part), d  # fmt: skip


@_kind(SEQUENCES, "einsum")
def _einsum(draw: random.Random, d: int) -> tuple[Block, int]:
    parts = {"w": torch.randn(2, d, 6) / d**0.5, "o": torch.randn(2, 6, d) / 3}

    def how(b: Any, x: Tensor) -> Tensor:
        heads = torch.einsum("ntd,hde->nhte", x, b.w)
        return x + torch.einsum("nhte,hed->ntd", F.relu(heads), b.o)

    return Block("einsum", how, **parts), d


@_kind(SEQUENCES, "convolution in time")
def _in_time(draw: random.Random, d: int) -> tuple[Block, int]:
    conv = nn.Conv1d(d, 12, 3, padding=1)
    return Block("convolution in time", lambda b, x: F.relu(b.c(x.transpose(1, 2))).transpose(1, 2), c=conv), 12  # fmt: skip


@_kind(SEQUENCES, "recurrence")
def _recurrence(draw: random.Random, d: int) -> tuple[Block, int]:
    kind = draw.choice((nn.LSTM, nn.GRU, nn.RNN))
    part = kind(d, 8, batch_first=True, bidirectional=draw.random() < 0.5)
    return Block("recurrence", lambda b, x: b.r(x)[0], r=part), 8 * (1 + part.bidirectional)


@_kind(SEQUENCES, "tied linear")
def _tied(draw: random.Random, d: int) -> tuple[Block, int]:
    part = nn.Linear(d, 16, bias=False)
    return Block("tied linear", lambda b, x: x + F.relu(b.f(x)) @ b.f.weight, f=part), d


@_kind(SEQUENCES, "experts")
def _experts(draw: random.Random, d: int) -> tuple[Block, int]:
    parts = {"r": nn.Linear(d, 4), "w": torch.randn(4, d, 8) / d**0.5, "o": torch.randn(4, 8, d) / 3}  # fmt: skip

    def how(b: Any, x: Tensor) -> Tensor:
        gates, chosen = b.r(x).softmax(-1).topk(2, -1)
        weight = torch.zeros_like(b.r(x)).scatter(-1, chosen, gates)
        made = torch.einsum("ntd,kde->ntke", x, b.w).relu()
        return x + torch.einsum("ntke,ked,ntk->ntd", made, b.o, weight)

    return Block("experts", how, **parts), d


@_kind(SEQUENCES, "first of the largest")
def _largest(draw: random.Random, d: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        score = b.f(x).squeeze(-1)
        index = score.topk(3, -1).indices.sort(-1).values
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[2])).repeat(1, 2, 1)

    return Block("first of the largest", how, f=nn.Linear(d, 1)), d


@_kind(SEQUENCES, "mask")
def _mask(draw: random.Random, d: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        y = b.f(x)
        return torch.where(y > 0, y, x * 0.1).masked_fill(x < -1.5, 0.0)

    return Block("mask", how, f=nn.Linear(d, d)), d


@_kind(SEQUENCES, "strides")
def _strides(draw: random.Random, d: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        return F.relu(b.f(x.unfold(1, 3, 1).flatten(2)))

    return Block("strides", how, f=nn.Linear(3 * d, 12)), 12


@_kind(SEQUENCES, "rotation")
def _rotation(draw: random.Random, d: int) -> tuple[Block, int]:
    part = nn.Linear(d, 16)

    def how(b: Any, x: Tensor) -> Tensor:
        y = torch.view_as_complex(b.f(x).float().unflatten(-1, (8, 2)).contiguous())
        angle = torch.arange(x.shape[1])[:, None] / (1 + torch.arange(8))
        turned = torch.view_as_real(y * torch.polar(torch.ones_like(angle), angle))
        return turned.flatten(-2).to(x.dtype)

    return Block("rotation", how, f=part), 16


@_kind(SEQUENCES, "another type")
def _another_type(draw: random.Random, d: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        return b.f(x.to(b.f.weight.dtype)).to(x.dtype)  # type: ignore[no-any-return]

    return Block("another type", how, f=nn.Linear(d, 12)), 12


@_kind(SEQUENCES, "autocast")
def _autocast(draw: random.Random, d: int) -> tuple[Block, int]:
    def how(b: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = b.g(F.relu(b.f(x)))
        return x + y.to(x.dtype)

    return Block("autocast", how, f=nn.Linear(d, 16), g=nn.Linear(16, d)), d


for _name, _how in {
    "flip in time": lambda b, x: x.flip(1),
    "flip of features": lambda b, x: x + x.flip(-1) * 0.5,
    "roll of features": lambda b, x: x + x.roll(1, -1) * 0.5,
    "sum in time": lambda b, x: x.cumsum(1) / 4,
    "sum of features": lambda b, x: x + x.cumsum(-1) / 8,
    "sorted features": lambda b, x: x + x.sort(-1).values * 0.3,
    "sorted in time": lambda b, x: x.sort(1).values,
    "shifted in time": lambda b, x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "largest features": lambda b, x: x * (x >= x.topk(3, -1).values[..., -1:]),
    "clamped": lambda b, x: x.clamp(-1, 1) + x.abs().sqrt() * 0.1,
    "stacked": lambda b, x: torch.stack([x, -x], -1).flatten(-2)[..., ::2],
    "difference in time": lambda b, x: F.pad(x.diff(dim=1), (0, 0, 1, 0)),
    "outer product": lambda b, x: (x.unsqueeze(-1) * x.unsqueeze(-2)).mean(-1),
    "distance": lambda b, x: x * torch.cdist(x.float(), x.float()).mean(-1, keepdim=True).to(x),
}.items():
    _plain(SEQUENCES, _name, _how)


# -- nets ------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Blocks one after the other, between a first and a last layer."""

    def __init__(self, first: nn.Module, blocks: Sequence[Block], last: nn.Module) -> None:
        super().__init__()
        self.first, self.blocks, self.last = first, nn.ModuleList(blocks), last

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for block in self.blocks:
            y = block(y)
        made: Tensor = self.last(y.mean((2, 3) if y.dim() == 4 else 1))
        return made


def random_net(seed: int, dtype: str = "float32") -> tuple[Net, Tensor]:
    """A net and an example input, in eval mode; ``dtype`` is one of ``TYPES``, of which ``mixed``
    gives each block a type of its own, with casts around it."""
    draw = random.Random(f"{seed} {dtype}")
    torch.manual_seed(seed)
    maps = draw.random() < 0.5
    table = MAPS if maps else SEQUENCES
    width = _width(draw)
    first: nn.Module = nn.Conv2d(3, width, 3, padding=1) if maps else nn.Linear(6, width)
    blocks: list[Block] = []
    for name in draw.sample(list(table), draw.randint(2, 5)):
        block, width = table[name](draw, width)
        blocks.append(block)
    net = Net(first, blocks, nn.Linear(width, 3)).eval()
    x = torch.randn(2, 3, 8, 8) if maps else torch.randn(2, 6, 6)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            m.register_buffer("running_var", torch.rand(m.num_features) + 0.5)
    if dtype == "mixed":
        for block in blocks:
            _cast(block, draw.choice((torch.float64, torch.float16, torch.bfloat16, torch.float32)))
        return net, x
    kind: torch.dtype = getattr(torch, dtype)
    return net.to(kind), x.to(kind)


def _cast(block: Block, dtype: torch.dtype) -> None:
    """Let ``block`` compute in ``dtype`` and give back the type that it was given."""
    how = block.how
    block.to(dtype)
    block.how = lambda b, x: how(b, x.to(dtype)).to(x.dtype)


@dataclass(frozen=True)
class Ended:
    """How pruning a net ended: ``proven``, ``unfit`` (forward itself does not run), ``whole``
    (nothing could be cut), ``wrong`` (a check failed) or ``crashed``; what was ``said``, and the
    share of the cut weights that the original itself ``judged``."""

    seed: int
    dtype: str
    kinds: tuple[str, ...]
    how: str
    said: str = ""
    judged: float = 0.0
    notes: tuple[str, ...] = field(default=())


def tried(seed: int, dtype: str, ratio: float = 0.5) -> Ended:
    """Prune the net of ``seed`` in ``dtype``."""
    net, x = random_net(seed, dtype)
    kinds = tuple(b.kind for b in net.blocks if isinstance(b, Block))
    try:
        with torch.no_grad():
            made = net(x)
    except (RuntimeError, NotImplementedError) as refused:
        return Ended(seed, dtype, kinds, "unfit", str(refused).splitlines()[0][:200])
    if not bool(made.isfinite().all()):
        return Ended(seed, dtype, kinds, "unfit", "infinite outputs")
    try:
        pruned = irprune.prune(net, (x,), ratio=ratio, repair=False)
    except IrpruneError as failed:
        return Ended(seed, dtype, kinds, "wrong", str(failed))
    except Exception as failed:  # whatever it is, it is a fault
        return Ended(seed, dtype, kinds, "crashed", f"{type(failed).__name__}: {failed}"[:400])
    proof = pruned.report.proof
    judged = (
        proof.second_pass.judged if proof is not None and proof.second_pass is not None else 0.0
    )
    notes = tuple(proof.notes) if proof is not None else ()
    how = "whole" if pruned.report.cuts_nothing else "proven"
    with torch.no_grad():
        ours = pruned.module(x)
    if ours.dtype != made.dtype or ours.shape != made.shape:
        return Ended(seed, dtype, kinds, "wrong", f"gives {ours.dtype}{list(ours.shape)}")
    return Ended(seed, dtype, kinds, how, "", judged, notes)


def nets(count: int, first: int = 0) -> Iterator[tuple[int, str]]:
    """``count`` seeds, each with an element type, which take turns."""
    for seed in range(first, first + count):
        yield seed, TYPES[seed % len(TYPES)]
