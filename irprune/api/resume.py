"""What a run has measured is kept in a file, for the next that measures the same."""

from __future__ import annotations

import zlib
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from irprune.base.journal import Journal
from irprune.ir.graph import Graph
from irprune.ir.text import to_text
from irprune.ops.arrays import as_numpy, is_meta, is_tensor
from irprune.run.ranks import current

if TYPE_CHECKING:
    from irprune.api.options import Options

__all__ = ["journal_of"]

# What scores depend on, beside the model and the data; a budget may change
_TOLD = ("importance", "normalise", "reduce", "seed", "loss", "keep", "ratios", "prefer")


def journal_of(graph: Graph, options: Options) -> Journal | None:
    """The journal in the file that ``resume`` names, for this model, these data and options; None
    where it names none or where there are no data. Raises IrpruneError where it cannot be
    written."""
    path: Any = options.values["resume"]
    if path is None or options.values["calibration"] is None:
        return None
    ranks = current()
    # One rank keeps it; the others know what it knows, and where larger things lie
    told = _fingerprint(graph, options) if ranks.leads else ""
    journal = Journal(Path(path), told) if ranks.leads else Journal(None)
    known, journal.folder = ranks.first((journal.known(), journal.folder))
    journal.learn(known)
    say = options.values["progress"] if ranks.leads else None
    if say is not None and journal.found:
        say(f"{journal.found} results are known from an earlier run ({path})")
    return journal


def _fingerprint(graph: Graph, options: Options) -> str:
    """Of everything that what is measured depends on."""
    from irprune.run.calibration import Calibration

    made = sha256(to_text(graph).encode())
    plain = options.plain()
    made.update(repr([(name, plain.get(name)) for name in _TOLD]).encode())
    for weight in graph.weights.values():
        made.update(_sum(weight.load()))
    for batch in Calibration(options.values["calibration"], graph):
        for tensor in batch.inputs:
            made.update(_sum(tensor))
    return made.hexdigest()


def _sum(array: Any) -> bytes:
    """A checksum of the array's bytes, with its shape."""
    if is_meta(array):
        return b"meta"
    if is_tensor(array):
        array = as_numpy(array.detach().float() if array.is_floating_point() else array.detach())
    held = np.ascontiguousarray(array)
    return repr((held.shape, zlib.crc32(held.view(np.uint8).data if held.size else b""))).encode()
