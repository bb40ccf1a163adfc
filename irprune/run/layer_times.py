"""How long each operator of an ONNX file takes on onnxruntime, by its own profile."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from irprune.run.session import session

__all__ = ["layer_times"]

_WARM = 2  # runs at the start that do not count
_SUFFIX = "_kernel_time"


def layer_times(
    path: Path, feed: Mapping[str, NDArray[Any]], device: str, threads: int, runs: int
) -> dict[str, tuple[str, float]]:
    """For each node that onnxruntime runs, in its order, the operator and the median of its seconds
    in ``runs`` calls. Nodes that it fuses stand under the name of one of them."""
    with tempfile.TemporaryDirectory(prefix="irprune-") as folder:
        running = session(path, device, str(Path(folder) / "profile"), threads)
        for _ in range(_WARM + runs):
            running.run(None, dict(feed))
        events = json.loads(Path(running.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, tuple[str, list[float]]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        op = str(event.get("args", {}).get("op_name", ""))
        found.setdefault(name.removesuffix(_SUFFIX), (op, []))[1].append(event["dur"] * 1e-6)
    return {name: (op, statistics.median(t[_WARM:] or t)) for name, (op, t) in found.items()}
