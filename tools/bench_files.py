"""Time and memory of ``irprune prune`` on ONNX files, whole process, without the proof and
without timing what comes out: a 100-MB ResNet-50, DenseNet-121, and a residual MLP of 2.4 GB in
external data, which is made for it and removed.

    python tools/bench.py --files

Seconds are of the processor, so that a busy machine tells the same, and the least of three runs of
the small files; wall time stands beside. What must hold: under 5 s and a peak of at most 2.5 times
the file for the 100-MB file, analysis of DenseNet-121 in under 50 ms, and no second copy of the
large one: a peak of at most a quarter of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_onnx import apart

__all__ = ["HEAD", "files", "holds", "line"]

HEAD = (
    "file",
    "size",
    "left",
    "seconds",
    "reading back",
    "wall",
    "peak",
    "peak / size",
    "analysis",
    "holds",
)
WIDTH, LAYERS = 4096, 9
_RUN = """import sys, time
import irprune.api.finish
import irprune.cli
irprune.api.finish.Clock.now = time.process_time
sys.exit(irprune.cli.run(sys.argv[1:]))"""
_LIMITS = {
    "resnet50": {"seconds": 5.0, "peak": 2.5},
    "densenet121": {"analysis": 0.05},
    "2.4 GB outside": {"peak": 0.25},
}


def files() -> list[dict[str, Any]]:
    """One row per file."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("resnet50", "densenet121"):
            path = Path(folder) / f"{name}.onnx"
            made = apart("export", path, path)
            rows.append(
                {
                    "file": name,
                    **(made if "failed" in made else _least([measured(path) for _ in range(3)])),
                }
            )
            path.unlink(missing_ok=True)
        rows.append({"file": "2.4 GB outside", **measured(large(Path(folder) / "large.onnx"))})
    return rows


def large(path: Path) -> Path:
    """A residual MLP with 2.4 GB of random numbers beside it, written block by block."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    random = np.random.default_rng(0)
    nodes, tensors, x = [], [], "x"
    with path.with_suffix(".bin").open("wb") as file:
        for k in range(LAYERS):
            for name, rows, columns in (
                (f"up{k}", WIDTH, 2 * WIDTH),
                (f"down{k}", 2 * WIDTH, WIDTH),
            ):
                tensor = TensorProto(
                    name=name,
                    data_type=TensorProto.FLOAT,
                    dims=(rows, columns),
                    data_location=TensorProto.EXTERNAL,
                )
                for key, value in (
                    ("location", path.with_suffix(".bin").name),
                    ("offset", file.tell()),
                    ("length", 4 * rows * columns),
                ):
                    tensor.external_data.add(key=key, value=str(value))
                for _ in range(0, rows, 512):
                    (random.standard_normal((512, columns), dtype=np.float32) / 64).tofile(file)
                tensors.append(tensor)
            nodes += [
                helper.make_node("MatMul", [x, f"up{k}"], [f"h{k}"]),
                helper.make_node("Relu", [f"h{k}"], [f"r{k}"]),
                helper.make_node("MatMul", [f"r{k}", f"down{k}"], [f"d{k}"]),
                helper.make_node("Add", [x, f"d{k}"], [f"x{k}"]),
            ]
            x = f"x{k}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,  # which every onnxruntime of today reads
    )
    path.write_bytes(model.SerializeToString())
    assert isinstance(onnx.load(path, load_external_data=False), onnx.ModelProto)
    return path


def measured(path: Path) -> dict[str, Any]:
    """Seconds, peak and what is left of one prune at 0.5, in a process of its own."""
    out = path.with_name("out.onnx")
    command = [
        sys.executable,
        "-c",
        _RUN,
        "prune",
        "--no-calibration",
        str(path),
        "-o",
        str(out),
        "--no-proof",
        "--no-bench",
        "--json",
    ]
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as talk:
        began = time.perf_counter()
        # Compiled once and kept, as where it is installed
        usual = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        child = subprocess.Popen(command, stdout=told, stderr=talk, env=usual)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        talk.seek(0)
        if child.returncode:
            return {"failed": (talk.read().strip().splitlines() or ["?"])[-1][:200]}
        report = json.loads(told.read())
    size = _size(path)
    row = {
        "size": size,
        "left": _size(out) / size,
        "seconds": used.ru_utime + used.ru_stime,
        "wall": wall,
        "peak": used.ru_maxrss * 1024 / size,
        "analysis": report["seconds"]["analyse"],
        "reading": sum(read["seconds"] for read in report["read_back"]),
    }
    for part in path.parent.glob("out.onnx*"):
        part.unlink()
    return row


def _least(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The run that took least; the first failure where there is one."""
    failed = next((r for r in rows if "failed" in r), None)
    return failed or {key: min(r[key] for r in rows) for key in rows[0]}


def _size(path: Path) -> int:
    """Bytes of a model with what lies beside it."""
    beside = (path.with_suffix(".bin"), *path.parent.glob(f"{path.name}*.data"))
    return sum(p.stat().st_size for p in (path, *beside) if p.exists())


def holds(row: dict[str, Any]) -> bool:
    """Whether a row meets what must hold."""
    return "failed" not in row and all(
        row[key] <= most for key, most in _LIMITS[row["file"]].items()
    )


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a row."""
    fine = "yes" if holds(row) else "NO"
    if "failed" in row:
        return (row["file"], row["failed"].replace("|", "/"), *[""] * 7, fine)
    return (
        row["file"],
        f"{row['size'] / 1e6:.0f} MB",
        f"{row['left']:.0%}",
        f"{row['seconds']:.2f}",
        f"{row['reading']:.2f}",
        f"{row['wall']:.2f}",
        f"{row['peak'] * row['size'] / 1e6:.0f} MB",
        f"{row['peak']:.2f}",
        f"{1e3 * row['analysis']:.0f} ms",
        fine,
    )
