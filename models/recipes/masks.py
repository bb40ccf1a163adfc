"""Two of every four weights zero, held at zero through an epoch of training.

python models/recipes/masks.py
"""

from __future__ import annotations

import torch
from common import BATCH, dense, epoch, line

import irprune
from irprune.emit.torch.module import emit_module
from irprune.passes.infer_axes import InferAxes
from irprune.passes.mask import Mask, apply_masks


def main(epochs: int = 20, tune: int = 1) -> float:
    model, data = dense(epochs)
    line("dense", model, data)
    graph = irprune.capture(model, (data.train.images[:2],), dynamic_shapes=BATCH)
    InferAxes().run(graph)
    mask = Mask("2:4", calibration=data.val.images[:128])
    masks = mask.run(graph).data["masks"]
    module = emit_module(graph)
    line("2:4", module, data)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    for _ in range(tune):
        epoch(module, data, optimizer, after=[lambda: apply_masks(module, masks)])
    weight = dict(module.named_parameters())["blocks.0.conv1.weight"]
    assert int((weight.flatten(1).unflatten(1, (-1, 4)) != 0).sum(-1).max()) <= 2
    return line("2:4, trained on", module, data)


if __name__ == "__main__":
    main()
