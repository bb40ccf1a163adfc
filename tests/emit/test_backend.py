"""What a graph came from decides how it leaves, and that is asked in one place."""

import onnx
import pytest
import torch

from irprune.emit.backends.base import backend_of
from irprune.errors import IrpruneError
from irprune.frontend.capture import capture
from irprune.frontend.onnx.source import OnnxSource, onnx_source
from irprune.frontend.torch.source import TorchSource, find_torch_source, torch_source
from irprune.ir.parse import from_text

TEXT = "graph g {\n  %x: f32[2, 4] = input\n\n  %y: f32[2, 4] = relu(%x)\n  return %y\n}\n"


def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())


def test_a_module_and_a_file_have_sources_of_their_own(tmp_path):
    graph = capture(net(), (torch.randn(2, 4),))
    assert isinstance(graph.source, TorchSource) and graph.source is torch_source(graph)
    assert graph.source.example_shapes() == [(2, 4)]
    backend = backend_of(graph)
    assert backend.exports
    file = backend.write_onnx(graph, None, tmp_path / "net.onnx")
    read = capture(file)
    assert isinstance(read.source, OnnxSource) and onnx_source(read) is read.source
    assert read.source.example_shapes() is None and not backend_of(read).exports
    assert find_torch_source(read) is None
    x = torch.randn(2, 4)
    assert torch.allclose(backend_of(read).module(read)(x), backend.module(graph)(x), atol=1e-6)
    again = backend_of(read).write_onnx(read, None, tmp_path / "again.onnx")
    assert onnx.load(again) == onnx.load(file)


def test_a_graph_of_text_came_from_no_model():
    graph = from_text(TEXT)
    for ask in (backend_of, torch_source, onnx_source):
        with pytest.raises(IrpruneError, match=r"came from no model|not captured|did not come"):
            ask(graph)


def test_calls_are_bound_by_place_and_by_name():
    class Two(torch.nn.Module):
        def forward(self, x, scale=2.0, *, shift):
            return x * scale + shift["by"]

    x, y = torch.randn(2, 3), torch.randn(3)
    source = torch_source(capture(Two(), (x,), {"shift": {"by": y}}))
    assert [t.shape for t in source.tensors((x,), {"shift": {"by": y}})] == [(2, 3), (3,)]
    bound = source.bind_names({"x": x, "shift": {"by": y}, "label": 1}, "item 0")
    assert bound is not None and bound[0][0] is x and bound[0][1] is y
    assert "label" not in bound[1]
    with pytest.raises(IrpruneError, match="no value for argument 'shift'"):
        source.bind_names({"x": x}, "item 0")
    assert source.bind_args((x,)) is None
    plain = torch_source(capture(net(), (torch.randn(2, 4),)))
    tensors, rest = plain.bind_args((x, 7))
    assert tensors[0] is x and rest == (7,)
