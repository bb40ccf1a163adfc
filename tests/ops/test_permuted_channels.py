"""Channels that a constant list of indices puts in another order are pruned through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import irprune
from irprune.ops.aten.index import transposition

SHUFFLED = np.arange(24).reshape(4, 6).T.ravel()
THREE = np.arange(24).reshape(2, 3, 4).transpose(2, 1, 0).ravel()
HALVES = np.concatenate([np.arange(12, 24), np.arange(12)])


def test_what_is_a_transposition() -> None:
    assert transposition(SHUFFLED, 24) == [(6, 1), (4, 6)]
    assert transposition(THREE, 24) == [(4, 1), (3, 4), (2, 12)]
    for other in (
        np.arange(24),
        HALVES,
        SHUFFLED[::-1],
        SHUFFLED[:12],
        np.random.default_rng(0).permutation(24),
        np.zeros(24, np.int64),
        np.repeat(np.arange(12), 2),
    ):
        assert transposition(np.asarray(other), 24) is None


@pytest.mark.parametrize("count", range(2, 40))
def test_every_transposition_of_two_dimensions_is_found(count: int) -> None:
    for inner in range(2, 12):
        order = np.arange(count * inner).reshape(count, inner).T.ravel()
        levels = transposition(order, len(order))
        assert levels is not None
        offsets = np.zeros(1, np.int64)
        for n, stride in levels:
            offsets = (offsets[:, None] + stride * np.arange(n)).ravel()
        assert np.array_equal(offsets, order)


@pytest.mark.parametrize("order", [SHUFFLED, THREE, HALVES], ids=["two", "three", "halves"])
@pytest.mark.parametrize("kind", ["i4", "i8"])
def test_a_file_is_pruned_through_it(order: NDArray[np.int64], kind: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0).standard_normal
    arrays = {
        "w": draw((24, 3, 3, 3)).astype("f4"),
        "v": draw((4, 24, 1, 1)).astype("f4"),
        "order": order.astype(kind),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Gather", ["a", "order"], ["b"], axis=1),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8])
        for n, c in (("x", 3), ("y", 4))
    ]
    held = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    pruned = irprune.prune(model, ratio=0.5)
    assert pruned.report.params.left == 0.5
    assert pruned.report.proof is not None and pruned.report.proof.passed
    held = onnx.load(pruned.onnx(tmp_path / "m.onnx")).graph.initializer
    made = {t.name: numpy_helper.to_array(t) for t in held}
    assert made["w"].shape[0] == made["v"].shape[1] == 12
    index = next(a for a in made.values() if a.ndim == 1)
    assert sorted(index) == list(range(12)) and index.dtype == np.dtype(kind)


def test_a_module_is_pruned_through_it() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 4, 1)
            self.register_buffer("order", torch.as_tensor(SHUFFLED))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().index_select(1, self.order))

    torch.manual_seed(0)
    pruned = irprune.prune(Shuffled().eval(), (torch.randn(2, 3, 8, 8),), ratio=0.5)
    assert pruned.report.params.left < 0.52
    assert pruned.report.proof is not None and pruned.report.proof.passed
