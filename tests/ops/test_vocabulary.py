"""A vocabulary that is written as rows of one number in many (Equal, Cast, MatMul) stays whole:
its rows are words, not channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx_models import info, int64, model_of, node, proven, shapes, tensor
from shared import analysed
from torch import Tensor, nn
from torch.nn import functional as F

from irprune.ir.group import groups_of


@pytest.mark.parametrize("length", [12, 1])
def test_equal_cast_matmul_of_a_file(length: int) -> None:
    nodes = [
        node("Unsqueeze", "ids last", "u"),
        node("Equal", "u words", "q"),
        node("Cast", "q", "rows", to=TensorProto.FLOAT),
        node("MatMul", "rows embedding", "e"),
        node("MatMul", "e w1", "a"),
        node("Relu", "a", "b"),
        node("MatMul", "b w2", "y"),
    ]
    tensors = [
        int64("last", 2),
        numpy_helper.from_array(np.arange(37, dtype=np.int32).reshape(1, 1, 37), "words"),
        tensor("embedding", 37, 16),
        tensor("w1", 16, 32),
        tensor("w2", 32, 5),
    ]
    ids = info("ids", 1, length, kind=TensorProto.INT32)
    _, emitted = proven(model_of(nodes, [ids], [info("y", 1, length, 5)], tensors))
    left = shapes(emitted)
    assert left["embedding"] == (37, 8) and left["words"] == (1, 1, 37)
    assert left["w1"] == (8, 16) and left["w2"] == (16, 5)


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Linear(37, 16, bias=False), nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        rows = (ids[..., None] == torch.arange(37)).float()
        return self.out(F.relu(self.embedding(rows)))


def test_a_comparison_with_a_range_in_a_module() -> None:
    graph = analysed(OneHot().eval(), torch.randint(0, 37, (2, 5)))
    frozen = {g.size: g.frozen for g in groups_of(graph)}
    assert "vocabulary" in frozen[37] and not frozen[16]
