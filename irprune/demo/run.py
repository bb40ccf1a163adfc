"""The whole pipeline on a model that is trained in the run: train, prune, prove, repair, fine-tune,
export, compare.

The residual CNN of ``irprune.demo.digits`` on scikit-learn's digits; everything that is printed was
measured in this run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from irprune.api.calls import prune
from irprune.api.pruned import Pruned
from irprune.api.report import Report
from irprune.base.format import human
from irprune.demo.digits import Data, DigitNet, accuracy, load_data, train
from irprune.emit.bridge.torch_onnx import export_onnx
from irprune.frontend.torch.source import torch_source
from irprune.run.session import run_session, session
from irprune.run.timing import interleaved
from irprune.validate.module_parity import compare

if TYPE_CHECKING:
    from irprune.run.timing import Timing

__all__ = ["Demo", "run_demo"]

WIDTH, DEPTH, EPOCHS, TUNING = 24, 2, 30, 4
BATCH = 64

Progress = Callable[[str, int, int, str], None]  # stage, step, of how many, what to show beside it


@dataclass
class Demo:
    """What the run measured; accuracies are of 360 test images, times are medians for a batch of 64
    on onnxruntime."""

    accuracy_before: float
    accuracy_repaired: float
    accuracy_after: float
    report: Report
    file_before: int
    file_after: int
    latency_before: Timing
    latency_after: Timing
    folder: Path
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {
            k: getattr(self, k)
            for k in (
                "accuracy_before",
                "accuracy_repaired",
                "accuracy_after",
                "file_before",
                "file_after",
            )
        }
        times = {k: getattr(self, k).as_dict() for k in ("latency_before", "latency_after")}
        return {
            **plain,
            **times,
            "report": self.report.as_dict(timings=True),
            "folder": str(self.folder),
            "seconds": {k: round(v, 2) for k, v in self.seconds.items()},
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table: what, before, after, and what is left of it or between the two."""
        r = self.report
        speed = self.latency_before.median / self.latency_after.median
        rows = [
            (
                "accuracy",
                f"{self.accuracy_before:.1%}",
                f"{self.accuracy_after:.1%}",
                f"{self.accuracy_repaired:.1%} after the repair, before fine-tuning",
            )
        ]
        rows.append(
            (
                "MACs per image",
                human(r.macs.before / BATCH),
                human(r.macs.after / BATCH),
                f"{r.macs.left:.1%} left",
            )
        )
        rows.append(
            (
                "parameters",
                human(r.params.before),
                human(r.params.after),
                f"{r.params.left:.1%} left",
            )
        )
        left = self.file_after / self.file_before
        rows.append(
            (
                "ONNX file",
                f"{human(self.file_before)}B",
                f"{human(self.file_after)}B",
                f"{left:.1%} left",
            )
        )
        before, after = (
            f"{t.median * 1e3:.2f} ms" for t in (self.latency_before, self.latency_after)
        )
        rows.append((f"latency, {BATCH} images", before, after, f"{speed:.2f} times faster"))
        return rows

    def checks(self) -> list[tuple[str, str, str]]:
        """What the proof, the repair and the comparison measured, each with what it says."""
        return [
            (
                "proof",
                "the pruned net computes what the original does without the dropped channels",
                str(self.report.proof),
            ),
            (
                "repair",
                "what is left was refitted to the original on the training images, without labels",
                str(self.report.repair),
            ),
            (
                "parity",
                "the ONNX file computes on onnxruntime what the module does",
                str(self.report.parity),
            ),
        ]


def run_demo(
    folder: Path,
    ratio: float = 0.5,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Demo:
    """Train, prune, prove, repair, fine-tune, export and compare; writes both ONNX files and the
    pruned model to ``folder``."""
    threads = torch.get_num_threads()
    # On images this small threads wait for each other longer than they work
    torch.set_num_threads(1)
    try:
        return _run(folder, ratio, epochs, seed, progress or (lambda *_: None))
    finally:
        torch.set_num_threads(threads)


def _run(folder: Path, ratio: float, epochs: int, seed: int, tell: Progress) -> Demo:
    seconds: dict[str, float] = {}
    data = load_data(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitNet(WIDTH, DEPTH)
    began = time.perf_counter()
    before = _trained(model, data, "training", epochs, 4e-3, seed, tell)
    seconds["train"] = time.perf_counter() - began

    tell("pruning and proving", 0, 1, "")
    images = data.train.images
    pruned = prune(
        model,
        (images[:BATCH],),
        ratio=ratio,
        importance="magnitude",
        calibration=images,
        repair="least_squares",
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
    )
    repaired = accuracy(pruned.module, data.test)
    tell("pruning and proving", 1, 1, str(pruned.report.proof))

    began = time.perf_counter()
    after = _trained(pruned.module, data, "fine-tuning", min(TUNING, epochs), 1e-3, seed, tell)
    pruned.module.eval()
    seconds["fine-tune"] = time.perf_counter() - began
    return _exported(
        model, pruned, folder, (before, repaired, after), {**pruned.report.seconds, **seconds}, tell
    )


def _trained(
    model: torch.nn.Module,
    data: Data,
    stage: str,
    epochs: int,
    lr: float,
    seed: int,
    tell: Progress,
) -> float:
    def step(epoch: int, loss: float, validation: float) -> None:
        tell(stage, epoch + 1, epochs, f"loss {loss:.3f}, validation {validation:.1%}")

    tell(stage, 0, epochs, "")
    return train(model, data, epochs, seed, lr, step)


def _exported(
    model: torch.nn.Module,
    pruned: Pruned,
    folder: Path,
    scores: tuple[float, float, float],
    seconds: dict[str, float],
    tell: Progress,
) -> Demo:
    """Both models as ONNX, compared with their modules and timed on onnxruntime in turns."""
    tell("exporting and comparing", 0, 3, "")
    pruned.save(folder)
    tell("exporting and comparing", 1, 3, str(pruned.report.parity))
    source = torch_source(pruned.graph)
    whole = export_onnx(model.eval(), source, folder / "original.onnx")
    compare(model, source, whole, "cpu")
    tell("exporting and comparing", 2, 3, "timing")
    feed = {"x": source.args[0].numpy()}
    running = {path: session(path, "cpu", threads=1) for path in (whole, folder / "model.onnx")}
    times = list(
        interleaved(
            {path.name: partial(run_session, s, feed) for path, s in running.items()}
        ).values()
    )
    tell("exporting and comparing", 3, 3, "")
    sizes = [path.stat().st_size for path in running]
    return Demo(
        scores[0],
        scores[1],
        scores[2],
        pruned.report,
        sizes[0],
        sizes[1],
        times[0],
        times[1],
        folder,
        seconds,
    )
