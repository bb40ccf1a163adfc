"""irprune beside others, on the same models in the same run. One function per rival: ``RIVALS[name](models, rounds)``.

A rival runs in this process, alternating with irprune, so that both see the same machine. It returns one row per model:
``{"model", "ours": seconds, "theirs": seconds, "stages": {name: seconds}, ...}``.
"""

from __future__ import annotations

import copy
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import irprune
import models

Rival = Callable[[Sequence[str], int], list[dict[str, Any]]]


def torch_pruning(names: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Torch-Pruning's ``MagnitudePruner`` (build and step, classifier kept) at ratio 0.5; the copy it works on is not timed."""
    import torch_pruning as tp

    warnings.simplefilter("ignore")
    rows = []
    for name in names:
        case = models.get(name)
        torch.manual_seed(0)
        model = case.build().eval()
        args, kwargs = case.example_inputs()
        args = tuple(a[:1] for a in args)  # Torch-Pruning runs the model, irprune does not: one example is enough for both
        outputs = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
        path = next(n for n, m in model.named_modules() if m is outputs)
        theirs, ours, parts = [], [], []
        left = params = 0
        for _ in range(rounds + 1):  # the first round warms both up
            twin = copy.deepcopy(model)
            gc.collect()
            began = time.perf_counter()
            pruner = tp.pruner.MagnitudePruner(
                twin, args, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=[twin.get_submodule(path)],
            )
            pruner.step()
            theirs.append(time.perf_counter() - began)
            left = sum(p.numel() for p in twin.parameters())
            gc.collect()
            began = time.perf_counter()
            pruned = irprune.prune(model, args, kwargs, ratio=0.5, proof=False)
            ours.append(time.perf_counter() - began)
            parts.append(dict(pruned.report.seconds))
            params = pruned.report.params.after
        total = sum(p.numel() for p in model.parameters())
        medians = {k: statistics.median(p.get(k, 0.0) for p in parts[1:]) for k in parts[-1]}
        rows.append({
            "model": name, "ours": statistics.median(ours[1:]), "theirs": statistics.median(theirs[1:]), "stages": medians,
            "left": params / total, "left_theirs": left / total,
        })
    return rows


RIVALS: dict[str, Rival] = {"torch-pruning": torch_pruning}
