"""Parity: the emitted module against the emitted ONNX file on onnxruntime, every output, and who
really ran each node."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from irprune.base.tolerance import PARITY
from irprune.errors import IrpruneError
from irprune.run.error import array_error
from irprune.run.session import run_session, session

__all__ = ["Parity", "compare_arrays", "measure"]


@dataclass
class Parity:
    """``max_error`` over all outputs, relative to each output's largest magnitude; ``nodes`` counts
    the nodes each provider ran."""

    max_error: float
    provider: str
    nodes: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    tolerance: float = PARITY

    @property
    def passed(self) -> bool:
        return self.max_error <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        ran = ", ".join(f"{n} nodes on {p}" for p, n in self.nodes.items())
        outputs = f"{len(self.outputs)} output{'s' * (len(self.outputs) != 1)}"
        return (
            f"{'equal' if self.passed else 'DIFFERENT'}: error {self.max_error:.1e} over {outputs}, "
            f"tolerance {self.tolerance:.0e} ({ran or self.provider})"
        )


def compare_arrays(
    ours: Sequence[NDArray[Any]], theirs: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    """The relative error of each output; infinite where shapes or NaNs differ."""
    return {name: array_error(b, a) for (name, b), a in zip(theirs.items(), ours, strict=True)}


def measure(
    path: str | Path,
    feed: Mapping[str, NDArray[Any]],
    expected: Sequence[NDArray[Any]],
    device: str = "auto",
) -> Parity:
    """Run the file on ``feed`` and compare each output with ``expected``, which is in the file's
    order of outputs."""
    with tempfile.TemporaryDirectory() as folder:
        running = session(path, device, profile=str(Path(folder) / "profile"), exact=True)
        outputs = run_session(running, feed)
        nodes = _ran_on(Path(running.end_profiling()))
    if len(outputs) != len(expected):
        raise IrpruneError(
            f"{len(outputs)} outputs in the file, {len(expected)} from the module",
            str(path),
            "report this as a bug",
        )
    errors = compare_arrays(expected, outputs)
    provider = max(nodes, key=lambda p: nodes[p]) if nodes else running.get_providers()[0]
    return Parity(max(errors.values(), default=0.0), provider, nodes, errors)


def _ran_on(profile: Path) -> dict[str, int]:
    """How many nodes each provider ran, from onnxruntime's own profile."""
    ran: dict[str, set[str]] = {}
    for event in json.loads(profile.read_text()):
        provider = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and provider:
            ran.setdefault(provider, set()).add(event["name"])
    return {p: len(names) for p, names in sorted(ran.items())}
