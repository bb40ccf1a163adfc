"""Latency of pruned models on onnxruntime: beside Torch-Pruning at equal multiply-accumulates, and
what a latency budget gives.

Every file of a model is timed in turns in one run, one thread, by that thread's own clock (it
stands still while other programs run); medians, and of ratios the median over turns with its
quartiles. Torch-Pruning prunes at ratio 0.5 with the classifier kept, as its examples do; irprune
is given the multiply-accumulates that are then left as its budget, once with whole numbers of
channels and once with ``round_to="auto"``."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from tables import write_table
from torch import nn

import irprune
from irprune import api
from irprune.analysis.cost import Costs
from irprune.emit.bridge.torch_onnx import export_onnx
from irprune.latency.table import machine
from irprune.run.session import session
from irprune.run.timing import Timing, interleaved

HERE = Path(__file__).resolve().parent
MODELS = ("mobilenet_v3_small", "resnet50", "vit_b_16")
SHARES = (0.75, 0.5)
HEAD = (
    "model",
    "MACs left",
    "original, ms",
    "Torch-Pruning, ms",
    "irprune, ms",
    "ratio",
    "in steps, ms",
    "ratio",
    *(f"asked {s:g} of the time: measured, predicted" for s in SHARES),
)


def built(name: str) -> nn.Module:
    """A model of torchvision with drawn weights."""
    # Declares operators that some CPU builds lack
    if importlib.util.find_spec("tvshim") is not None:
        importlib.import_module("tvshim")
    torchvision: Any = importlib.import_module("torchvision")
    torch.manual_seed(0)
    made: nn.Module = torchvision.models.get_model(name, weights=None)
    return made.eval()


def torch_pruning(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The model after Torch-Pruning at ratio 0.5, told its last layer and its heads."""
    import torch_pruning as tp  # type: ignore[import-untyped]

    made = copy.deepcopy(model)
    linear = [m for m in made.modules() if isinstance(m, nn.Linear)][-1]
    heads = {m: m.num_heads for m in made.modules() if isinstance(m, nn.MultiheadAttention)}
    pruner = tp.pruner.BasePruner(
        made,
        x,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[linear],
        num_heads=heads,
    )
    pruner.step()
    with torch.no_grad():
        made(x)
    return made


def macs(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-accumulates, by the same count for both."""
    return Costs(api.analyse(api.capture(model, (x,)))).at({}).macs


def row(
    name: str, size: int, seconds: float, say: Callable[[str], None]
) -> tuple[tuple[str, ...], list[tuple[str, bool]]]:
    """One model: everything is made first, then everything is timed in turns. The cells of its
    line, and its bars."""
    model, x = built(name), torch.randn(1, 3, size, size)
    structure = api.capture(model, (x,)).source
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = {"original": export_onnx(model, structure, place / "original.onnx")}
        rival = torch_pruning(model, x)
        whole, left = macs(model, x), macs(rival, x)
        files["rival"] = export_onnx(rival, api.capture(rival, (x,)).source, place / "rival.onnx")
        budgets: dict[str, dict[str, Any]] = {
            "equal": {"budget": {"macs": left}},
            "steps": {"budget": {"macs": left}, "round_to": "auto"},
        }
        budgets |= {f"{s:g}": {"budget": {"latency": s}} for s in SHARES}
        predicted: dict[str, float] = {}
        for key, settings in budgets.items():
            say(f"{name}: {key} ...")
            pruned = irprune.prune(model, (x,), proof=False, device="cpu", threads=1, **settings)
            files[key] = pruned.onnx(place / f"{key}.onnx", parity=False)
            if pruned.report.latency is not None:
                predicted[key] = (
                    pruned.report.latency.predicted / pruned.report.latency.before.median
                )
        say(f"{name}: timing ...")
        times = timed(files, x, seconds)
    found = line(name, left / whole, times, predicted)
    say(" | ".join(found))
    return found, bars(name, times)


def timed(files: Mapping[str, Path], x: torch.Tensor, seconds: float) -> dict[str, Timing]:
    """The files in turns, on one thread and by its clock."""
    calls: dict[str, Callable[[], Any]] = {}
    for key, file in files.items():
        running = session(file, "cpu", threads=1)
        feed = {running.get_inputs()[0].name: x.numpy()}
        calls[key] = lambda running=running, feed=feed: running.run(None, feed)  # type: ignore[misc]
    return interleaved(calls, seconds, least=15, most=400, clock=time.thread_time)


def line(
    name: str, left: float, times: Mapping[str, Timing], predicted: Mapping[str, float]
) -> tuple[str, ...]:
    """The cells of a model; latencies under a budget as shares of the original's."""
    ms = {key: f"{t.median * 1e3:.2f}" for key, t in times.items()}

    def ratio(key: str, over: str) -> str:
        found = times[key].over(times[over])
        return f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"

    told = [f"{ratio(f'{s:g}', 'original')}, {predicted[f'{s:g}']:.3f}" for s in SHARES]
    return (
        name,
        f"{left:.3f}",
        ms["original"],
        ms["rival"],
        ms["equal"],
        ratio("equal", "rival"),
        ms["steps"],
        ratio("steps", "rival"),
        *told,
    )


def bars(name: str, times: Mapping[str, Timing]) -> list[tuple[str, bool]]:
    """What must hold, each with whether it does: no slower than Torch-Pruning (within the
    quartiles), budgets met within 5 %."""
    out = []
    for key, what in (("equal", "whole numbers of channels"), ("steps", "in steps")):
        found = times[key].over(times["rival"])
        out.append(
            (
                f"{name}: at equal multiply-accumulates, {what}, {found.median:.3f} of Torch-Pruning's time",
                found.low <= 1,
            )
        )
    for s in SHARES:
        share = times[f"{s:g}"].over(times["original"]).median
        out.append(
            (
                f"{name}: {s:g} of the time was asked, {share:.3f} measured",
                abs(share / s - 1) <= 0.05,
            )
        )
    return out


@click.command(help=__doc__)
@click.option("--model", "models", multiple=True, help="only these models of torchvision")
@click.option("--size", default=224, show_default=True, help="height and width of the image")
@click.option("--seconds", default=5.0, show_default=True, help="how long each file is timed")
@click.option("--markdown", "to", type=click.Path(path_type=Path), help="write the table there too")
def main(models: Sequence[str], size: int, seconds: float, to: Path | None) -> None:
    from bench import markdown, show

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = [
        row(name, size, seconds, lambda text: print(text, file=sys.stderr, flush=True))
        for name in models or MODELS
    ]
    lines, held = [cells for cells, _ in found], [bar for _, some in found for bar in some]
    show("latency", HEAD, lines)
    said = "\n".join(f"* {'holds' if ok else 'FAILS'}: {bar}" for bar, ok in held)
    print(said)
    if to is not None:
        import onnxruntime

        write_table(
            to,
            f"{time.strftime('%Y-%m-%d')}, onnxruntime {onnxruntime.__version__} on the CPU, one thread, {machine('cpu')}, "
            f"{size} x {size} pixels, one image; drawn weights.\n\n"
            + markdown(HEAD, lines)
            + "\n\n"
            + said,
        )
    if not all(ok for _, ok in held):
        raise SystemExit(1)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
