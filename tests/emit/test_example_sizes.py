"""The sizes of the example call travel with a file whose sizes are open, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import irprune
from irprune.api.load import Loaded
from irprune.api.runner import runner
from irprune.errors import IrpruneError
from irprune.frontend.onnx.example_sizes import KEY, read_example_sizes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return irprune.prune(net.eval(), (torch.randn(2, 3, 20, 24),), ratio=0.0).onnx(
        tmp_path / "m.onnx"
    )


def test_a_file_is_costed_and_run_at_the_sizes_of_the_example(path: Path) -> None:
    shape = onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim
    assert [bool(d.dim_param) for d in shape] == [True, False, True, True]
    graph = irprune.capture(str(path))
    assert sorted(graph.sizes.values()) == [2, 20, 24]
    pruned = irprune.prune(str(path), ratio=0.5)
    assert pruned.report.macs.before == 2 * (18 * 22 * 8 * 27 + 16 * 20 * 8 * 72)
    assert "2x3x20x24" in str(pruned.report)
    (drawn,) = runner(Loaded(str(path), (), {}, "m"), "cpu").draw(0)
    assert drawn.shape == (2, 3, 20, 24)


def test_an_example_call_is_stronger_than_the_file(path: Path) -> None:
    graph = irprune.capture(str(path), (torch.randn(1, 3, 32, 40),))
    assert sorted(graph.sizes.values()) == [1, 32, 40]


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[1]", "3", '{"x_0": -1}', '{"x_0": 1e300}', '{"x_0": true}', '{"x_0": "5"}'],
)
def test_metadata_that_say_something_else_count_as_nothing(path: Path, text: str) -> None:
    model = onnx.load(str(path))
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=text)
    assert read_example_sizes(model) == {}


def test_sizes_of_names_that_no_input_has_are_left_out(path: Path) -> None:
    model = onnx.load(str(path))
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=json.dumps({"elsewhere": 5, "x": 6}))
    assert irprune.capture(model).sizes == {}


def test_an_input_that_the_file_does_not_have_is_refused(path: Path) -> None:
    given = {"nope": torch.randn(1, 3, 32, 32)}
    with pytest.raises(IrpruneError, match="no input is called 'nope'"):
        runner(Loaded(str(path), (), given, "m"), "cpu")
