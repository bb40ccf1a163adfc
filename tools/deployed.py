"""Models that people deploy, as their packages ship them, pruned at 0.5 beside onnxsim's pruner.

    pip install 'irprune[deployed]'
    python tools/deployed.py                  the table goes to docs/results/deployed.md
    python tools/deployed.py --out /tmp/t.md --only nudenet

Each file is pruned as it is and at the sizes that it runs at, without data, with the proof; the
result is put in the place of the package's file and run through the package's own code before and
after the model. What was learned is not kept by a prune of half of every width without data or
training: what is measured is that it runs there, how small and how fast it is.
``tools/tasks.py`` measures accuracy."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from shipped import module_folder, shipped
from tables import RESULTS, write_table

import irprune
from irprune.run.session import session
from irprune.run.timing import interleaved

HEAD = (
    "model",
    "parameters left",
    "at",
    "MACs there",
    "MACs left",
    "proof as it is",
    "proof at sizes",
    "latency, ms",
    "of the time",
    "in its package",
    "onnxsim, parameters left",
    "onnxsim's file runs",
)


@dataclass(frozen=True)
class Deployed:
    """A model of a package.

    Args:
        file: gives the file.
        call: the shapes of its inputs where people run it, or the value of one without dimensions.
        used: runs the package's own code with the file in place of its own, and says what came out.
    """

    file: Callable[[], Path]
    call: dict[str, tuple[int, ...] | int]
    used: Callable[[Path], str]


def _picture(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def _detects(path: Path) -> str:
    found = importlib.import_module("nudenet").NudeDetector(str(path)).detect(_picture(320, 320))
    return f"{len(found)} boxes"


def _hears(path: Path) -> str:
    import torch

    model = importlib.import_module("silero_vad.utils_vad").OnnxWrapper(str(path))
    spoken = model(torch.zeros(1, 512), 16000)
    return f"speech {float(spoken):.2f}"


def _tells(path: Path) -> str:
    magika = importlib.import_module("magika")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / path.stem
        shutil.copytree(shipped("file types").parent, place)
        shutil.copy(path, place / "model.onnx")
        told = magika.Magika(model_dir=place).identify_bytes(b"def f(x):\n    return x + 1\n" * 9)
    return f"{told.output.label}"


def _reads(option: str) -> Callable[[Path], str]:
    def used(path: Path) -> str:
        reader = importlib.import_module("rapidocr_onnxruntime").RapidOCR(**{option: str(path)})
        page = np.full((96, 320, 3), 255, np.uint8)
        page[30:60, 40:280:12] = 0
        found, _ = reader(page, use_cls=True)
        return f"{len(found or [])} lines"

    return used


def _ocr(name: str) -> Callable[[], Path]:
    return lambda: module_folder("rapidocr_onnxruntime", "rapidocr-onnxruntime") / "models" / name


MODELS = {
    "rapidocr, recognition": Deployed(
        _ocr("ch_PP-OCRv4_rec_infer.onnx"), {"x": (1, 3, 48, 320)}, _reads("rec_model_path")
    ),
    "rapidocr, detection": Deployed(
        _ocr("ch_PP-OCRv4_det_infer.onnx"), {"x": (1, 3, 640, 640)}, _reads("det_model_path")
    ),
    "rapidocr, direction": Deployed(
        _ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        {"x": (1, 3, 48, 192)},
        _reads("cls_model_path"),
    ),
    "silero-vad": Deployed(
        lambda: module_folder("silero_vad", "silero-vad") / "data" / "silero_vad.onnx",
        {"input": (1, 576), "state": (2, 1, 128), "sr": 16000},
        _hears,
    ),
    "nudenet": Deployed(lambda: shipped("detection"), {"images": (1, 3, 320, 320)}, _detects),
    "magika": Deployed(lambda: shipped("file types"), {"bytes": (1, 2048)}, _tells),
    "basic-pitch": Deployed(
        lambda: shipped("notes"),
        {"serving_default_input_2:0": (1, 43844, 1)},
        lambda path: _runs(path),
    ),
}


def _runs(path: Path) -> str:
    """The model on onnxruntime alone: the package's own code takes TensorFlow's runtime."""
    running = session(path, "cpu", threads=1)
    made = running.run(None, {v.name: np.zeros([1, 43844, 1], "f4") for v in running.get_inputs()})
    return f"{len(made)} outputs, onnxruntime alone"


def _feed(running: Any, call: dict[str, tuple[int, ...] | int]) -> dict[str, Any]:
    types = {"tensor(float)": "f4", "tensor(int32)": "i4", "tensor(int64)": "i8"}
    return {
        v.name: np.asarray(call[v.name]).astype("i8")
        if isinstance(call[v.name], int)
        else np.ones(call[v.name], types[v.type])
        for v in running.get_inputs()
    }


def _milliseconds(paths: list[Path], call: dict[str, tuple[int, ...] | int]) -> list[float]:
    """Medians of the files' times, measured in turns."""
    sessions = [session(p, "cpu", threads=1) for p in paths]
    calls = {
        str(p): partial(running.run, None, _feed(running, call))
        for p, running in zip(paths, sessions, strict=True)
    }
    return [1e3 * t.median for t in interleaved(calls, float("inf"), most=12).values()]


def _parameters(path: Path) -> int:
    def of(graph: onnx.GraphProto) -> int:
        own = sum(int(np.prod(t.dims)) for t in graph.initializer)
        return own + sum(
            of(a.g) if a.HasField("g") else int(np.prod(a.t.dims)) if a.HasField("t") else 0
            for node in graph.node
            for a in node.attribute
        )

    return of(onnx.load(path).graph)


def measured(name: str, folder: Path) -> dict[str, Any]:
    """The row of one model; what fails is said in its place."""
    model = MODELS[name]
    source, out, rival = model.file(), folder / "small.onnx", folder / "rival.onnx"
    call = {
        k: np.array(v) if isinstance(v, int) else np.zeros(v, "f4") for k, v in model.call.items()
    }
    row: dict[str, Any] = {"model": name}
    proofs = []
    for kwargs in ({}, call):
        try:
            pruned = irprune.prune(source, (), kwargs, ratio=0.5, calibration=False)
            proofs.append(f"{pruned.report.proof.max_error:.1e}" if pruned.report.proof else "none")
        except irprune.IrpruneError as refused:
            proofs.append(f"no: {refused.what[:80]}")
            pruned = irprune.prune(source, (), kwargs, ratio=0.5, calibration=False, proof=False)
    report = pruned.report
    pruned.onnx(out)
    before, after = _milliseconds([source, out], model.call)
    row |= dict(zip(HEAD[5:7], proofs, strict=True))
    row |= {
        "parameters left": f"{report.params.left:.0%}",
        "at": report.sizes or "fixed sizes",
        "MACs there": f"{report.macs.before / 1e6:.1f} M",
        "MACs left": f"{report.macs.left:.0%}",
        "latency, ms": f"{before:.2f} -> {after:.2f}",
        "of the time": f"{after / before:.0%}",
    }
    for key, run in (
        ("in its package", lambda: model.used(out)),
        ("onnxsim, parameters left", lambda: _rival(source, rival)),
        ("onnxsim's file runs", lambda: _runs_at(rival, model.call)),
    ):
        try:
            row[key] = run()
        except Exception as failed:  # of packages that are not ours
            row[key] = f"no: {type(failed).__name__} {str(failed).splitlines()[0][:60]}"
    return row


def _rival(source: Path, out: Path) -> str:
    from onnxsim import pruning

    model = pruning.apply_structured_pruning(str(source), 0.5)
    onnx.save(pruning.apply_attention_head_pruning(model, 0.5), str(out))
    return f"{_parameters(out) / _parameters(source):.0%}"


def _runs_at(path: Path, call: dict[str, tuple[int, ...] | int]) -> str:
    running = session(path, "cpu", threads=1)
    running.run(None, _feed(running, call))
    return "yes"


@click.command()
@click.option("--only", multiple=True, help="Models whose names hold this.")
@click.option("--out", type=Path, default=RESULTS / "deployed.md")
@click.option("--json", "data", type=Path, help="The rows as JSON.")
def main(only: tuple[str, ...], out: Path, data: Path | None) -> None:
    """Measure and write the table."""
    rows = []
    for name in MODELS:
        if only and not any(part in name for part in only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(name, Path(folder)))
        click.echo(json.dumps(rows[-1]))
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join(str(row[key]).replace('|', '/') for key in HEAD)} |" for row in rows]
    write_table(out, "\n".join(lines))
    if data is not None:
        data.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
