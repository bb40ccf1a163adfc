"""Prune the public model zoos without a hint, and write down what happened.

    python tools/zoo.py                          one architecture per family of timm, torchvision
                                                 and transformers
    python tools/zoo.py --all                    every architecture of timm
    python tools/zoo.py --sample 20 --seed 1     a quick run
    python tools/zoo.py --against torch-pruning  the peer's result for the same call beside it
    python tools/zoo.py --retry                  those again that were not pruned with a proof
    python tools/zoo.py --merge a.jsonl --table  the table of what this file and another hold

Every architecture runs in a process of its own with a time limit. Results are appended to a
JSON-lines file (``--log``), so that a run that was stopped goes on where it was; what a later run
adds (--onnx, --against) is asked of those alone that lack it. What the table needs of each record
goes to docs/results/zoo.jsonl (``--out``). The last record of an architecture counts, and the
table is written from those. The order is drawn at random, large ones last, so that what a stopped
run has covered is a fair sample."""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import json
import math
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import zoo_transformers  # noqa: E402
from kept_rows import kept_rows  # noqa: E402
from tables import RESULTS, write_table  # noqa: E402
from zoo_peer import pruned_by_peer  # noqa: E402
from zoo_table import brief, elsewhere, good, summary  # noqa: E402

MEMORY = 12 << 30  # bytes of address space for one architecture
# Detection: not in the claim
SKIPPED_TORCHVISION = (
    "rcnn",
    "retinanet",
    "ssd",
    "fcos",
    "quantized",
)


def _quiet_imports() -> None:
    """torchvision's wheel may need its operators declared on a CPU build; a module ``tvshim`` on
    the path does that."""
    import warnings

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if importlib.util.find_spec("tvshim") is not None:
        importlib.import_module("tvshim")


# -- which architectures ---------------------------------------------------------------------------


def names(everything: bool) -> list[str]:
    """``library:architecture`` for the run: one per family by default."""
    _quiet_imports()
    import timm
    import torchvision.models as tv

    out = []
    seen: dict[str, str] = {}
    for name in timm.list_models():
        # The file that defines it
        entry = timm.models._registry._model_to_module.get(name, name.split("_")[0])
        family = f"{entry}/{name.split('_')[0].rstrip('0123456789')}"
        if everything or family not in seen:
            seen[family] = name
            out.append(f"timm:{name}")
    out += [
        f"torchvision:{n}" for n in tv.list_models() if not any(s in n for s in SKIPPED_TORCHVISION)
    ]
    out += [f"transformers:{n}" for n in zoo_transformers.families(everything)]
    random.Random(0).shuffle(out)
    return sorted(out, key=lambda n: bool(_LARGE.search(n)))


_LARGE = re.compile(
    r"huge|giant|gigantic|enormous|xl|large|_h_|_h14|_l_|_l16|_g_|7b|_\d?b_p|b7|b8|101|152|264|256gf|128gf|m\d+_l|sam3"
)


def versions() -> str:
    """The versions of torch and of the three libraries, as the table's header has them."""
    import timm
    import torch
    import torchvision
    import transformers

    return ", ".join(
        f"{m.__name__} {m.__version__}" for m in (torch, timm, torchvision, transformers)
    )


# -- one architecture, in its own process ----------------------------------------------------------


def build(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The model with random weights and its example call at the native input size."""
    model, args, kwargs = _built(name)
    _stir(model)
    return model, args, kwargs


def _stir(model: Any) -> None:
    """Draw what is initialised to a constant: a scale of zero would hide whatever is wrong before
    it, and the proof would prove little."""
    import torch

    draw = torch.Generator().manual_seed(1)
    buffers = [
        (n, b) for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))
    ]
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *buffers):
            first = tensor.flatten()[:1]
            if (
                not tensor.is_floating_point()
                or tensor.numel() < 2
                or not bool((tensor == first).all())
            ):
                continue
            noise = torch.rand(tensor.shape, generator=draw)
            closed = (
                abs(float(first)) < 1e-2
                and tensor.numel() == max(tensor.shape)
                and _SCALE.search(name) is not None
            )
            tensor.copy_(noise * 0.5 + 0.25 if closed else first + 0.2 * (noise - 0.5))


_SCALE = re.compile(r"(weight|gamma\w*|scale\w*)$")


def _built(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    import torch

    torch.manual_seed(0)
    library, arch = name.split(":", 1)
    if library == "timm":
        import timm

        model = timm.create_model(arch, pretrained=False).eval()
        return model, (torch.randn(1, *model.pretrained_cfg.get("input_size", (3, 224, 224))),), {}
    if library == "torchvision":
        import torchvision.models as tv

        model = (
            tv.get_model(arch, weights=None, weights_backbone=None)
            if "segm" in _kind(arch)
            else tv.get_model(arch, weights=None)
        )
        kind = _kind(arch)
        if kind == "flow":
            return model.eval(), (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)), {}
        size = {
            "video": (3, 16, 224, 224)
            if "mvit" in arch or "swin" in arch or arch == "s3d"
            else (3, 8, 112, 112)
        }.get(kind)
        edge = 299 if "inception" in arch else 224
        return model.eval(), (torch.randn(1, *(size or (3, edge, edge))),), {}
    try:
        model, kwargs = zoo_transformers.build(arch)
    except Exception as error:
        raise NotBuilt(str(error)[:300]) from error
    return model, (), kwargs


class NotBuilt(Exception):
    """The library itself does not build or run the model here."""


def _kind(arch: str) -> str:
    import torchvision.models as tv

    module = tv.get_model_builder(arch).__module__
    return (
        "segm"
        if "segmentation" in module
        else "video"
        if "video" in module
        else "flow"
        if "optical_flow" in module
        else "class"
    )


def run_one(name: str, ratio: float, onnx: bool = False) -> dict[str, Any]:
    """Everything recorded of one architecture."""
    _quiet_imports()
    import torch

    torch.set_num_threads(1)
    record: dict[str, Any] = {"name": name, "ratio": ratio, "stage": "build"}
    started = time.perf_counter()
    try:
        model, args, kwargs = build(name)
        inner = getattr(model, "model", model) if type(model).__name__ == "Answer" else model
        record |= {
            "class": type(inner).__name__,
            "built_s": round(time.perf_counter() - started, 2),
            "stage": "prune",
        }
        record |= measure(model, args, kwargs, ratio, onnx)
        record["stage"] = "done"
    except NotBuilt as error:
        record |= {"stage": "not built", "error": str(error)}
    except Exception as error:  # the failure is what is recorded
        record["error"] = f"{type(error).__name__}: {str(error)[:400]}"
    record["seconds"] = round(time.perf_counter() - started, 2)
    record["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return record


# Reasons for which a dimension stays that come from what the model is asked, not from what the
# rules can follow.
_MUST_STAY = (
    "graph input",
    "graph output",
    "indexed",
    "kernel",
    "gates",
    "ranked by",
    "bins of",
    "number of stacked",
)


def measure(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ratio: float, onnx: bool
) -> dict[str, Any]:
    """Prune, prove, and count what is in reach.

    ``reach`` is the share of the parameters that lie in a tensor with a free dimension;
    ``reach_possible`` leaves out of the count the tensors all of whose dimensions must stay: they
    face inputs and outputs on every side."""
    import irprune
    from irprune.analysis.kinds import frozen_kinds, kinds

    pruned = irprune.prune(model, args, kwargs, ratio=ratio, proof=True)
    graph = pruned.graph
    weights = [w for w in graph.weights.values() if w.kind == "parameter" and w.users]
    numel = {w.name: math.prod(w.shape) for w in weights}
    free = sum(
        numel[w.name] for w in weights if any(x.reason is None and x.size != 1 for x in _leaves(w))
    )
    stays = sum(
        numel[w.name]
        for w in weights
        if all(x.size == 1 or str(x.reason or "").startswith(_MUST_STAY) for x in _leaves(w))
    )
    out_of_reach = [
        (w.name, numel[w.name], [str(x.reason) for x in _leaves(w) if x.size != 1])
        for w in weights
        if not any(x.reason is None and x.size != 1 for x in _leaves(w))
    ]
    frozen = Counter(g.frozen for g in irprune.groups(graph) if g.frozen)
    report = pruned.report
    total = max(1, sum(numel.values()))
    record = {
        "reach": round(free / total, 4),
        "reach_possible": round(free / max(1, total - stays), 4),
        "out_of_reach": sorted(out_of_reach, key=lambda x: -x[1])[:4],
        "params": [report.params.before, report.params.after],
        "macs": [report.macs.before, report.macs.after],
        "oracle": report.proof.max_error,
        "kinds": dict(Counter(kinds(graph).values())),
        "kinds_frozen": frozen_kinds(graph),
        "frozen": dict(frozen.most_common(8)),
        "no_rule": dict(report.unruled),
        "notes": list(graph.notes)[:5],
    }
    return record | (_onnx(pruned, model, args, kwargs) if onnx else {})


def _leaves(weight: Any) -> list[Any]:
    from irprune.ir.axis import leaves

    return [x for a in weight.axes or () for x in leaves(a)]


def _onnx(pruned: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The relative error of the ONNX file on onnxruntime; where there is none, why, and whether the
    model itself fares better."""
    from irprune.emit.bridge.torch_onnx import export_onnx
    from irprune.errors import IrpruneError
    from irprune.validate.module_parity import compare

    with tempfile.TemporaryDirectory() as folder:
        try:
            pruned.onnx(Path(folder) / "model.onnx")
            return {"onnx": pruned.report.parity.max_error}
        except IrpruneError as refused:
            why = str(refused)
        try:
            path = export_onnx(model, pruned.graph.source, Path(folder) / "whole.onnx")
            error = compare(model, pruned.graph.source, path).max_error
            own = f"the unpruned model's file: error {error:.1e}"
        except Exception as refused:  # what the exporter and the runtime raise is of every kind
            own = "the unpruned model fails as well" + (
                f": {str(refused)[:80]}" if type(refused) is not IrpruneError else ""
            )
        return {"onnx": None, "onnx_error": f"{elsewhere(why)[:200]} [{own}]"}


def run_peer(name: str, ratio: float) -> dict[str, Any]:
    """What the peer makes of the same model, and in how many seconds."""
    _quiet_imports()
    started = time.perf_counter()
    try:
        found = pruned_by_peer(*build(name), ratio)
    except Exception as error:  # the failure is what is recorded
        found = {"works": False, "error": f"{type(error).__name__}: {str(error)[:150]}"}
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


# -- the run ---------------------------------------------------------------------------------------


def spawn(name: str, ratio: float, limit: int, peer: bool, onnx: bool = False) -> dict[str, Any]:
    """The record of ``name`` from a process of its own, forked from this one, which has the
    libraries loaded."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, name, ratio, peer, onnx))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            return {
                "name": name,
                "ratio": ratio,
                "stage": "time limit",
                "works": False,
                "error": f"not done in {limit} s",
            }
        return dict(ours.recv())
    except EOFError:
        process.join()
        return {
            "name": name,
            "ratio": ratio,
            "stage": "died",
            "works": False,
            "error": f"exit {process.exitcode}",
        }
    finally:
        process.kill()
        process.join()


def _child(pipe: Connection, name: str, ratio: float, peer: bool, onnx: bool) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    pipe.send(run_peer(name, ratio) if peer else run_one(name, ratio, onnx))


def _preload() -> None:
    """Import in the parent what every child needs."""
    _quiet_imports()
    import timm
    import torch
    import torchvision
    import transformers

    import irprune
    from irprune.ops.registry import load_table

    torch.set_num_threads(1)
    load_table()
    del timm, torchvision, transformers, irprune


@click.command()
@click.option("--all", "everything", is_flag=True, help="Every architecture, not one per family.")
@click.option("--sample", type=int, help="Only so many, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--only", default="", help="Only names that contain this.")
@click.option("--ratio", default=0.5, show_default=True)
@click.option("--limit", default=240, show_default=True, help="Seconds for one architecture.")
@click.option("--jobs", default=2, show_default=True)
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    default=HERE / "zoo.jsonl",
    show_default=True,
    help="Where whole records are kept.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=RESULTS / "zoo.jsonl", show_default=True
)
@click.option(
    "--onnx", is_flag=True, help="Export each to ONNX as well and compare it on onnxruntime."
)
@click.option(
    "--against",
    type=click.Choice(["torch-pruning"]),
    help="The peer's result beside each, where it is not there yet.",
)
@click.option(
    "--peer-limit", default=60, show_default=True, help="Seconds for the peer on one architecture."
)
@click.option(
    "--retry",
    is_flag=True,
    help="Run again what has no proof, and with --onnx what has no file that agrees.",
)
@click.option("--merge", multiple=True, help="Take over the records of another file of this kind.")
@click.option("--table", is_flag=True, help="Run nothing: write the table of what the file holds.")
def main(
    everything: bool,
    sample: int | None,
    seed: int,
    only: str,
    ratio: float,
    limit: int,
    jobs: int,
    log: Path,
    out: Path,
    onnx: bool,
    against: str | None,
    peer_limit: int,
    retry: bool,
    merge: tuple[str, ...],
    table: bool,
) -> None:
    """Prune public architectures with random weights and record what happened."""
    log.parent.mkdir(parents=True, exist_ok=True)
    done: dict[tuple[str, float], dict[str, Any]] = {}
    for file in (out, log, *map(Path, merge)):
        for record in kept_rows(file):
            _take(record, done)
    wanted = [n for n in names(everything) if only in n]
    if sample:
        wanted = sorted(random.Random(seed).sample(wanted, min(sample, len(wanted))))

    def lacks(name: str) -> bool:
        record = done.get((name, ratio))
        if record is None:
            return True
        again = not good(record) or (onnx and record.get("onnx") is None)
        return (retry and again) or (onnx and good(record) and "onnx" not in record)

    def peerless(name: str) -> bool:
        record = done.get((name, ratio))
        return record is not None and record["stage"] != "not built" and "peer" not in record

    if not table:
        _preload()
        _each(
            [n for n in wanted if lacks(n)],
            lambda n: spawn(n, ratio, limit, False, onnx),
            "pruning",
            jobs,
            log,
            done,
        )
        if against:

            def beside(name: str) -> dict[str, Any]:
                peer = spawn(name, ratio, peer_limit, True)
                return {
                    **done[name, ratio],
                    "peer": {
                        k: peer[k] for k in ("works", "params", "error", "seconds") if k in peer
                    },
                }

            _each([n for n in wanted if peerless(n)], beside, against, jobs, log, done)
    for path, form in ((log, dict), (out, brief)):
        path.write_text("".join(elsewhere(json.dumps(form(r))) + "\n" for r in done.values()))
    records = [done[n, ratio] for n in wanted if (n, ratio) in done]
    text = f"{datetime.date.today()}, {versions()}; ratio {ratio}; {len(records)} of {len(wanted)} architectures\n\n{summary(records)}"
    write_table(out.with_suffix(".md"), text)
    print(text)


def _take(record: dict[str, Any], done: dict[Any, Any]) -> None:
    """The later record counts; the peer's result, which is the same for all of ours, stays."""
    key = record["name"], record["ratio"]
    done[key] = {**({"peer": done[key]["peer"]} if "peer" in done.get(key, {}) else {}), **record}


def _each(
    names: list[str],
    make: Callable[[str], dict[str, Any]],
    title: str,
    jobs: int,
    path: Path,
    done: dict[Any, Any],
) -> None:
    """Append ``make(name)`` of each to the file as it comes, several at a time."""
    from rich.progress import Progress

    with Progress() as bar, ThreadPoolExecutor(jobs) as pool, path.open("a") as log:
        task = bar.add_task(title, total=len(names))
        for record in pool.map(make, names):
            log.write(elsewhere(json.dumps(record)) + "\n")
            log.flush()
            _take(record, done)
            bar.update(task, advance=1, description=record["name"])


if __name__ == "__main__":
    main()
