"""Graphs of onnx-graphsurgeon go in and come out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import irprune
from irprune.errors import IrpruneError
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.validate.onnx_run import run_model


def net() -> gs.Graph:
    """Three convolutions with a residual connection, built by hand."""
    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> gs.Constant:
        return gs.Constant(name, random.standard_normal(shape).astype(np.float32))

    def value(name: str, *shape: int) -> gs.Variable:
        return gs.Variable(name, np.float32, shape)

    x, a, b, c, y = (
        value(name, 1, channels, 8, 8)
        for name, channels in (("x", 3), ("a", 16), ("b", 16), ("c", 16), ("y", 5))
    )
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        gs.Node("Conv", "first", pads, [x, constant("w1", 16, 3, 3, 3), constant("b1", 16)], [a]),
        gs.Node("Conv", "second", pads, [a, constant("w2", 16, 16, 3, 3)], [b]),
        gs.Node("Add", "sum", {}, [a, b], [c]),
        gs.Node("Conv", "last", {}, [c, constant("w3", 5, 16, 1, 1)], [y]),
    ]
    return gs.Graph(
        nodes,
        [x],
        [y],
        name="net",
        opset=17,
        ir_version=8,
        import_domains=[onnx.helper.make_opsetid("", 17)],
    )


def test_a_graph_is_captured_as_its_file_is() -> None:
    graph = net()
    ours, theirs = irprune.capture(graph), irprune.capture(gs.export_onnx(net()))
    assert str(ours) == str(theirs)
    assert {g.size for g in irprune.groups(ours) if not g.frozen} == {16}


def test_a_graph_is_pruned_proven_and_given_back() -> None:
    graph = net()
    before = gs.export_onnx(net()).SerializeToString(deterministic=True)
    pruned = irprune.prune(graph, ratio=0.5)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    # The user's graph is as it was
    assert gs.export_onnx(graph).SerializeToString(deterministic=True) == before
    small = pruned.surgeon
    assert isinstance(small, gs.Graph) and [n.name for n in small.nodes] == [
        "first",
        "second",
        "sum",
        "last",
    ]
    assert {
        k: tuple(t.shape) for k, t in small.tensors().items() if isinstance(t, gs.Constant)
    } == {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (5, 8, 1, 1)}
    w1 = next(t for k, t in graph.tensors().items() if k == "w1").values
    assert np.array_equal(small.tensors()["w1"].values, w1[pruned.kept["w1"][0]])


def test_the_graph_given_back_computes_what_the_file_does(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pruned = irprune.prune(net(), ratio=0.5)
    x = random_inputs(pruned.graph)
    file = pruned.onnx(tmp_path / "m.onnx")
    small = pruned.surgeon
    small.outputs[0].name = "renamed"  # it is an ordinary graph, to be edited on
    assert relative_error(run_model(gs.export_onnx(small.cleanup()), x), run_model(file, x)) == 0


def test_what_cannot_be_exported_is_said_in_one_line() -> None:
    graph = net()
    graph.nodes[0].attrs["odd"] = object()
    with pytest.raises(IrpruneError, match="onnx-graphsurgeon cannot export the graph") as caught:
        irprune.capture(graph)
    assert "\n" not in str(caught.value)


def test_a_torch_model_has_no_graph_of_graphsurgeon() -> None:
    import torch

    pruned = irprune.prune(
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)),
        (torch.randn(1, 4),),
        ratio=0.5,
    )
    with pytest.raises(IrpruneError, match="did not come from ONNX"):
        pruned.surgeon  # noqa: B018
