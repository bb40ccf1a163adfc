"""What pruned models still compute: accuracy by criterion, repair and budget, beside Torch-Pruning.

    python tools/quality.py                     three nets, three seeds, all criteria; table and plot under tools/results/
    python tools/quality.py --net ViT --seeds 1 --criterion magnitude

Nets are trained on the digits data, once per seed, and kept in ``--cache``, as are rows: a run that was stopped goes on where it
was. Of each seed's split the training part trains, half of the validation part feeds the criterion, the other half the repair, and
the test part is seen by neither. Torch-Pruning gets the criterion's images with their labels, and the same multiply-accumulates.
"""

from __future__ import annotations

import copy
import datetime
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from quality_nets import NETS
from quality_rival import macs_of, torch_pruning
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from torch import nn
from torch.nn import functional as F

import irprune
from irprune.api import cut_graph
from irprune.digits import Data, Part, accuracy, jitter, load_data, train
from irprune.emit.module import emit_module
from irprune.importance import criteria
from irprune.passes.choose import Choose
from irprune.passes.score import Score
from irprune.repair import METHODS, repair

HERE = Path(__file__).resolve().parent
TALK = Console(stderr=True)
BUDGETS = (0.75, 0.5, 0.25)
DEFAULT = "magnitude, local, least_squares"  # what prune(..., calibration=..., repair=True) does
REPAIRS = ("none", "least_squares")
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A row of the table; ``rival`` is Torch-Pruning."""

    importance: str
    scope: str = "local"
    repair: str = "none"
    rival: bool = False

    def __str__(self) -> str:
        return f"Torch-Pruning {self.importance}, {self.scope}" if self.rival else f"{self.importance}, {self.scope}, {self.repair}"


def settings(names: Sequence[str]) -> list[Setting]:
    """All rows: each criterion with and without repair, every repair and all scopes for some, and Torch-Pruning."""
    chosen = [n for n in sorted(criteria()) if not names or n in names]
    out = [Setting(n, "local", r) for n in chosen for r in REPAIRS]
    out += [Setting(n, "global", r) for n in ("magnitude", "osscar", "taylor") if n in chosen for r in REPAIRS]
    if "magnitude" in chosen:
        out += [Setting("magnitude", "local", r) for r in (*METHODS[1:], "noise")]
    out += [Setting(n, "global", rival=True) for n in ("magnitude", "taylor") if n in chosen]
    return out


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
            for index in torch.split(torch.randperm(len(data.train.labels)), 64):
                loss = F.cross_entropy(model(jitter(data.train.images[index])), data.train.labels[index])
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
        self.criterion, self.calibration = (Part(images[s], labels[s]) for s in (slice(half), slice(half, None)))
        self.seed = seed
        self.model = trained(name, seed, self.data, cache)
        self.graph = irprune.capture(self.model, (self.data.val.images[:2],), dynamic_shapes={"x": {0: torch.export.Dim("n")}})
        irprune.groups(self.graph)
        self.whole = macs_of(self.model, self.data.val.images[:1])
        self.scored = ""

    def row(self, setting: Setting, left: float) -> Row:
        """Accuracy as it is and after three epochs, the share of MACs that is left, and the seconds that pruning took."""
        began = time.perf_counter()
        try:
            model = self._rival(setting, left) if setting.rival else self._ours(setting, left)
        except (RuntimeError, irprune.IrpruneError) as error:
            return {"failed": str(error).splitlines()[0][:200]}
        took = time.perf_counter() - began
        return {"accuracy": accuracy(model, self.data.test), "tuned": tuned(model, self.data, self.seed),
                "macs": macs_of(model, self.data.val.images[:1]) / self.whole, "seconds": took}

    def _rival(self, setting: Setting, left: float) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_pruning(self.model, self.criterion.images, self.criterion.labels, setting.importance, left)

    def _ours(self, setting: Setting, left: float) -> nn.Module:
        if self.scored != setting.importance:
            Score(setting.importance, calibration=self.criterion.images).run(self.graph)
            self.scored = setting.importance
        Choose(budget={"macs": left}, scope=setting.scope).run(self.graph)
        cut = cut_graph(self.graph)
        if setting.repair == "noise":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                repair(self.graph, cut)
        elif setting.repair != "none":
            repair(self.graph, cut, self.calibration.images, setting.repair)
        return emit_module(cut)


def measured(nets: Sequence[str], seeds: Iterable[int], rows: Sequence[Setting], cache: Path) -> dict[str, Row]:
    """All rows by ``net | seed | setting | share``, as far as the cache has them not."""
    store = cache / "rows.json"
    found: dict[str, Row] = json.loads(store.read_text()) if store.exists() else {}
    wanted = [(n, s, r, b) for n in nets for s in seeds for r in rows for b in BUDGETS]
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=TALK) as bar:
        task = bar.add_task("pruning", total=len(wanted))
        bench: Bench | None = None
        last: tuple[str, int] | None = None
        for name, seed, setting, left in wanted:
            key = f"{name} | {seed} | {setting} | {left}"
            if key not in found:
                if last != (name, seed):
                    bench, last = Bench(name, seed, cache), (name, seed)
                assert bench is not None
                bar.update(task, description=key)
                found[key] = bench.row(setting, left)
                store.write_text(json.dumps(found, indent=1))
            bar.advance(task)
        for name in nets:
            for seed in seeds:
                key = f"{name} | {seed} | dense"
                if key not in found:
                    found[key] = {"accuracy": accuracy(trained(name, seed, load_data(seed), cache), load_data(seed).test)}
        store.write_text(json.dumps(found, indent=1))
    return found


# -- the table -------------------------------------------------------------------------------------------------------


def values(found: dict[str, Row], name: str, seeds: Sequence[int], setting: Setting, left: float, what: str) -> list[float]:
    """One number per seed, without those that failed."""
    rows = [found.get(f"{name} | {s} | {setting} | {left}", {}) for s in seeds]
    return [float(r[what]) for r in rows if what in r]


def shown(numbers: Sequence[float], count: int) -> str:
    """Mean and deviation in percent; how many failed, where some did."""
    if not numbers:
        return "fails"
    spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    lost = f" ({count - len(numbers)} fail)" if len(numbers) < count else ""
    return f"{100 * statistics.mean(numbers):.1f} ± {100 * spread:.1f}{lost}"


def dense(found: dict[str, Row], name: str, seeds: Sequence[int]) -> float:
    return statistics.mean(found[f"{name} | {s} | dense"]["accuracy"] for s in seeds)


def table(found: dict[str, Row], nets: Sequence[str], seeds: Sequence[int], rows: Sequence[Setting], what: str) -> str:
    """Markdown: a line per setting, a column per net and budget."""
    head = [f"{name} {left}" for name in nets for left in BUDGETS]
    lines = ["| criterion, scope, repair | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for setting in rows:
        cells = [shown(values(found, name, seeds, setting, left, what), len(seeds)) for name in nets for left in BUDGETS]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bars(found: dict[str, Row], nets: Sequence[str], seeds: Sequence[int], rows: Sequence[Setting]) -> list[tuple[str, bool]]:
    """What must hold at half of the MACs without training, each with whether it does."""
    out = []
    for name in nets:
        means = {str(r): statistics.mean(v) for r in rows if (v := values(found, name, seeds, r, 0.5, "accuracy"))}
        ours = {k: v for k, v in means.items() if not k.startswith("Torch-Pruning")}
        theirs = [v for k, v in means.items() if k.startswith("Torch-Pruning")]
        best, whole = max(ours.values()), dense(found, name, seeds)
        allowed = 0.02 if name == "residual CNN" else 0.05
        which = max(ours, key=lambda k: ours[k])
        out.append((f"{name}: the best setting ({which}) loses {100 * (whole - best):.1f} points, at most {100 * allowed:.0f}",
                    whole - best <= allowed))
        if DEFAULT in ours:
            out.append((f"{name}: the default ({DEFAULT}) is {100 * (best - ours[DEFAULT]):.1f} points below the best, at most 1",
                        best - ours[DEFAULT] <= 0.01))
        if theirs:
            out.append((f"{name}: Torch-Pruning's best loses {100 * (whole - max(theirs)):.1f} points", best >= max(theirs)))
    return out


def plot(found: dict[str, Row], nets: Sequence[str], seeds: Sequence[int], rows: Sequence[Setting], file: Path) -> bool:
    """Accuracy without training over the share of MACs; False where matplotlib is missing."""
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [r for r in rows if r.rival or str(r) in (
        DEFAULT, "magnitude, local, none", "magnitude, local, batch_norm", "magnitude, local, noise", "osscar, local, least_squares",
        "taylor, global, none")]
    figure, axes = pyplot.subplots(1, len(nets), figsize=(5 * len(nets), 4), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], nets, strict=True):
        ax.axhline(100 * dense(found, name, seeds), color="grey", linewidth=0.8)
        for r in lines:
            got = {b: v for b in BUDGETS if (v := values(found, name, seeds, r, b, "accuracy"))}
            means = [100 * statistics.mean(v) for v in got.values()]
            spread = [100 * statistics.stdev(v) if len(v) > 1 else 0.0 for v in got.values()]
            ax.errorbar(list(got), means, spread, marker="o", capsize=3, label=str(r), linestyle="--" if r.rival else "-")
        ax.set_title(name)
        ax.set_xlabel("share of multiply-accumulates")
        ax.invert_xaxis()
    axes[0][0].set_ylabel("test accuracy without training, %")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    return True


@click.command(help=__doc__)
@click.option("--net", "nets", multiple=True, type=click.Choice(list(NETS)), help="nets to prune; all by default")
@click.option("--criterion", "names", multiple=True, help="criteria; all by default")
@click.option("--seeds", default=3, show_default=True, help="how many seeds")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "irprune-quality", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "results", show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(nets: Sequence[str], names: Sequence[str], seeds: int, cache: Path, out: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    cache.mkdir(parents=True, exist_ok=True)
    chosen = list(nets) or list(NETS)
    rows, numbers = settings(names), list(range(seeds))
    found = measured(chosen, numbers, rows, cache)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    checks = bars(found, chosen, numbers, rows)
    whole = ", ".join(f"{name} {100 * dense(found, name, numbers):.1f} %" for name in chosen)
    text = "\n\n".join([
        f"# Accuracy of pruned models, {today}",
        f"Digits data, torch {torch.__version__}, {seeds} seeds: mean ± deviation in percent. Dense: {whole}. Columns are the share of "
        "multiply-accumulates that is left. The criterion sees 180 images, the repair 180 others, neither is in the test set; "
        "Torch-Pruning gets the criterion's images with labels.",
        "## Without training", table(found, chosen, numbers, rows, "accuracy"),
        "## After three epochs", table(found, chosen, numbers, rows, "tuned"),
        "## What must hold", "\n".join(f"* {'holds' if ok else 'FAILS'}: {line}" for line, ok in checks),
    ]) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"quality-{today}.md"
    if plot(found, chosen, numbers, rows, file.with_suffix(".png")):
        text += f"\n![accuracy over multiply-accumulates]({file.with_suffix('.png').name})\n"
    else:
        TALK.print("no plot: pip install matplotlib")
    file.write_text(text)
    click.echo(text)
    if not all(ok for _, ok in checks):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
