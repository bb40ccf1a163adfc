"""A small fixed sample of the zoo, and the tool that runs all of it.

The cases of models/ need torch alone. Those of timm, torchvision and transformers (extra ``zoo``)
are skipped where the library is missing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import irprune
import models
from irprune.analysis.kinds import KINDS, kinds
from irprune.base.tolerance import FLOAT32
from irprune.criteria.profile import profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import zoo
from zoo_table import summary

# What is prunable in each of our own cases, in the words of the table.
FOUND = {
    "llama": {"embedding width", "kv groups", "heads", "head_dim", "MLP width"},
    "moe": {"embedding width", "heads", "head_dim", "experts' width"},
    "unet": {"channels", "norm-group channels"},
    "resnext50": {"channels", "grouped channels"},
    "gpt2": {"embedding width", "heads", "head_dim", "MLP width"},
    "lstm_tagger": {"embedding width", "recurrent width"},
    "vit_b16": {"embedding width", "heads", "head_dim", "MLP width"},
}

TIMM = (
    "test_resnet",
    "test_vit",
    "test_efficientnet",
    "test_convnext",
    "test_byobnet",
    "test_nfnet",
    "test_mambaout",
)
TRANSFORMERS = (
    "bert",
    "gpt2",
    "llama",
    "vit",
    "t5",
    "mixtral",
    "clip",
    "llava",
    "whisper",
    "deepseek_v3",
    "dinov3_vit",
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _measured(model: torch.nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    record = zoo.measure(model.eval(), args, kwargs, 0.5, onnx=False)
    assert record["oracle"] <= FLOAT32
    assert record["params"][1] < record["params"][0]
    assert record["macs"][1] < record["macs"][0]
    assert set(record["kinds"]) <= set(KINDS)
    json.dumps(record)
    return record


@pytest.mark.parametrize("name", FOUND)
def test_kinds_of_our_cases(name: str) -> None:
    case = models.get(name)
    torch.manual_seed(0)
    model = case.build(small=True)
    args, kwargs = case.example_inputs(small=True)
    graph = irprune.capture(model, args, kwargs)
    irprune.groups(graph)
    assert set(kinds(graph).values()) == FOUND[name]


def test_measure_counts_what_is_in_reach() -> None:
    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
            self.through = torch.nn.Linear(8, 32)  # input and output on its two sides: must stay

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.second(self.first(x)), self.through(x)

    record = zoo.measure(Half(), (torch.randn(2, 8),), {}, 0.5, onnx=False)
    assert record["reach"] == pytest.approx(
        (8 * 16 + 16 + 16 * 8) / (8 * 16 + 16 + 16 * 8 + 8 + 8 * 32 + 32), abs=1e-4
    )
    assert record["reach_possible"] == 1.0
    assert record["out_of_reach"][0][0] == "through.weight"


def test_the_table_says_what_failed_and_why() -> None:
    good = {
        "name": "timm:a",
        "ratio": 0.5,
        "stage": "done",
        "oracle": 1e-7,
        "reach": 1.0,
        "params": [10, 4],
        "kinds": {"heads": 2},
    }
    records = [
        good,
        {**good, "name": "timm:b", "oracle": 0.3},
        {"name": "timm:c", "stage": "prune", "error": "no | rule\nmore"},
        {**good, "name": "timm:d", "reach": 0.5, "out_of_reach": [["w", 5, ["no rule for x"]]]},
        {
            **good,
            "name": "timm:f",
            "reach": 0.5,
            "kinds": {},
            "kinds_frozen": {"heads": 1},
            "frozen": {"positions of conv": 3},
        },
        {
            "name": "transformers:e",
            "stage": "not built",
            "error": "/usr/lib/site-packages/transformers/x.py refuses",
        },
    ]
    text = summary(records)
    assert "| timm | 5 | 3 (60.0%) | 1.0e-07 | 1 (33%) | 40% |" in text
    assert "| timm:b | the proof fails: relative error 0.3 |" in text
    assert "| timm:c | no / rule |" in text
    assert "| timm:d | 50%: no rule for x (w) |" in text
    assert "| timm:f | 50%: positions of conv |" in text
    assert "heads 3 of 4" in text
    assert "itself runs (1): e." in text
    assert "ONNX" not in text and "Torch-Pruning" not in text


def test_the_table_tells_of_onnx_and_of_the_peer() -> None:
    good = {
        "name": "timm:a",
        "ratio": 0.5,
        "stage": "done",
        "oracle": 1e-7,
        "reach": 1.0,
        "params": [10, 4],
        "kinds": {},
        "onnx": 2e-7,
        "peer": {"works": True, "params": 0.3},
    }
    text = summary(
        [
            good,
            {
                **good,
                "name": "timm:b",
                "onnx": None,
                "onnx_error": "refused",
                "peer": {"works": False},
            },
        ]
    )
    assert "1 of 2 agree, worst relative error 2.0e-07" in text
    assert "| timm:b | refused |" in text
    assert "| 1 of 2 run, 30% left |" in text


def test_a_scale_of_zero_is_drawn() -> None:
    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 8, 1))
    torch.nn.init.zeros_(layer[0].weight)
    drawn = layer[1].weight.clone()
    zoo._stir(layer)
    assert layer[0].weight.min() >= 0.25 and layer[0].weight.std() > 0
    assert layer[0].running_var.min() > 0.8 and layer[0].running_var.std() > 0
    assert torch.equal(layer[1].weight, drawn)


def test_a_list_of_one_tensor_is_unpacked() -> None:
    class Single(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return self.second(torch.cat([*y.unbind(0), *(t[0] for t in y.split(1))]))

    assert irprune.prune(Single(), (torch.randn(1, 3, 4),), ratio=0.5).report.proof.passed


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_an_empty_weight_weighs_nothing(p: float) -> None:
    found = profile(np.empty((1, 0, 3), dtype=np.float32), [(0,), (2,)], p)
    assert found[(0,)].tolist() == [0.0]
    assert found[(2,)].tolist() == [0.0, 0.0, 0.0]


def _library(name: str) -> Any:
    if importlib.util.find_spec("tvshim") is not None:
        importlib.import_module("tvshim")
    return pytest.importorskip(name)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = _library("timm")
    if name not in timm.list_models():
        pytest.skip("not in this release")
    assert _measured(*zoo.build(f"timm:{name}"))["reach_possible"] >= 0.95


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_torchvision(name: str) -> None:
    _library("torchvision")
    assert _measured(*zoo.build(f"torchvision:{name}"))["reach_possible"] >= 0.95


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    _library("transformers")
    record = _measured(*zoo.build(f"transformers:{name}"))
    assert record["reach_possible"] >= 0.95
    if name in ("mixtral", "deepseek_v3"):
        assert "experts' width" in record["kinds"]
    if name == "llama":
        assert {"kv groups", "heads"} <= set(record["kinds"])
