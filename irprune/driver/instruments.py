"""What the driver puts around passes: verifying, timing, printing, comparing, dumping. A pass knows
nothing of them."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from irprune.base.atomic_write import write_text
from irprune.driver.verify import InvalidGraph, verify
from irprune.errors import CheckFailed, IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.text import to_text
from irprune.passes.result import PassResult

__all__ = ["Dump", "Instrument", "PrintAfterAll", "PrintDiff", "Time", "Verify"]

Say = Callable[[str], None]


class Instrument:
    """Does nothing; the base of the others. ``index`` counts passes from 1."""

    def start(self, graph: Graph) -> None:
        """Before the first pass."""

    def before(self, graph: Graph, name: str, index: int) -> None:
        """Before a pass, in the order of the instruments."""

    def after(self, graph: Graph, name: str, index: int, result: PassResult) -> None:
        """After a pass, in the opposite order, with what it returned."""


class Snapshot:
    """All of a graph that a pass can change, to be compared: its text, its scores, its weights'
    loaders, how its nodes are spelled and which layers are to be two."""

    def __init__(self, graph: Graph) -> None:
        self.text = to_text(graph)
        # Held, so that an identity is not given out again
        self.loaders = [w.load for w in graph.weights.values()]
        self.spelled = [(n.origin.dialect, n.origin.target, n.origin.layout) for n in graph.nodes]
        self.low_rank = dict(graph.low_rank)
        self.scores = [
            (a.id, crc32(np.ascontiguousarray(s).tobytes())) for a, s in graph.scores.items()
        ]

    def differs(self, other: Snapshot) -> str:
        """What is different, or ""."""
        if self.text != other.text:
            return "the text"
        if len(self.loaders) != len(other.loaders) or any(
            a is not b for a, b in zip(self.loaders, other.loaders, strict=True)
        ):
            return "the values of a weight"
        return (
            "the scores"
            if self.scores != other.scores
            else "the spelling of a node"
            if self.spelled != other.spelled
            else "the rank of a layer"
            if self.low_rank != other.low_rank
            else ""
        )


@dataclass
class Verify(Instrument):
    """Check the graph before the first pass and after every one, and that each told the truth about
    changing it.

    Raises CheckFailed; ``say`` gets the lines about the fault. ``deep`` compares every type with
    torch's."""

    say: Say | None = None
    deep: bool = False
    _last: Snapshot | None = field(default=None, repr=False)

    def start(self, graph: Graph) -> None:
        self._check(graph, "before the first pass", "this is a bug of the capture")
        self._last = Snapshot(graph)

    def after(self, graph: Graph, name: str, index: int, result: PassResult) -> None:
        self._check(graph, f"after {name}", "this is a bug of the pass")
        now = Snapshot(graph)
        different = now.differs(self._last) if self._last is not None else ""
        self._last = now
        if different and not result.changed:
            raise CheckFailed(
                f"{name} said that nothing changed, but {different} did",
                f"pass {index}",
                "return PassResult(True) from run",
            )
        if result.changed and not different:
            raise CheckFailed(
                f"{name} said that it changed the graph, but nothing did",
                f"pass {index}",
                "return PassResult(False) from run",
            )

    def _check(self, graph: Graph, when: str, hint: str) -> None:
        try:
            verify(graph, self.deep)
        except InvalidGraph as broken:
            if self.say is not None and broken.excerpt:
                self.say(broken.excerpt)
            raise CheckFailed(f"the graph is broken {when}: {broken.first}", "", hint) from broken


@dataclass
class Time(Instrument):
    """Seconds of each pass. Stands last, so that it measures the pass and no other instrument."""

    clock: Callable[[], float] = time.perf_counter
    rows: list[tuple[str, float, PassResult]] = field(default_factory=list)
    _started: float = 0.0

    def before(self, graph: Graph, name: str, index: int) -> None:
        self._started = self.clock()

    def after(self, graph: Graph, name: str, index: int, result: PassResult) -> None:
        self.rows.append((name, self.clock() - self._started, result))

    def table(self) -> str:
        """Milliseconds and whether the graph changed, a line for each pass, and their sum."""
        rows = [(name, seconds, result.changed) for name, seconds, result in self.rows]
        rows.append(("total", sum(s for _, s, _ in rows), any(changed for *_, changed in rows)))
        width = max(len(name) for name, _, _ in rows)
        return "\n".join(
            f"{name:<{width}}  {s * 1e3:10.2f} ms  {'changed' if changed else 'same'}"
            for name, s, changed in rows
        )


@dataclass
class PrintAfterAll(Instrument):
    """The text of the graph after every pass."""

    say: Say

    def after(self, graph: Graph, name: str, index: int, result: PassResult) -> None:
        self.say(
            f"# after {name} ({'changed' if result.changed else 'nothing changed'})\n{to_text(graph)}"
        )


@dataclass
class PrintDiff(Instrument):
    """What every pass changed, as a unified diff of the text."""

    say: Say
    around: int = 2
    _last: list[str] = field(default_factory=list, repr=False)

    def start(self, graph: Graph) -> None:
        self._last = to_text(graph).splitlines()

    def after(self, graph: Graph, name: str, index: int, result: PassResult) -> None:
        now = to_text(graph).splitlines() if result.changed else self._last
        lines = list(
            difflib.unified_diff(
                self._last, now, f"before {name}", f"after {name}", n=self.around, lineterm=""
            )
        )
        self.say("\n".join(lines) if lines else f"# {name}: no difference in the text")
        self._last = now


@dataclass
class Dump(Instrument):
    """The text before the first pass and after every one, in numbered files of ``folder``:
    ``00-input.irp``, ``01-infer-axes.irp`` ..."""

    folder: Path
    files: list[Path] = field(default_factory=list)

    def start(self, graph: Graph) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as refused:
            raise IrpruneError(
                f"no folder can be made: {refused.strerror}",
                str(self.folder),
                "name another folder",
            ) from refused
        self._write(graph, "00-input")

    def after(self, graph: Graph, name: str, index: int, result: PassResult) -> None:
        self._write(graph, f"{index:02}-{name}")

    def _write(self, graph: Graph, name: str) -> None:
        self.files.append(write_text(self.folder / f"{name}.irp", to_text(graph)))


def describe(rows: list[tuple[str, float, PassResult]]) -> list[dict[str, Any]]:
    """The rows of ``Time`` as JSON has them."""
    return [
        {"pass": name, "seconds": seconds, "changed": result.changed, "notes": list(result.notes)}
        for name, seconds, result in rows
    ]
