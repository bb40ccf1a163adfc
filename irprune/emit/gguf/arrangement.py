"""How transformers rearranges a tensor when it reads a GGUF file, seen by trial and undone, so that
what it reads is what was meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from irprune.errors import IrpruneError

__all__ = ["Arrangement", "arranged", "arrangement"]


@dataclass(frozen=True)
class Arrangement:
    """How transformers makes a tensor of what the file holds: ``flipped``, its rows taken from
    ``rows`` of the file, and ``shift`` added."""

    flipped: bool
    rows: NDArray[np.int64]
    shift: float


def arrangement(reader: Any, name: str, shape: tuple[int, ...]) -> Arrangement:
    """Seen on two columns of numbers that count. Raises IrpruneError where it is another thing."""
    count = shape[0]
    rows = np.arange(count, dtype=np.float64)
    probe = rows if len(shape) == 1 else np.stack((rows, rows + count), 1)
    for flipped in (False, True):
        there = probe.T if flipped else probe
        read = np.asarray(reader.process(there.copy(), name).weights)
        shift = float(np.asarray(reader.process(np.zeros_like(there), name).weights).flat[0])
        if read.shape == probe.shape:
            places = np.rint(read - shift).astype(np.int64)
            first = places if places.ndim == 1 else places[:, 0]
            whole = places.ndim == 1 or np.array_equal(places[:, 1], first + count)
            if whole and np.array_equal(np.sort(first), np.arange(count)):
                return Arrangement(flipped, first, shift)
    raise IrpruneError(
        f"{name} is arranged in a way that irprune does not write",
        "",
        "write a folder: --format hf",
    )


def arranged(reader: Any, name: str, value: torch.Tensor) -> torch.Tensor:
    """``value`` as the file has it, so that what transformers makes of it when it reads the file is
    ``value`` again."""
    how = arrangement(reader, name, tuple(value.shape))
    if how.shift:
        value = value.float() - how.shift
    if not np.array_equal(how.rows, np.arange(len(how.rows))):
        out = torch.empty_like(value)
        out[torch.from_numpy(how.rows)] = value
        value = out
    return value.T if how.flipped else value
