"""An emitted module beside the ONNX file that was exported from it, every output on onnxruntime."""

from __future__ import annotations

from pathlib import Path

import torch

from irprune.emit.bridge.torch_onnx import feed_of, file_inputs
from irprune.frontend.torch.source import TorchSource
from irprune.ops.arrays import as_numpy
from irprune.run.inputs import flat_tensors, redraw, to_device
from irprune.run.precision import full_float32
from irprune.run.stored_tensor import module_device
from irprune.validate.parity import Parity, measure

__all__ = ["compare"]


def compare(
    module: torch.nn.Module,
    source: TorchSource,
    path: str | Path,
    device: str = "auto",
    seed: int = 1,
) -> Parity:
    """Every output of the file against the module's, on random inputs."""
    args, kwargs = redraw(source.args, source.kwargs, seed)
    placed = to_device((args, kwargs), module_device(module))
    with torch.no_grad(), full_float32():
        expected = flat_tensors(module(*placed[0], **placed[1]))
    names = file_inputs(path)
    return measure(
        path, feed_of(args, kwargs, source, names), [as_numpy(t) for t in expected], device
    )
