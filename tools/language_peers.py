"""Other methods that compress a decoder without training, each in a few lines of our own from its
paper, for ``tools/language.py``.

They take a model of transformers with ``model.layers`` as LLaMA has them, rows of token numbers and
the share of the blocks' parameters that may stay, and give a model and the share that it has."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["blocks", "flap", "magnitude", "size", "slicegpt"]

Rows = torch.Tensor


def size(model: nn.Module) -> int:
    """Parameters of the blocks."""
    return sum(p.numel() for n, p in model.named_parameters() if n.startswith("model.layers"))


@torch.no_grad()
def blocks(model: Any, rows: Rows, share: float) -> tuple[nn.Module, float]:
    """Without the blocks that change the direction of their input least, as in Men et al.,
    "ShortGPT", 2024."""
    likeness = [0.0] * len(model.model.layers)

    def hook(number: int) -> Callable[..., None]:
        def seen(module: nn.Module, given: Any, result: Any) -> None:
            out = result[0] if isinstance(result, tuple) else result
            likeness[number] += float(nn.functional.cosine_similarity(given[0], out, dim=-1).mean())

        return seen

    hooks = [b.register_forward_hook(hook(i)) for i, b in enumerate(model.model.layers)]
    for some in rows.split(4):
        model(some, use_cache=False)
    for h in hooks:
        h.remove()
    count = math.ceil(len(likeness) * (1 - share) - 1e-9)
    gone = set(sorted(range(len(likeness)), key=lambda i: -likeness[i])[:count])
    made = copy.deepcopy(model)
    made.model.layers = nn.ModuleList(b for i, b in enumerate(made.model.layers) if i not in gone)
    made.config.num_hidden_layers = len(made.model.layers)
    return made, size(made) / size(model)


@torch.no_grad()
def flap(model: Any, rows: Rows, share: float) -> tuple[nn.Module, float]:
    """An et al., "Fluctuation-based adaptive structured pruning", AAAI 2024: the weighted variance
    of the inputs of the last projection of attention and of MLP, standardised in each layer and
    ranked over all, with a bias that keeps the mean. A head stands for what shares keys and values
    with it."""
    config = model.config
    parts = [p for b in model.model.layers for p in (b.self_attn.o_proj, b.mlp.down_proj)]
    moments = list(_moments(model, parts, rows))
    groups = config.num_key_value_heads
    wide = config.num_attention_heads // groups
    head = model.model.layers[0].self_attn.head_dim
    prices = (  # parameters of one index of each kind
        config.hidden_size * head * (2 * wide + 2),
        3 * config.hidden_size,
    )
    scores, costs = [], []
    for number, (part, (_, variance)) in enumerate(zip(parts, moments, strict=True)):
        score = part.weight.square().sum(0) * variance
        score = (score - score.mean()) / score.std()
        attention = number % 2 == 0
        scores.append(score.view(groups, -1).mean(1) if attention else score)
        costs.append(torch.full_like(scores[-1], prices[0 if attention else 1]))
    every, price = torch.cat(scores), torch.cat(costs)
    order = every.argsort()
    gone_cost = price[order].cumsum(0)
    count = int((gone_cost <= (1 - share) * price.sum()).sum())
    threshold = float(every[order[count]])
    made = copy.deepcopy(model)
    masks = [score >= threshold for score in scores]
    for number, block in enumerate(made.model.layers):
        heads, hidden = masks[2 * number], masks[2 * number + 1]
        _cut_attention(block.self_attn, heads, wide, head, moments[2 * number][0])
        mean = moments[2 * number + 1][0]
        block.mlp.down_proj = _narrowed(block.mlp.down_proj, hidden, mean)
        for name in ("gate_proj", "up_proj"):
            old = getattr(block.mlp, name)
            setattr(block.mlp, name, _linear(old.weight[hidden], None))
    return made, float(price[every >= threshold].sum() / price.sum())


def _moments(
    model: Any, parts: list[nn.Linear], rows: Rows
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of what each of ``parts`` reads."""
    sums = [[0.0, 0.0] for _ in parts]
    hooks = []
    for number, part in enumerate(parts):

        def seen(module: nn.Module, given: Any, at: int = number) -> None:
            x = given[0].flatten(0, 1).double()
            sums[at][0] = sums[at][0] + x.sum(0)
            sums[at][1] = sums[at][1] + x.square().sum(0)

        hooks.append(part.register_forward_pre_hook(seen))
    for some in rows.split(4):
        model(some, use_cache=False)
    for h in hooks:
        h.remove()
    for total, square in sums:
        mean = torch.as_tensor(total) / rows.numel()
        variance = torch.as_tensor(square) / rows.numel() - mean.square()
        yield mean.float(), variance.float()


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight.clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return made


def _narrowed(old: nn.Linear, keep: torch.Tensor, mean: torch.Tensor) -> nn.Linear:
    """``old`` without inputs, what they gave in the mean in a bias."""
    return _linear(old.weight[:, keep], old.weight[:, ~keep] @ mean[~keep])


def _cut_attention(
    part: Any, groups: torch.Tensor, wide: int, head: int, mean: torch.Tensor
) -> None:
    queries = groups.repeat_interleave(wide * head)
    keys = groups.repeat_interleave(head)
    if not bool(groups.any()):  # one stays, silent: the class has no attention without heads
        queries[: wide * head], keys[:head] = True, True
        bias = part.o_proj.weight @ mean
        part.o_proj = _linear(torch.zeros_like(part.o_proj.weight[:, queries]), bias)
    else:
        part.o_proj = _narrowed(part.o_proj, queries, mean)
    part.q_proj = _linear(part.q_proj.weight[queries], None)
    part.k_proj = _linear(part.k_proj.weight[keys], None)
    part.v_proj = _linear(part.v_proj.weight[keys], None)


@torch.no_grad()
def slicegpt(model: Any, rows: Rows, share: float) -> tuple[nn.Module, float]:
    """Ashkboos et al., "SliceGPT", ICLR 2024: the residual stream in the principal components of
    what each norm gives, those of least variance left out, with a map between two of them at every
    addition. Here those parts are projected away in the width that the model had, which computes
    the same; the share is what the sliced model would have, its maps among it."""
    made = copy.deepcopy(model)
    config = model.config
    full = config.hidden_size
    head = model.model.layers[0].self_attn.head_dim
    across = (
        2 * config.num_attention_heads * head
        + 2 * config.num_key_value_heads * head
        + 3 * config.intermediate_size
    )
    whole = across * full
    width = int((math.sqrt(across**2 + 8 * share * whole) - across) / 4)
    streams = [made.model.embed_tokens(some) for some in rows.split(4)]
    position = torch.arange(rows.shape[1])[None]
    rotary = made.model.rotary_emb(streams[0], position)

    def projection() -> torch.Tensor:
        gram = torch.zeros(full, full, dtype=torch.float64)
        for x in streams:
            y = x.flatten(0, 1).double()
            y = y / y.square().mean(-1, keepdim=True).add(config.rms_norm_eps).sqrt()
            gram += y.T @ y
        _, vectors = torch.linalg.eigh(gram)
        basis = vectors[:, -width:]
        return (basis @ basis.T).float()

    for block in made.model.layers:
        first = projection()
        streams = [x @ first for x in streams]
        streams = [
            x
            + block.self_attn(
                block.input_layernorm(x), position_embeddings=rotary, attention_mask=None
            )[0]
            for x in streams
        ]
        second = projection()
        streams = [x @ second for x in streams]
        streams = [x + block.mlp(block.post_attention_layernorm(x)) for x in streams]
        block.forward = _Sliced(block, first, second)
    last = projection()
    made.model.norm.register_forward_pre_hook(lambda module, given: (given[0] @ last.to(given[0]),))
    return made, (across * width + 2 * width**2) / whole


class _Sliced:
    """The forward of a block whose residual stream is projected before each part."""

    def __init__(self, block: Any, first: torch.Tensor, second: torch.Tensor) -> None:
        self.block, self.first, self.second = block, first, second

    def __call__(self, x: torch.Tensor, **more: Any) -> torch.Tensor:
        block = self.block
        x = x @ self.first.to(x)
        x = x + block.self_attn(block.input_layernorm(x), **more)[0]
        x = x @ self.second.to(x)
        result: torch.Tensor = x + block.mlp(block.post_attention_layernorm(x))
        return result


def magnitude(model: Any, rows: Rows, share: float) -> tuple[nn.Module, float]:
    """The channels of least norm in every layer, the criterion of most pruners without data (as
    Torch-Pruning's group norms), cut by irprune; the residual stream stays."""
    import irprune

    pruned = irprune.prune(
        model,
        (rows[:2, :32],),
        budget={"params": {"model.layers*": share}},
        importance="magnitude",
        keep=["*embed_tokens*"],
        calibration=False,
        proof=False,
    )
    return pruned.apply_to(copy.deepcopy(model)), size(pruned.module) / size(model)
