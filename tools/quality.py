"""What pruned models still compute: accuracy by criterion, repair and budget, beside Torch-Pruning.

    python tools/quality.py             three nets, three seeds, all criteria; table and plot go to
                                        docs/results/
    python tools/quality.py --net ViT --seeds 1 --criterion magnitude --out /tmp/some

Nets are trained on the digits data, once per seed, and kept in ``--cache``, as are rows: a run that
was stopped goes on where it was. Every seed splits the data anew into four parts that share no
image: one trains, half of the validation part feeds the criterion, the other half the repair, and
the test part is only measured on. The default is what ``calibration=`` alone sets, in two calls:
one chooses on the criterion's images, one repairs on the others. Torch-Pruning gets the criterion's
images with their labels, and the same multiply-accumulates. The default's settings were compared on
other seeds than those measured here; blind they were not, as an earlier table was known."""

from __future__ import annotations

import copy
import json
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from kept_rows import kept_rows
from quality_nets import NETS
from quality_report import BUDGETS, Row, Setting, bars, write
from quality_rival import macs_of, torch_pruning
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from tables import RESULTS
from torch import nn
from torch.nn import functional as F

import irprune
from irprune.api.repair import repair
from irprune.criteria import criteria
from irprune.demo.digits import Data, Part, accuracy, jitter, load_data, train
from irprune.driver.pipelines import cut_graph
from irprune.emit.torch.module import emit_module
from irprune.passes.choose import Choose
from irprune.passes.repairs import repairs
from irprune.passes.score import Score

TALK = Console(stderr=True)
DYNAMIC = {"x": {0: torch.export.Dim("n")}}
GLOBAL = ("magnitude", "wanda", "osscar", "taylor")  # ranked over all groups as well


def settings(names: Sequence[str]) -> list[Setting]:
    """All rows: the default call; each criterion with and without repair; some over all groups;
    other repairs; Torch-Pruning.

    LAMP ranks within a group as magnitude does, so it is shown where it differs: over all groups.
    """
    chosen = [n for n in sorted(criteria()) if n != "uniform" and (not names or n in names)]
    both = ("none", "least_squares")
    out = [Setting("default")]
    out += [Setting(n, "global" if n == "lamp" else "local", r) for n in chosen for r in both]
    out += [Setting(n, "global", r) for n in GLOBAL if n in chosen for r in both]
    if "wanda" in chosen:
        out += [
            Setting("wanda", "local", r)
            for r in (*(n for n in repairs() if n != "least_squares"), "noise")
        ]
    return out + [Setting(n, "global", rival=True) for n in ("magnitude", "taylor") if n in chosen]


def trained(name: str, seed: int, data: Data, cache: Path) -> nn.Module:
    """The net ``name`` trained with ``seed``, from the cache where it is there."""
    net = NETS[name]
    file = cache / f"{name.replace(' ', '_')}-{seed}.pt"
    torch.manual_seed(seed)
    model = net.build()
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        TALK.print(f"training {name}, seed {seed}")
        train(model, data, epochs=net.epochs, seed=seed, lr=net.lr)
        torch.save(model.state_dict(), file)
    return model.eval()


def tuned(model: nn.Module, data: Data, seed: int, epochs: int = 3) -> float:
    """Test accuracy after ``epochs`` of training, of a copy."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(epochs):
            for index in torch.split(torch.randperm(len(data.train.labels)), 128):
                loss = F.cross_entropy(
                    model(jitter(data.train.images[index])), data.train.labels[index]
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return accuracy(model.eval(), data.test)


class Bench:
    """One net and seed: captured and scored once, cut for every budget."""

    def __init__(self, name: str, seed: int, cache: Path) -> None:
        self.data = load_data(seed)
        half = len(self.data.val.labels) // 2
        images, labels = self.data.val
        self.criterion, self.calibration = (
            Part(images[s], labels[s]) for s in (slice(half), slice(half, None))
        )
        self.seed = seed
        self.model = trained(name, seed, self.data, cache)
        self.example = (self.data.val.images[:2],)
        self.graph = irprune.capture(self.model, self.example, dynamic_shapes=DYNAMIC)
        irprune.groups(self.graph)
        self.whole = macs_of(self.model, self.data.val.images[:1])
        self.scored = ""

    def row(self, setting: Setting, left: float) -> Row:
        """Accuracy as it is and after three epochs, the share of MACs that is left, and the seconds
        that pruning took."""
        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = self._pruned(setting, left)
        except (RuntimeError, irprune.IrpruneError) as error:
            return {"failed": str(error).splitlines()[0][:200]}
        took = time.perf_counter() - began
        return {
            "accuracy": round(accuracy(model, self.data.test), 5),
            "tuned": round(tuned(model, self.data, self.seed), 5),
            "macs": round(macs_of(model, self.data.val.images[:1]) / self.whole, 4),
            "seconds": round(took, 3),
        }

    def _pruned(self, setting: Setting, left: float) -> nn.Module:
        if setting.rival:
            return torch_pruning(
                self.model, self.criterion.images, self.criterion.labels, setting.importance, left
            )
        if setting.importance == "default":
            call: dict[str, Any] = {"args": self.example, "proof": False, "dynamic_shapes": DYNAMIC}
            chosen = irprune.prune(
                self.model,
                budget={"macs": left},
                calibration=self.criterion.images,
                repair=False,
                **call,
            )
            return irprune.apply_plan(
                self.model, chosen.plan, calibration=self.calibration.images, repair=True, **call
            ).module
        if self.scored != setting.importance:
            Score(setting.importance, calibration=self.criterion.images).run(self.graph)
            self.scored = setting.importance
        Choose(budget={"macs": left}, scope=setting.scope).run(self.graph)
        cut = cut_graph(self.graph)
        if setting.repair == "noise":
            repair(self.graph, cut)
        elif setting.repair != "none":
            repair(self.graph, cut, self.calibration.images, setting.repair)
        return emit_module(cut)


def measured(
    nets: Sequence[str], seeds: Iterable[int], rows: Sequence[Setting], cache: Path
) -> dict[str, Row]:
    """All rows by ``net | seed | setting | share`` (and ``net | seed | dense``), as far as the
    cache has them not."""
    store = cache / "rows.jsonl"
    found: dict[str, Row] = dict(kept_rows(store))
    wanted = [(s, n, r, b) for s in seeds for n in nets for r in rows for b in BUDGETS]
    bench: Bench | None = None
    last: tuple[int, str] | None = None
    with (
        Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=TALK) as bar,
        store.open("a") as out,
    ):
        task = bar.add_task("pruning", total=len(wanted))
        for seed, name, setting, left in wanted:
            key = f"{name} | {seed} | {setting} | {left}"
            if key not in found:
                made = {}
                if bench is None or last != (seed, name):
                    bench, last = Bench(name, seed, cache), (seed, name)
                    made[f"{name} | {seed} | dense"] = {
                        "accuracy": round(accuracy(bench.model, bench.data.test), 5)
                    }
                bar.update(task, description=key)
                made[key] = bench.row(setting, left)
                found.update(made)
                out.writelines(json.dumps(pair) + "\n" for pair in made.items())
                out.flush()
            bar.advance(task)
    return found


@click.command(help=__doc__)
@click.option(
    "--net",
    "nets",
    multiple=True,
    type=click.Choice(list(NETS)),
    help="nets to prune; all by default",
)
@click.option("--criterion", "names", multiple=True, help="criteria; all by default")
@click.option("--seeds", default=3, show_default=True, help="how many seeds")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path(tempfile.gettempdir()) / "irprune-quality",
    show_default=True,
)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    nets: Sequence[str], names: Sequence[str], seeds: int, cache: Path, out: Path, threads: int
) -> None:
    torch.set_num_threads(threads)
    cache.mkdir(parents=True, exist_ok=True)
    chosen, rows = list(nets) or list(NETS), settings(names)
    found = measured(chosen, range(seeds), rows, cache)
    click.echo(write(found, chosen, seeds, rows, out))
    if not all(ok for _, ok in bars(found, chosen, seeds, rows)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
