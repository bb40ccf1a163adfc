"""Prune in five steps with an epoch of training after each; run it again after it was stopped and it goes on.

    python models/recipes/iterative.py
"""

from __future__ import annotations

import tempfile

import torch
from common import BATCH, dense, epoch, line

from irprune.schedule import schedule


def main(epochs: int = 20, steps: int = 5, checkpoint: str | None = None) -> float:
    model, data = dense(epochs)
    line("dense", model, data)
    share = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for pruned in schedule(model, (data.train.images[:2],), ratio=0.6, steps=steps, pace="cubic", checkpoint=checkpoint or folder,
                               dynamic_shapes=BATCH):
            epoch(pruned.module, data, torch.optim.AdamW(pruned.module.parameters(), 1e-3))
            share = line(pruned.report.notes[-1], pruned.module, data)
    return share


if __name__ == "__main__":
    main()
