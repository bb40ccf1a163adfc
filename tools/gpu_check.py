"""Check irprune on a GPU: the cases of models/ captured, pruned and proven there, their ONNX files
on onnxruntime's CUDA provider.

    python tools/gpu_check.py                       every case at full size on CUDA; the table goes
                                                    to docs/results/gpu.md
    python tools/gpu_check.py --small --case llama  one case, small
    python tools/gpu_check.py --device cpu --small  the same on the processor, to try this file
                                                    where no GPU is

Model and inputs lie on the device, so that capture, scoring, slicing, the module, the proof and the
export all work there. ``parity`` is the file against the module, ``ran on`` the provider that
onnxruntime's own profile names for each node. Latency is that of ``forward`` before and after, in
turns, and of the file with its transfers. The comparisons run in full float32, the latencies in
torch's default."""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from tables import RESULTS, write_table  # noqa: E402

HEAD = (
    "case",
    "left",
    "proof",
    "in",
    "passes",
    "capture",
    "parity",
    "ran on",
    "forward, ms",
    "pruned, ms",
    "ratio",
    "file, ms",
    "seconds",
    "holds",
)
TALK = Console(stderr=True, width=None if sys.stderr.isatty() else 180)
Row = dict[str, Any]


def checked(name: str, device: str, small: bool, ratio: float, seconds: float) -> Row:
    """One case; what went wrong as ``failed``."""
    import torch

    import irprune
    import models
    from irprune.run.inputs import over_tensors
    from irprune.run.timing import interleaved

    case = models.get(name)
    row: Row = {"case": name}
    torch.manual_seed(0)
    args, kwargs = over_tensors(case.example_inputs(small=small), lambda t: t.to(device))
    model = case.build(small=small).to(device).eval()
    began = time.perf_counter()
    try:
        pruned = irprune.prune(model, args, kwargs, ratio=ratio, device=device)
    except irprune.IrpruneError as refused:
        return row | (
            {"refused": str(refused)} if case.refused is not None else {"failed": str(refused)}
        )
    report = pruned.report
    row |= {
        "left": report.params.left,
        "error": report.proof.max_error,
        "dtype": report.proof.dtype,
        "capture": report.proof.capture_error,
        "passes": report.proof.passes,
        "proven": report.proof.passed,
    }
    strays = {str(t.device) for t in pruned.module.state_dict().values()} - {
        str(t.device) for t in model.state_dict().values()
    }
    if strays:
        return row | {"failed": f"the module has tensors on {', '.join(sorted(strays))}"}
    calls: dict[str, Callable[[], Any]] = {
        "before": lambda: _finished(model, args, kwargs),
        "after": lambda: _finished(pruned.module, args, kwargs),
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = pruned.onnx(Path(folder) / "model.onnx")
            row |= {
                "parity": report.parity.max_error,
                "nodes": report.parity.nodes,
                "equal": report.parity.passed,
            }
            calls["file"] = _file(path, pruned, args, kwargs, device)
        except irprune.IrpruneError as refused:
            row["onnx"] = str(refused)
        times = interleaved(calls, seconds)
    return (
        row
        | {f"{k}_ms": 1e3 * t.median for k, t in times.items()}
        | {"seconds": time.perf_counter() - began}
    )


def _finished(module: Any, args: Any, kwargs: Any) -> None:
    """One forward pass to its end: kernels on a GPU are only queued."""
    import torch

    with torch.no_grad():
        module(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _file(path: Path, pruned: Any, args: Any, kwargs: Any, device: str) -> Callable[[], Any]:
    from irprune.emit.bridge.torch_onnx import feed_of, file_inputs
    from irprune.run.session import run_session, session

    feed = feed_of(args, kwargs, pruned.graph.source, file_inputs(path))
    running = session(path, device.split(":")[0])
    return lambda: run_session(running, feed)


def holds(row: Row, device: str) -> bool:
    """Whether the case was proven, the file equals the module where there is one, and on a GPU some
    node of it ran there."""
    if "failed" in row:
        return False
    there = device == "cpu" or "nodes" not in row or "CUDAExecutionProvider" in row["nodes"]
    return "refused" in row or bool(row["proven"] and row.get("equal", True) and there)


def line(row: Row, device: str) -> tuple[str, ...]:
    """The cells of a row."""
    fine = "yes" if holds(row, device) else "NO"
    if "left" not in row or "failed" in row:
        why = "refused, as it must be" if "refused" in row else row["failed"].replace("|", "/")[:90]
        return (row["case"], "", why, *[""] * (len(HEAD) - 4), fine)
    ran = ", ".join(
        f"{n} {p.removesuffix('ExecutionProvider')}" for p, n in row.get("nodes", {}).items()
    )
    onnx = (
        (f"{row['parity']:.0e}", ran)
        if "parity" in row
        else ("", row["onnx"].replace("|", "/")[:60])
    )
    proof = (
        f"{row['error']:.0e}",
        row["dtype"],
        row["passes"],
        "" if row["capture"] is None else f"{row['capture']:.0e}",
    )
    times = (
        f"{row['before_ms']:.2f}",
        f"{row['after_ms']:.2f}",
        f"{row['after_ms'] / row['before_ms']:.2f}",
        f"{row['file_ms']:.2f}" if "file_ms" in row else "",
    )
    return (row["case"], f"{row['left']:.0%}", *proof, *onnx, *times, f"{row['seconds']:.0f}", fine)


def setting(device: str) -> str:
    """What it ran on, in words."""
    import onnxruntime
    import torch

    where = torch.cuda.get_device_name() if device.startswith("cuda") else "the processor"
    return f"{where}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, Python {sys.version.split()[0]}"


@click.command(help=__doc__)
@click.option("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
@click.option("--case", "cases", multiple=True, help="only these cases")
@click.option("--small", is_flag=True, help="the small builds")
@click.option("--ratio", default=0.5)
@click.option("--seconds", default=0.5, help="how long each call is timed")
@click.option(
    "--markdown",
    "to",
    type=click.Path(path_type=Path),
    help="where the table goes; on CUDA docs/results/gpu.md by default",
)
def main(
    device: str, cases: tuple[str, ...], small: bool, ratio: float, seconds: float, to: Path | None
) -> None:
    import torch
    from bench import markdown, show

    import models
    from irprune.errors import IrpruneError

    if device.startswith("cuda") and not torch.cuda.is_available():
        print(
            "no GPU that torch sees is here: nothing was checked; --device cpu runs the same on the processor",
            file=sys.stderr,
        )
        sys.exit(2)
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for name in track(cases or models.names(), description="cases", console=TALK):
        try:
            rows.append(checked(name, device, small, ratio, seconds))
        except (
            RuntimeError,
            IrpruneError,
        ) as failed:  # of CUDA, of a runtime: the next case may still work
            rows.append(
                {"case": name, "failed": (str(failed).splitlines() or [type(failed).__name__])[0]}
            )
    lines = [line(r, device) for r in rows]
    show(f"irprune on {setting(device)}", HEAD, lines)
    if to is None and device.startswith("cuda"):
        to = RESULTS / "gpu.md"
    if to is not None:
        how = f"{', small builds' if small else ''}, ratio {ratio:g}"
        write_table(
            to,
            f"Measured {datetime.date.today().isoformat()} on {setting(device)}{how}.\n\n{markdown(HEAD, lines)}",
        )
    print(json.dumps(rows))
    if not all(holds(r, device) for r in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
