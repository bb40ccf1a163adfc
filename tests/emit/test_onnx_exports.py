"""The model cases, exported by both exporters of torch, pruned from the file: proven on
onnxruntime, and as modules in torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import irprune
import models
from irprune.emit.bridge.onnx_module import module_from_onnx
from irprune.emit.onnx.emitter import emit_onnx
from irprune.frontend.onnx.reader import capture_onnx
from irprune.ir.graph import Graph
from irprune.passes.choose import Choose
from irprune.passes.dead_code import DeadCode
from irprune.passes.infer_axes import InferAxes
from irprune.passes.score import Score
from irprune.passes.slice import Slice
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.validate.onnx_oracle import silenced_onnx
from irprune.validate.onnx_run import run_model

LEFT = {  # the largest share of parameters that may be left at 0.5
    "bert": 0.8,
    "densenet121": 0.35,
    "gpt2": 0.35,
    "gru_speech": 0.32,
    "inplace": 0.3,
    "llama": 0.35,
    "lstm_tagger": 0.3,
    "mobilenetv3": 0.32,
    "resnext50": 0.3,
    "shufflenetv2": 0.4,
    "superres": 0.3,
    "swin_t": 0.4,
    "t5": 0.36,
    "unet": 0.3,
    "vit_b16": 0.34,
    "wavenet": 0.3,
    "qkv_unbind": 0.3,
}
# With dynamic sizes or not
DYNAMO = {
    "digits": False,
    "inplace": False,
    "llama": True,
    "vit_b16": True,
    "gnn": True,
}


def exported(name: str, path: Path, dynamo: bool, dynamic: bool = False) -> Path:
    case = models.get(name)
    torch.manual_seed(0)
    model = case.build(small=True).eval()
    args, kwargs = case.example_inputs(small=True)
    given: Mapping[str, Any] = {"dynamic_shapes": case.dynamic} if dynamic else {}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                model,
                args,
                str(path),
                kwargs=kwargs,
                dynamo=True,
                external_data=False,
                verbose=False,
                **given,
            )
        else:
            torch.onnx.export(
                model,
                (*args, kwargs) if kwargs else args,
                str(path),
                dynamo=False,
                opset_version=17,
            )
    return path


def learned(graph: Graph) -> int:
    return sum(int(np.prod(w.shape)) for w in graph.weights.values() if w.kind == "parameter")


def prune_and_prove(path: Path, ratios: tuple[float, ...] = (0.3, 0.5, 0.7)) -> dict[float, float]:
    """For each ratio the share of parameters left, after the file was cut, checked, run and
    compared with the silenced original."""
    model = onnx.load(path)
    graph = capture_onnx(path)
    assert emit_onnx(graph).SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )
    for done in (DeadCode(), InferAxes(), Score()):
        done.run(graph)
    x = random_inputs(graph, default=3)
    left = {}
    for ratio in ratios:
        Choose(ratio).run(graph)
        small = graph.copy()
        Slice().run(small)
        DeadCode().run(small)
        emitted = emit_onnx(small)
        onnx.checker.check_model(emitted, full_check=True)
        silent = silenced_onnx(graph, graph.kept, x)
        assert relative_error(run_model(emitted, x), silent) < 1e-4
        assert relative_error(run_model(model, x), silent) > 1e-3
        left[ratio] = learned(small) / learned(graph)
    return left


def check_module(path: Path) -> None:
    """The module of the file gives what onnxruntime gives, and every parameter gets a gradient."""
    graph = capture_onnx(path)
    DeadCode().run(graph)
    x = random_inputs(graph, default=3)
    module = module_from_onnx(graph)
    made = module(*(torch.from_numpy(x[v.name]) for v in graph.inputs))
    results = list(made) if isinstance(made, (tuple, list)) else [made]
    assert relative_error([r.detach().numpy() for r in results], run_model(path, x)) < 1e-5
    sum((r.float() ** 2).sum() for r in results if r.is_floating_point()).backward()  # type: ignore[union-attr]
    assert [n for n, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", sorted(LEFT))
def test_files_of_the_older_exporter(name: str, tmp_path: Path) -> None:
    path = exported(name, tmp_path / "m.onnx", dynamo=False)
    assert prune_and_prove(path)[0.5] < LEFT[name]
    check_module(path)


@pytest.mark.parametrize("name", sorted(DYNAMO))
def test_files_of_the_newer_exporter(name: str, tmp_path: Path) -> None:
    path = exported(name, tmp_path / "m.onnx", dynamo=True, dynamic=DYNAMO[name])
    assert prune_and_prove(path)[0.5] < LEFT.get(name, 0.36)
    check_module(path)


def test_a_group_norm_loses_channels_of_each_group(tmp_path: Path) -> None:
    """The exporter writes it as an instance norm of what it reshaped; the file keeps the channels
    that are kept from PyTorch."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = (
                torch.nn.Conv2d(3, 24, 3),
                torch.nn.GroupNorm(4, 24),
                torch.nn.Conv2d(24, 5, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(self.first(x)).relu())

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 9, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(tmp_path / "m.onnx"), dynamo=False, opset_version=17)
    kept = []
    for source, args in ((model, (x,)), (tmp_path / "m.onnx", None)):
        pruned = irprune.prune(source, args, ratio=0.5)
        kept.append(pruned.kept["first.weight"][0])
    assert list(kept[0]) == list(kept[1]) and [
        sum(k // 6 == g for k in kept[0]) for g in range(4)
    ] == [3, 3, 3, 3]
    # Each group has a choice of its own
    assert any(kept[0][3 * g + j] % 6 != kept[0][j] % 6 for g in range(4) for j in range(3))
    whole = irprune.prune(tmp_path / "m.onnx", ratio=0.5, prefer="groups")
    assert len({k // 6 for k in whole.kept["first.weight"][0]}) == 2


def test_layers_are_torchs_own_and_export_again(tmp_path: Path) -> None:
    path = exported("resnext50", tmp_path / "m.onnx", dynamo=False)
    graph = capture_onnx(path)
    DeadCode().run(graph)
    module = module_from_onnx(graph)
    kinds = {type(m) for m in module.modules()}
    assert {torch.nn.Conv2d, torch.nn.Linear} <= kinds
    assert module.state_dict().keys() >= {"fc.weight", "fc.bias"}
    x = random_inputs(graph)
    again = torch.export.export(module, tuple(torch.from_numpy(v) for v in x.values()))
    assert (
        relative_error(
            [again.module()(*map(torch.from_numpy, x.values())).detach().numpy()],
            run_model(path, x),
        )
        < 1e-5
    )


def test_a_step_of_training_lowers_the_loss(tmp_path: Path) -> None:
    path = exported("gpt2", tmp_path / "m.onnx", dynamo=False)
    graph = capture_onnx(path)
    for done in (DeadCode(), InferAxes(), Score()):
        done.run(graph)
    Choose(0.5).run(graph)
    small = graph.copy()
    Slice().run(small)
    DeadCode().run(small)
    module = module_from_onnx(small)
    x = [torch.from_numpy(v) for v in random_inputs(graph).values()]
    step = torch.optim.SGD(module.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        out = module(*x)
        loss = (out[0] if isinstance(out, tuple) else out).float().square().mean()
        losses.append(loss.item())
        step.zero_grad()
        loss.backward()
        step.step()
    assert losses[2] < losses[1] < losses[0]
    assert sum(p.numel() for p in module.parameters()) < 0.4 * learned(graph)
