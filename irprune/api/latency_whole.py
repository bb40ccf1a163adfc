"""Whole models on onnxruntime: the original and its cuts, timed in turns; and where the original's
time goes.

A model of torch is exported once. Its cuts are made in that file, by the same plan, since an export
takes longer than all else."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from irprune.api.sizes_that_run import sizes_that_run
from irprune.choice.plan import Plan
from irprune.choice.replay import choose_by_plan
from irprune.driver.pipelines import analyse
from irprune.emit.backends.base import backend_of
from irprune.errors import IrpruneError
from irprune.frontend.capture import capture
from irprune.ir.graph import Graph
from irprune.latency.kernels import kernel_times
from irprune.latency.predict import Parts, Predictor
from irprune.latency.table import Table
from irprune.ops.onnx.importer import multiplies
from irprune.run.inputs import random_inputs
from irprune.run.session import providers_for, session
from irprune.run.timing import Timing, interleaved

__all__ = ["WholeModel", "feed", "write"]


class WholeModel:
    """The original as an ONNX file, ready to be timed beside its cuts; a context, for it keeps
    files while it is open.

    ``device`` and ``threads`` as in ``irprune bench``. One thread on a CPU is timed by that
    thread's own clock, which stands still while other programs run. Raises IrpruneError where the
    model cannot be written or run."""

    def __init__(
        self, graph: Graph, device: str = "auto", threads: int = 0, seconds: float = 1.0
    ) -> None:
        self.graph, self.device, self.threads, self.seconds = (
            graph,
            device.split(":")[0],
            threads,
            seconds,
        )
        self.provider = providers_for(self.device)[0]
        alone = threads == 1 and self.provider == "CPUExecutionProvider"
        self.clock = time.thread_time if alone else time.perf_counter
        self.exported: Graph | None = None  # the file of a model of torch, analysed

    def __enter__(self) -> WholeModel:
        self.folder = tempfile.TemporaryDirectory(prefix="irprune-")
        try:
            self.file = write(self.graph.copy(), Path(self.folder.name) / "original" / "model.onnx")
            self.feed = feed(self.graph, self.file)
            self.original = session(self.file, self.device, "", self.threads)
            self.exported = _captured(self.graph, self.file)
            self.before = interleaved(
                {"before": self._call(self.original)}, self.seconds, most=1000, clock=self.clock
            )["before"]
        except BaseException:
            self.folder.cleanup()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.folder.cleanup()

    def _call(self, running: Any) -> Any:
        return lambda: running.run(None, self.feed)

    def predictor(self, table: Table | None, say: Callable[[str], None]) -> Predictor:
        """What predicts the latency of cuts of the original from the times of its operators.

        Args:
            table: The times; measured on this machine, where they are not known, if None.
            say: Hears how many operators were measured.
        """

        def tell(done: int, total: int) -> None:
            if done % 10 == 0 or done == total:
                say(f"operators measured: {done} of {total}")

        known = Table.here(self.device, self.threads) if table is None else table
        return Predictor(self.graph, known, self.parts(), tell=tell)

    def parts(self, runs: int = 5) -> Parts | None:
        """Where the original's time goes, scaled to its median; None where the profile says nothing
        of it (other than on a CPU)."""
        if self.provider != "CPUExecutionProvider":
            return None
        running = session(
            self.file, self.device, str(Path(self.folder.name) / "profile"), self.threads
        )
        for _ in range(runs + 1):
            running.run(None, self.feed)
        found = [run for run in kernel_times(running) if run]
        least = {key: min(run.get(key, 0.0) for run in found) for key in found[0]}
        products = sum(t for (_, name), t in least.items() if multiplies(name))
        rest = sum(least.values()) - products
        if not products + rest:
            return None
        overhead = (
            max(self.before.low - products - rest, 0.0)
            if self.before.low < 2 * (products + rest)
            else 0.0
        )
        scale = self.before.median / (products + rest + overhead)
        return Parts(products * scale, rest * scale, overhead * scale)

    def beside(
        self, chosen: Graph, cut: Callable[[Graph], Graph], longer: float = 1.0
    ) -> tuple[Timing, Timing]:
        """The original and what ``cut`` makes of it by the choice of ``chosen``, timed in turns,
        ``longer`` times as long as usual."""
        file = self._written(chosen, cut)
        calls = {
            "before": self._call(self.original),
            "after": self._call(session(file, self.device, "", self.threads)),
        }
        times = interleaved(calls, self.seconds * longer, most=1000, clock=self.clock)
        return times["before"], times["after"]

    def _written(self, chosen: Graph, cut: Callable[[Graph], Graph]) -> Path:
        path = Path(self.folder.name) / "cut" / "model.onnx"
        if self.exported is not None:
            try:
                choose_by_plan(Plan.from_graph(chosen), self.exported)
                return write(cut(self.exported), path)
            except (
                IrpruneError
            ):  # the exporter merged what the plan keeps apart: every cut is exported by itself
                self.exported = None
        return write(cut(chosen), path)


def _captured(graph: Graph, file: Path) -> Graph | None:
    """The file that a model of torch was exported to, ready to be cut; None for a model that is a
    file, or where it cannot be read."""
    if not backend_of(graph).exports:
        return None
    try:
        return analyse(capture(file))
    except IrpruneError:
        return None


def write(graph: Graph, path: Path) -> Path:
    """A graph as an ONNX file, whichever way it came in; a model of torch with the sizes of the
    example, which are those that are timed."""
    path.parent.mkdir(exist_ok=True)
    still = graph.copy()
    still.sizes, still.guards = {}, []
    return backend_of(graph).write_onnx(still, None, path)


def feed(graph: Graph, file: Path) -> Mapping[str, Any]:
    """Inputs for the file: the example's shapes; where sizes are open, plausible ones at which it
    runs."""
    if not backend_of(graph).exports:
        return random_inputs(graph, sizes_that_run(graph, session(file, "cpu")), default=1)
    from irprune.emit.bridge.torch_onnx import feed_of, file_inputs
    from irprune.frontend.torch.source import torch_source

    source = torch_source(graph)
    return feed_of(source.args, source.kwargs, source, file_inputs(file))
