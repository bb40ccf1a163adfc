"""How long one block of a large decoder takes: its statistics, choice and refit, by irprune's
defaults, in seconds of one processor.

    python tools/language_time.py --hidden 4096 --wide 11008 --heads 32 --blocks 32

Weights and tokens are random; what is timed does not depend on them. The sum for ``--blocks``
blocks is that many times one: statistics and refits are of each block alone. Losses are measured
through the blocks behind one as well, which are forward passes of few tokens."""

from __future__ import annotations

import argparse
import resource
import time

import torch

import irprune
from irprune.api.finish import Clock


def main() -> None:
    """Time it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--wide", type=int, default=11008, help="hidden units of the MLP")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--span", type=int, default=128, help="tokens of a row")
    parser.add_argument("--share", type=float, default=0.8)
    args = parser.parse_args()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.wide,
        num_hidden_layers=1,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        vocab_size=512,
    )
    model = LlamaForCausalLM(config).eval()
    rows = torch.randint(3, 512, (args.rows, args.span))
    began = time.process_time()
    with torch.no_grad():
        for some in torch.split(rows, 4):
            model(some, use_cache=False)
    forward = time.process_time() - began
    Clock.now = time.process_time
    pruned = irprune.prune(
        model,
        (rows[:1, :8],),
        budget={"params": {"model.layers*": args.share}},
        calibration=[(some,) for some in torch.split(rows, 4)],
        proof=False,
        drop_blocks=False,
    )
    seconds = pruned.report.seconds
    stages = {k: seconds[k] for k in ("score", "choose", "repair")}
    print(f"| stage | one block, s | {args.blocks} blocks, s |")
    print("| --- | --- | --- |")
    for name, took in {"forward of all tokens": forward, **stages}.items():
        print(f"| {name} | {took:.1f} | {args.blocks * took:.0f} |")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{rows.numel()} tokens; {most:.1f} GiB at most; {pruned.report.params}")


if __name__ == "__main__":
    main()
