"""A folder of transformers with a random LLaMA of any size, written tensor by tensor: what the
measurements of docs/results/scale.md are made on.

    python tools/make_folder.py OUT --layers 29 --hidden 1024 --intermediate 2816 --vocab 8000

Numbers are drawn as transformers draws them, normal with a deviation of 0.02 and norms of ones; the
same seed gives the same bytes."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from irprune.base.quiet import quiet
from irprune.emit.torch.safetensors_file import write_tensors
from irprune.run.stored_tensor import StoredTensor

SPREAD = 0.02


def parsed() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--intermediate", type=int, default=176)
    parser.add_argument("--heads", type=int, default=0, help="hidden / 128, at least 4, where 0")
    parser.add_argument("--kv-heads", type=int, default=0, help="as many as heads where 0")
    parser.add_argument("--vocab", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--shards", type=int, default=5)
    parser.add_argument("--tied", action="store_true", help="one matrix for embedding and head")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def config_of(given: argparse.Namespace) -> Any:
    """The configuration of the model."""
    from transformers import LlamaConfig

    heads = given.heads or max(4, given.hidden // 128)
    return LlamaConfig(
        vocab_size=given.vocab,
        hidden_size=given.hidden,
        intermediate_size=given.intermediate,
        num_hidden_layers=given.layers,
        num_attention_heads=heads,
        num_key_value_heads=given.kv_heads or heads,
        tie_word_embeddings=given.tied,
        dtype=given.dtype,
    )


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random numbers, or the ones of a norm."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype)
    made = torch.empty(shape, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for row in made.split(max(1, (1 << 22) // shape[1])):
        row.copy_(torch.randn(row.shape, generator=generator).mul_(SPREAD))
    return made


def main() -> None:
    """Write the folder."""
    from transformers import LlamaForCausalLM

    given = parsed()
    config = config_of(given)
    dtype = getattr(torch, given.dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tensors = {
        name: StoredTensor(
            partial(drawn, tuple(p.shape), dtype, given.seed + number), p.shape, dtype
        )
        for number, (name, p) in enumerate(model.named_parameters())
    }
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    given.out.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.to(dtype).save_pretrained(given.out, state_dict={})
    (given.out / "model.safetensors").unlink(missing_ok=True)
    largest = max(t.numel() * t.element_size() for t in tensors.values())
    write_tensors(given.out, tensors, "", limit=size // given.shards + largest)
    files = sorted(given.out.glob("*.safetensors"))
    print(f"{given.out}: {size / 1e6:,.0f} MB in {len(files)} files")


if __name__ == "__main__":
    main()
