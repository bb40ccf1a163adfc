"""What calibrated pruning costs: processor time of the defaults with a budget, in forward passes
over the calibration data, by stage, and peak memory.

Each model in a process of its own on one processor with one thread. The forward pass is timed
before and after, in batches of 64, and both are averaged, since a machine that others use is not
equally fast all the time. ``ocr`` is the line recogniser of rapidocr-onnxruntime, a file, whose
forward pass is irprune's own. ``score`` gathers Gram matrices, ranks and measures, ``repair``
refits; capture and proof are left out. Memory is what the process holds at most beyond model, data
and one forward pass."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from bench_against import Row, resident_mb, timed  # noqa: E402 - found beside this file
from bench_stages import apart  # noqa: E402

__all__ = ["HEAD", "MODELS", "holds", "line", "measured"]

# Samples of calibration data
MODELS = {
    "mobilenetv3_small": 256,
    "resnet50": 128,
    "vit_b16": 128,
    "convnext_t": 128,
    "bert": 256,
    "ocr": 128,
}
FORWARDS = 12  # that a run may cost
HEAD = (
    "model",
    "samples",
    "forward, s",
    "run, s",
    "in forwards",
    "score",
    "repair",
    "the rest",
    "memory, MB",
    "holds",
)


def measured(name: str, samples: int | None = None) -> Row:
    """The row of a model, from a process of its own."""
    return apart([name, str(samples or MODELS[name])], "bench_calibrated.py")


def holds(row: Row) -> bool:
    return cost(row) <= FORWARDS * float(row["forward"])


def cost(row: Row) -> float:
    """Seconds of everything behind the capture."""
    return float(row["cpu"] - row["stages"]["capture"])


def line(row: Row) -> tuple[str, ...]:
    """The cells of a row."""
    known = [row["stages"][s] for s in ("score", "repair")]
    whole = cost(row)
    shares = [s / whole for s in (*known, whole - sum(known))]
    return (
        row["model"],
        str(row["samples"]),
        f"{row['forward']:.1f}",
        f"{whole:.1f}",
        f"{whole / row['forward']:.1f}",
        *(f"{s:.0%}" for s in shares),
        f"{row['memory']:.0f}",
        "yes" if holds(row) else "NO",
    )


def _data(args: tuple[Any, ...], kwargs: dict[str, Any], samples: int) -> Any:
    """Inputs like the example's: smooth images, or drawn tokens."""
    import torch
    from torch.nn import functional as F

    image = args[0]
    if image.is_floating_point():
        coarse = torch.randn(samples, image.shape[1], 32, 32)
        return F.interpolate(coarse, size=image.shape[2:], mode="bilinear")
    repeated = {k: t[:1].repeat(samples, *[1] * (t.dim() - 1)) for k, t in kwargs.items()}
    tokens = torch.randint(1, 30000, (samples, *image.shape[1:]))
    return [{"input_ids": tokens, **repeated}]


def _model(name: str, samples: int) -> tuple[Any, Any, Any, Callable[[int, int], object]]:
    """What ``prune`` takes (the model, args and kwargs, options), the data, and a forward pass over
    a range of them."""
    import torch

    import models
    from models import mobilenetv3

    if name == "ocr":
        return _file(samples)
    if name == "mobilenetv3_small":
        case = models.get("mobilenetv3")
        model = mobilenetv3.build(rows=mobilenetv3.PUBLISHED_SMALL, hidden=1024).eval()
    else:
        case = models.get(name)
        model = case.build().eval()
    args, kwargs = case.example_inputs()
    data = _data(args, kwargs, samples)
    given = data[0] if isinstance(data, list) else {"x": data}

    def forward(start: int, stop: int) -> object:
        with torch.no_grad():
            return model(**{k: t[start:stop] for k, t in given.items()})

    return (model, args, kwargs), {"dynamic_shapes": case.dynamic}, data, forward


def _file(samples: int) -> tuple[Any, Any, Any, Callable[[int, int], object]]:
    """The same of a file, with lines of text for data."""
    import torch
    from task_text import LINES, _lines

    import irprune
    from irprune.run.interpret import evaluate

    path, example = str(LINES.model()), LINES.example()
    data = _lines(0, 0, samples)[0]
    graph = irprune.capture(path, (), example)

    def forward(start: int, stop: int) -> object:
        return evaluate(graph, [torch.from_numpy(data[start:stop])])

    return (path, (), example), {}, [{"x": data}], forward


def _measure(name: str, samples: int) -> Row:
    import torch

    import irprune
    from irprune.api.finish import Clock

    torch.manual_seed(0)
    torch.set_num_threads(1)
    call, options, data, over = _model(name, samples)

    def forward() -> float:
        begun = time.process_time()
        for at in range(0, samples, 64):
            over(at, min(at + 64, samples))
        return time.process_time() - begun

    Clock.now = time.process_time
    before = forward()
    held = resident_mb()
    pruned, row = timed(
        lambda: irprune.prune(*call, **options, budget={"macs": 0.5}, calibration=data, proof=False)
    )
    memory = resident_mb() - held
    report = pruned.report
    assert report.repair is not None
    return row | {
        "model": name,
        "samples": samples,
        "forward": (before + forward()) / 2,
        "stages": report.seconds,
        "memory": memory,
        "error": [report.repair.before, report.repair.after],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
