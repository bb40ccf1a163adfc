"""Prune in five steps with an epoch of training after each; run it again after it was stopped and
it goes on to the same end.

python models/recipes/iterative.py run/
"""

from __future__ import annotations

import sys
import tempfile
from zlib import crc32

import torch
from common import BATCH, dense, epoch, line

import irprune


def main(epochs: int = 20, steps: int = 5, checkpoint: str | None = None) -> float:
    model, data = dense(epochs)
    line("dense", model, data)
    share = 0.0
    with tempfile.TemporaryDirectory() as folder:
        cuts = irprune.schedule(
            model,
            (data.train.images[:2],),
            ratio=0.6,
            steps=steps,
            pace="cubic",
            checkpoint=checkpoint or folder,
            dynamic_shapes=BATCH,
        )
        for pruned in cuts:
            step = pruned.report.notes[-1]
            # A step draws the same, whether the run was stopped before it or not
            torch.manual_seed(crc32(step.encode()))
            epoch(pruned.module, data, torch.optim.AdamW(pruned.module.parameters(), 1e-3))
            share = line(step, pruned.module, data)
    return share


if __name__ == "__main__":
    main(checkpoint=sys.argv[1] if len(sys.argv) > 1 else None)
