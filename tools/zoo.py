"""Prune the public model zoos without a hint, and write down what happened.

    python tools/zoo.py                          one architecture per family of timm, torchvision, transformers
    python tools/zoo.py --all                    every architecture of timm
    python tools/zoo.py --sample 20 --seed 1     a quick run
    python tools/zoo.py --against torch-pruning  the peer's result for the same call beside it

Every architecture runs in a process of its own with a time limit. Results are appended to a JSON-lines file, so that a run that
was stopped goes on where it was; the table is written from that file. The order is drawn at random, large ones last, so that what a
stopped run has covered is a fair sample.
"""

from __future__ import annotations

import datetime
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).parent
MEMORY = 12 << 30  # bytes of address space for one architecture
SKIPPED_TORCHVISION = ("rcnn", "retinanet", "ssd", "fcos", "quantized")  # detection: not in the claim


def _quiet_imports() -> None:
    """torchvision's wheel may need its operators declared on a CPU build; a module ``tvshim`` on the path does that."""
    import warnings

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if importlib.util.find_spec("tvshim") is not None:
        importlib.import_module("tvshim")


# -- which architectures ---------------------------------------------------------------------------------------------


def names(everything: bool) -> list[str]:
    """``library:architecture`` for the run: one per family by default."""
    _quiet_imports()
    import timm
    import torchvision.models as tv

    sys.path.insert(0, str(HERE))
    import zoo_transformers

    out = []
    seen: dict[str, str] = {}
    for name in timm.list_models():
        entry = timm.models._registry._model_to_module.get(name, name.split("_")[0])  # the file that defines it
        family = f"{entry}/{name.split('_')[0].rstrip('0123456789')}"
        if everything or family not in seen:
            seen[family] = name
            out.append(f"timm:{name}")
    out += [f"torchvision:{n}" for n in tv.list_models() if not any(s in n for s in SKIPPED_TORCHVISION)]
    out += [f"transformers:{n}" for n in zoo_transformers.families(everything)]
    random.Random(0).shuffle(out)
    return sorted(out, key=lambda n: bool(_LARGE.search(n)))


_LARGE = re.compile(r"huge|giant|gigantic|enormous|xl|large|_h_|_h14|_l_|_l16|_g_|7b|_\d?b_p|b7|b8|101|152|264|256gf|128gf|m\d+_l|sam3")


def versions() -> str:
    """The versions of torch and of the three libraries, as the table's header has them."""
    import timm
    import torch
    import torchvision
    import transformers

    return ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, timm, torchvision, transformers))


# -- one architecture, in its own process ------------------------------------------------------------------------------


def build(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The model with random weights and its example call at the native input size."""
    import torch

    torch.manual_seed(0)
    library, arch = name.split(":", 1)
    if library == "timm":
        import timm

        model = timm.create_model(arch, pretrained=False).eval()
        return model, (torch.randn(1, *model.pretrained_cfg.get("input_size", (3, 224, 224))),), {}
    if library == "torchvision":
        import torchvision.models as tv

        model = tv.get_model(arch, weights=None, weights_backbone=None) if "segm" in _kind(arch) else tv.get_model(arch, weights=None)
        kind = _kind(arch)
        if kind == "flow":
            return model.eval(), (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)), {}
        size = {"video": (3, 16, 224, 224) if "mvit" in arch or "swin" in arch else (3, 8, 112, 112)}.get(kind)
        edge = 299 if "inception" in arch else 384 if arch == "vit_h_14" else 224
        return model.eval(), (torch.randn(1, *(size or (3, edge, edge))),), {}
    sys.path.insert(0, str(HERE))
    import zoo_transformers

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
    return "segm" if "segmentation" in module else "video" if "video" in module else "flow" if "optical_flow" in module else "class"


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
        record |= {"class": type(inner).__name__, "built_s": round(time.perf_counter() - started, 2), "stage": "prune"}
        record |= measure(model, args, kwargs, ratio, onnx)
        record["stage"] = "done"
    except NotBuilt as error:
        record |= {"stage": "not built", "error": str(error)}
    except Exception as error:  # the failure is what is recorded
        record["error"] = f"{type(error).__name__}: {str(error)[:400]}"
    record["seconds"] = round(time.perf_counter() - started, 2)
    record["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return record


# Reasons for which a dimension stays that come from what the model is asked, not from what the rules can follow.
_MUST_STAY = ("graph input", "graph output", "indexed", "fixed by", "kernel", "gates", "ranked by", "bins of", "number of stacked")


def measure(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ratio: float, onnx: bool) -> dict[str, Any]:
    """Prune, prove, and count what is in reach.

    ``reach`` is the share of the parameters that lie in a tensor with a free dimension; ``reach_possible`` leaves out of the count
    the tensors all of whose dimensions must stay: they face inputs and outputs on every side.
    """
    import irprune
    from irprune.ir.kind import kinds

    pruned = irprune.prune(model, args, kwargs, ratio=ratio, proof=True)
    graph = pruned.graph
    weights = [w for w in graph.weights.values() if w.kind == "parameter" and w.users]
    numel = {w.name: _numel(w.shape) for w in weights}
    free = sum(numel[w.name] for w in weights if any(x.reason is None and x.size != 1 for x in _leaves(w)))
    stays = sum(numel[w.name] for w in weights if all(x.size == 1 or str(x.reason or "").startswith(_MUST_STAY) for x in _leaves(w)))
    out_of_reach = [(w.name, numel[w.name], [str(x.reason) for x in _leaves(w) if x.size != 1]) for w in weights
                    if not any(x.reason is None and x.size != 1 for x in _leaves(w))]
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
        "frozen": dict(frozen.most_common(8)),
        "no_rule": dict(report.unruled),
        "notes": list(graph.notes)[:5],
    }
    return record | (_onnx(pruned) if onnx else {})


def _leaves(weight: Any) -> list[Any]:
    from irprune.ir.axis import leaves

    return [x for a in weight.axes or () for x in leaves(a)]


def _onnx(pruned: Any) -> dict[str, Any]:
    """The relative error of the ONNX file on onnxruntime, or the exporter's refusal."""
    from irprune.errors import IrpruneError

    with tempfile.TemporaryDirectory() as folder:
        try:
            pruned.onnx(Path(folder) / "model.onnx")
            return {"onnx": pruned.report.parity.max_error}
        except IrpruneError as refused:
            return {"onnx": None, "onnx_error": str(refused)[:200]}


def _numel(shape: Iterable[Any]) -> int:
    out = 1
    for s in shape:
        out *= int(s)
    return out


def run_peer(name: str, ratio: float) -> dict[str, Any]:
    """Torch-Pruning on the same model with its own defaults and no hints."""
    _quiet_imports()
    import torch
    import torch_pruning as tp

    model, args, kwargs = build(name)
    before = sum(p.numel() for p in model.parameters())
    inputs = kwargs or (args if len(args) > 1 else args[0])
    with torch.no_grad():
        first = model(*args, **kwargs)
    shapes = [t.shape for t in _tensors(first)]
    pruner = tp.pruner.MagnitudePruner(model, inputs, tp.importance.MagnitudeImportance(p=2), pruning_ratio=ratio)
    pruner.step()
    with torch.no_grad():
        same = [t.shape for t in _tensors(model(*args, **kwargs))] == shapes
    after = sum(p.numel() for p in model.parameters())
    return {"name": name, "works": bool(same and after < before), "params": after / before}


def _tensors(x: Any) -> list[Any]:
    from torch.utils import _pytree as pytree

    return [t for t in pytree.tree_leaves(x) if hasattr(t, "shape")]


# -- the run -----------------------------------------------------------------------------------------------------------


def spawn(name: str, ratio: float, limit: int, peer: bool, onnx: bool = False) -> dict[str, Any]:
    """The record of ``name`` from a process of its own, forked from this one, which has the libraries loaded."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, name, ratio, peer, onnx))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            return {"name": name, "ratio": ratio, "stage": "time limit", "error": f"not done in {limit} s"}
        return dict(ours.recv())
    except EOFError:
        process.join()
        return {"name": name, "ratio": ratio, "stage": "died", "error": f"exit {process.exitcode}"}
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


PROVEN = 1e-4  # the relative error up to which a proof counts, as in irprune.validate.tolerance


def summary(records: list[dict[str, Any]]) -> str:
    """The README's table: per library, how many captured, pruned with a proof, and how much is in reach."""
    rows = ["| library | architectures | pruned with proof | worst oracle error | ≥ 95 % of weights in reach | parameters left, median |",
            "|---|---|---|---|---|---|"]
    for library in ("timm", "torchvision", "transformers"):
        own = [r for r in records if r["name"].startswith(library + ":") and r["stage"] != "not built"]
        good = [r for r in own if _good(r)]
        if not own:
            continue
        left = sorted(r["params"][1] / r["params"][0] for r in good)
        worst = max((r["oracle"] for r in good), default=0)
        near = sum(r.get("reach_possible", r["reach"]) >= 0.95 for r in good)
        rows.append(f"| {library} | {len(own)} | {len(good)} ({len(good) / len(own):.1%}) | {worst:.1e} | "
                    f"{near} ({near / max(1, len(good)):.0%}) | "
                    f"{left[len(left) // 2] if left else 1:.0%} |")
    kinds = Counter(k for r in records if r["stage"] == "done" for k in r["kinds"])
    counted = ", ".join(f"{k} {n}" for k, n in kinds.most_common())
    rows += ["", f"Kinds of groups found prunable, by number of architectures: {counted}."]
    families = {re.split("[-_]", r["name"].split(":")[1])[0] for r in records if r["name"].startswith("transformers:") and _good(r)}
    rows += ["", f"Families of transformers pruned with proof: {len(families)}."] if families else []
    checked = [r for r in records if r.get("onnx") is not None]
    if checked:
        rows += ["", f"ONNX files compared on onnxruntime: {len(checked)}, worst relative error {max(r['onnx'] for r in checked):.1e}."]
    failed = [r for r in records if r["stage"] != "not built" and not _good(r)]
    rows += _table("not pruned with proof", failed, lambda r: r.get("error") or f"error {r.get('oracle')}")
    low = [r for r in records if _good(r) and r.get("reach_possible", r["reach"]) < 0.95]
    rows += _table("less than 95 % in reach", low, lambda r: f"{r.get('reach_possible', r['reach']):.0%}: {_widest(r)}")
    missing = [r for r in records if r["stage"] == "not built"]
    return "\n".join(rows + _table("not built by its library from a small random configuration", missing, lambda r: r["error"])) + "\n"


def _good(record: dict[str, Any]) -> bool:
    return record["stage"] == "done" and record["oracle"] is not None and record["oracle"] <= PROVEN


def _widest(record: dict[str, Any]) -> str:
    name, _, reasons = (record.get("out_of_reach") or [("", 0, [])])[0]
    return f"{name}: {'; '.join(dict.fromkeys(reasons))}"


def _table(title: str, records: list[dict[str, Any]], reason: Callable[[dict[str, Any]], Any]) -> list[str]:
    """One line with its reason for each record."""
    if not records:
        return []
    lines = [f"| {r['name']} | {_cell(reason(r))} |" for r in sorted(records, key=lambda r: str(r["name"]))]
    return ["", f"| {title} ({len(records)}) | reason |", "|---|---|", *lines]


def _cell(text: Any) -> str:
    line = _elsewhere(str(text).splitlines()[0] if str(text) else "")
    return line.replace("|", "/")[:160]


def _elsewhere(text: str) -> str:
    """``text`` with paths into installed libraries as they are on any machine."""
    return re.sub(r"/[^\s\"]*/site-packages/", "", text)


@click.command()
@click.option("--all", "everything", is_flag=True, help="Every architecture, not one per family.")
@click.option("--sample", type=int, help="Only so many, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--only", default="", help="Only names that contain this.")
@click.option("--ratio", default=0.5, show_default=True)
@click.option("--limit", default=240, show_default=True, help="Seconds for one architecture.")
@click.option("--jobs", default=2, show_default=True)
@click.option("--out", default=str(HERE / "results" / "zoo.jsonl"), show_default=True)
@click.option("--onnx", is_flag=True, help="Export each to ONNX as well and compare it on onnxruntime.")
@click.option("--against", type=click.Choice(["torch-pruning"]))
@click.option("--retry", is_flag=True, help="Run those again that the file holds without a result.")
@click.option("--table", is_flag=True, help="Run nothing: write the table of what the file holds.")
@click.option("--one", hidden=True)
@click.option("--peer", is_flag=True, hidden=True)
def main(everything: bool, sample: int | None, seed: int, only: str, ratio: float, limit: int, jobs: int, out: str, onnx: bool,
         against: str | None, retry: bool, table: bool,
         one: str | None, peer: bool) -> None:
    """Prune public architectures with random weights and record what happened."""
    if one:
        print(json.dumps(run_peer(one, ratio) if peer else run_one(one, ratio, onnx)))
        return
    from rich.progress import Progress

    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if path.exists():
        done = {(r["name"], r["ratio"]): r for r in map(json.loads, path.read_text().splitlines())}
        if retry:
            done = {k: r for k, r in done.items() if r["stage"] == "done"}
    wanted = [n for n in names(everything) if only in n]
    if sample:
        wanted = sorted(random.Random(seed).sample(wanted, min(sample, len(wanted))))
    todo = [] if table else [n for n in wanted if (n, ratio) not in done]
    _preload()
    with Progress() as bar, ThreadPoolExecutor(jobs) as pool, path.open("a") as log:
        task = bar.add_task("pruning", total=len(todo))
        for record in pool.map(lambda n: spawn(n, ratio, limit, False, onnx), todo):
            log.write(_elsewhere(json.dumps(record)) + "\n")
            log.flush()
            done[record["name"], ratio] = record
            bar.update(task, advance=1, description=record["name"])
    records = [done[n, ratio] for n in wanted if (n, ratio) in done]
    text = f"{datetime.date.today()}, {versions()}; ratio {ratio}; {len(records)} of {len(wanted)} architectures\n\n{summary(records)}"
    if against:
        with ThreadPoolExecutor(jobs) as pool:
            peers = list(pool.map(lambda n: spawn(n, ratio, limit, True), [r["name"] for r in records if r["stage"] != "not built"]))
        works = sum(bool(p.get("works")) for p in peers)
        text += f"\nTorch-Pruning on the same {len(peers)} architectures, same ratio, no hints: {works} work.\n"
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
