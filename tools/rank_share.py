"""How much of the statistics' time N ranks take, each on one thread: the measurement of
docs/results/scale.md.

    python tools/rank_share.py --ranks 2

A decoder of transformers with random weights and random tokens is scored (means, variances and Gram
matrices of all that its layers read) and repaired by least squares, on one process and on several.
What is timed are the sums over calibration data, with all that is sent for them; of several
repeats the least counts, since the machine may be busy. Time of the processor is printed beside it:
that of the busiest rank."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parsed() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def timed(given: argparse.Namespace) -> dict[str, float]:
    """Seconds of one prune: of the sums, by the clock and by the processor, and of all of it."""
    import torch
    from torch import nn

    import irprune
    from irprune.run import statistics, total, walk

    class Block(nn.Module):
        """Attention of four heads and an MLP, around a residual stream."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.heads = 4
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, t, w = x.shape
            y = self.first(x)
            q, k, v = (
                f(y).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            seen = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.o(seen.transpose(1, 2).reshape(n, t, w))
            made: torch.Tensor = x + self.down(torch.relu(self.up(self.second(x))))
            return made

    sums = {"clock": 0.0, "processor": 0.0}

    def watched(summed: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            clock, processor = time.perf_counter(), time.process_time()
            made = summed(*args)
            sums["clock"] += time.perf_counter() - clock
            sums["processor"] += time.process_time() - processor
            return made

        return run

    for module in (statistics, total, walk):
        module.summed = watched(module.summed)  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = nn.Sequential(
        *(Block(given.width) for _ in range(given.layers)), nn.Linear(given.width, 8)
    )
    data = torch.randn(given.samples, given.length, given.width)
    began = time.perf_counter()
    irprune.prune(
        model,
        (data[:2],),
        ratio=0.5,
        calibration=list(data.split(4)),
        importance="contribution",
        repair="least_squares",
        proof=False,
    )
    return {**sums, "whole": time.perf_counter() - began}


def child(given: argparse.Namespace) -> None:
    """One rank: the first prints what all took."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    own = timed(given)
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    if dist.get_rank() == 0:
        print(json.dumps({k: max(e[k] for e in every) for k in own}))
    dist.destroy_process_group()


def run(size: int, arguments: list[str]) -> dict[str, float]:
    """What ``size`` ranks take."""
    made = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(size), str(Path(__file__)), "--child", *arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(made.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Print a row for one rank and one for all."""
    given = parsed()
    if given.child:
        child(given)
        return
    least: dict[int, dict[str, float]] = {}
    for _ in range(given.repeats):
        for size in (1, given.ranks):
            found = run(size, [a for a in sys.argv[1:] if a != "--child"])
            known = least.setdefault(size, found)
            least[size] = {k: min(v, known[k]) for k, v in found.items()}
    alone = least[1]
    print("ranks | seconds of sums | of the processor | whole prune")
    for size, took in least.items():
        shown = " | ".join(
            f"{took[k]:.2f} ({took[k] / alone[k]:.0%})" for k in ("clock", "processor", "whole")
        )
        print(f"{size} | {shown}")


if __name__ == "__main__":
    main()
