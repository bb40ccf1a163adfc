"""``irprune bench``: latency, size, MACs, parameters and memory of one model or two."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from irprune import api
from irprune.analysis.cost import cost
from irprune.api.runner import runner
from irprune.base.format import human
from irprune.cli.options import common, device, dynamic, inputs, load, model, say, show_json, shown
from irprune.run.timing import interleaved

if TYPE_CHECKING:
    from irprune.api.load import Loaded

__all__ = ["bench"]


@click.command()
@model()
@click.option("--against", metavar="B", help="A second MODEL, timed in turns with the first.")
@inputs
@dynamic
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="How long each model is timed.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Threads of each runtime; 0 leaves its default.",
)
@device
@common
def bench(
    model: str,
    against: str | None,
    inputs: tuple[str, ...],
    pretrained: bool,
    trust: bool,
    dynamic: str,
    seconds: float,
    threads: int,
    device: str,
    json_: bool,
) -> None:
    """Measure MODEL: median latency, size on disk, MACs, parameters, peak activation memory; beside
    B where one is given."""
    specs = [model] if against is None else [model, against]
    loaded = [load(spec, inputs, pretrained, trust) for spec in specs]
    _threads(threads, loaded)
    running = [runner(one, device, threads) for one in loaded]
    calls = {}
    for k, each in enumerate(running):
        calls[str(k)] = partial(each.run, each.draw(0))
    say("timing ...")
    times = interleaved(calls, seconds)
    rows: list[dict[str, Any]] = []
    for k, spec in enumerate(specs):
        own = {"model": spec, "runtime": running[k].kind, "file_bytes": _on_disk(spec)}
        rows.append({**own, **times[str(k)].as_dict(), **_counts(loaded[k], dynamic)})
    if json_:
        speedup = rows[0]["median_s"] / rows[-1]["median_s"]
        show_json(rows[0] if against is None else {"a": rows[0], "b": rows[1], "speedup": speedup})
    else:
        shown(_table(rows))


def _threads(threads: int, loaded: list[Loaded]) -> None:
    if threads and any(one.kind != "onnx" for one in loaded):
        import torch

        torch.set_num_threads(threads)


def _counts(loaded: Loaded, dynamic: str) -> dict[str, int]:
    """MACs, parameters, bytes and activation from the cost polynomial."""
    if loaded.kind == "pt2":  # the program brings its example
        return cost(api.analyse(api.capture(loaded.model, trust=loaded.trust))).as_dict()
    return cost(api.analyse(loaded.capture(dynamic))).as_dict()


def _data(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold data of it."""
    if path.suffix != ".onnx":
        return []
    from irprune.frontend.onnx.file import locations

    return [path.parent / place for place in sorted(locations(path))]


def _on_disk(spec: str) -> int | None:
    """Bytes of the file, and of weights beside it; None for a model that is no file."""
    path = Path(spec)
    if path.is_dir():
        return sum(p.stat().st_size for p in (path / "weights.safetensors",) if p.exists()) or None
    return sum(p.stat().st_size for p in (path, *_data(path)) if p.is_file()) or None


def _table(rows: list[dict[str, Any]]) -> str:
    def cell(key: str, value: Any) -> str:
        if value is None:
            return "-"
        return (
            f"{value * 1e3:.3f} ms"
            if key.endswith("_s")
            else human(value)
            if isinstance(value, int)
            else str(value)
        )

    head = [""] + [str(r["model"]) for r in rows] + (["ratio"] if len(rows) == 2 else [])
    lines = [head]
    for key in (
        "runtime",
        "median_s",
        "low_s",
        "high_s",
        "macs",
        "params",
        "bytes",
        "activation",
        "file_bytes",
    ):
        values = [r[key] for r in rows]
        line = [key.removesuffix("_s"), *(cell(key, v) for v in values)]
        if len(rows) == 2:
            line.append(
                f"{values[1] / values[0]:.3f}"
                if all(isinstance(v, (int, float)) and v for v in values)
                else ""
            )
        lines.append(line)
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
