"""What several tests share: models and files analysed, scored, chosen and cut; outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from irprune import api
from irprune.emit.torch.module import emit_module
from irprune.frontend.onnx.reader import capture_onnx
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.passes.choose import Choose
from irprune.passes.dead_code import DeadCode
from irprune.passes.infer_axes import InferAxes
from irprune.passes.score import Score
from irprune.passes.slice import Slice
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors
from irprune.run.oracle import silenced

MY_PASS = Path(__file__).parent / "data" / "my_pass.py"
NET = """\
graph Net {
  %x: f32[2, 4] = input
  %up: f32[8, 4] = parameter
  %mid: f32[24, 8] = parameter
  %down: f32[3, 24] = parameter

  %a: f32[2, 8] = linear(%x, %up)
  %i: f32[2, 8] = identity(%a)
  %b: f32[2, 24] = linear(%i, %mid)
  %y: f32[2, 3] = linear(%b, %down)
  return %y
}
"""


def chosen(
    model: nn.Module, *args: Tensor, importance: Any = "magnitude", data: Any = None, **options: Any
) -> Graph:
    graph = api.analyse(api.capture(model.eval(), args))
    Score(importance, calibration=data).run(graph)
    Choose(**options).run(graph)
    return graph


def proven(model: nn.Module, *args: Tensor, **options: Any) -> Graph:
    """The choice, after its cut was checked against the silenced original in float64."""
    model, args = model.double(), tuple(a.double() for a in args)
    graph = chosen(model, *args, **options)
    assert graph.kept is not None and graph.kept.choice
    with torch.no_grad():
        small = emit_module(api.cut_graph(graph))(*args)
    assert relative_error([small], silenced(graph, graph.kept, args)) < 1e-12
    return graph


def named(graph: Graph, name: str) -> Axis:
    return next(g.axis for g in groups_of(graph) if name in map(str, g.members))


def outputs(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    with torch.no_grad():
        return flat_tensors(model(*args, **kwargs))


def analysed(model: nn.Module, *args: Any, **kwargs: Any) -> Graph:
    """The analysed graph of a module."""
    return api.analyse(api.capture(model, args, kwargs))


def analysed_file(model: onnx.ModelProto | str | Path) -> Graph:
    """The analysed and scored graph of an ONNX model."""
    graph = capture_onnx(model)
    for step in (DeadCode(), InferAxes(), Score()):
        step.run(graph)
    return graph


def cut_file(graph: Graph, ratio: float = 0.5) -> Graph:
    """A copy of what ``analysed_file`` gives, cut."""
    Choose(ratio).run(graph)
    small = graph.copy()
    Slice().run(small)
    DeadCode().run(small)
    return small
