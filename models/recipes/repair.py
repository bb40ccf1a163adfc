"""Prune to half of the multiply-accumulates and repair with 128 images: no training at all.

python models/recipes/repair.py
"""

from __future__ import annotations

from common import BATCH, dense, line

import irprune


def main(epochs: int = 20, images: int = 128) -> float:
    model, data = dense(epochs)
    line("dense", model, data)
    example = (data.train.images[:2],)
    sliced = irprune.prune(model, example, budget={"macs": 0.5}, dynamic_shapes=BATCH)
    line("half of the MACs, sliced", sliced.module, data)
    pruned = irprune.prune(
        model,
        example,
        budget={"macs": 0.5},
        dynamic_shapes=BATCH,
        calibration=data.val.images[:images],
        repair=True,
    )
    print(pruned.report.repair)
    return line("half of the MACs, repaired", pruned.module, data)


if __name__ == "__main__":
    main()
