"""The sizes of the example call travel with a file whose sizes are open, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
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


def test_sizes_that_torch_cannot_solve_are_open_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's solver refuses what some detectors ask of a size; multiples of a power of 2 it need
    not solve."""
    real = torch.export.export

    def picky(module: Any, *given: Any, dynamic_shapes: Any, **named: Any) -> Any:
        if dynamic_shapes["x"][2] is torch.export.Dim.AUTO:
            raise NotImplementedError("The inequality cannot be solved")
        return real(module, *given, dynamic_shapes=dynamic_shapes, **named)

    class Halves(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.nn.functional.interpolate(self.a(x), scale_factor=2.0))

    torch.manual_seed(0)
    pruned = irprune.prune(Halves().eval(), (torch.randn(1, 3, 32, 48),), ratio=0.5)
    monkeypatch.setattr(torch.export, "export", picky)
    session = onnxruntime.InferenceSession(pruned.onnx(tmp_path / "m.onnx"))
    assert [isinstance(s, str) for s in session.get_inputs()[0].shape] == [True, False, True, True]
    x = torch.randn(3, 3, 64, 16)
    made = session.run(None, {"x": x.numpy()})[0]
    assert abs(made - pruned.module(x).detach().numpy()).max() < 1e-5
