"""Kinds of groups: files have heads, head_dim, recurrent widths and the rest as modules have
them."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto
from onnx_models import info, int64, model_of, node, tensor
from shared import analysed, analysed_file
from torch import Tensor, nn
from torch.nn import functional as F

from irprune.analysis.kinds import kinds
from irprune.ir.graph import Graph


def sizes(graph: Graph) -> dict[str, list[int]]:
    """The sizes of the groups of each kind."""
    out: dict[str, list[int]] = {}
    for axis, kind in kinds(graph).items():
        out.setdefault(kind, []).append(int(axis.size))  # type: ignore[call-overload]
    return {k: sorted(v) for k, v in sorted(out.items())}


# -- recurrence ------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner, self.last = kind(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.inner(x)[0])
        return made


def recurrent_file(kind: str, gates: int) -> onnx.ModelProto:
    nodes = [
        node(kind, "x w r", "s", hidden_size=10),
        node("Squeeze", "s one", "q"),
        node("MatMul", "q last", "y"),
    ]
    held = [tensor("w", 1, gates * 10, 6), tensor("r", 1, gates * 10, 10), tensor("last", 10, 3)]
    return model_of(nodes, [info("x", 5, 2, 6)], [info("y", 5, 2, 3)], [*held, int64("one", 1)])


@pytest.mark.parametrize(
    ("layer", "kind", "gates"), [(nn.LSTM, "LSTM", 4), (nn.GRU, "GRU", 3), (nn.RNN, "RNN", 1)]
)
def test_recurrent_widths(layer: type[nn.RNNBase], kind: str, gates: int) -> None:
    want = {"recurrent width": [10]}
    assert sizes(analysed(Recurrent(layer).eval(), torch.randn(5, 2, 6))) == want
    assert sizes(analysed_file(recurrent_file(kind, gates))) == want


# -- attention -------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Four query heads of 8 over ``groups`` key heads, and how they meet."""

    def __init__(self, meet: Any, groups: int = 4) -> None:
        super().__init__()
        self.q, self.last = nn.Linear(6, 32), nn.Linear(32, 3)
        self.k, self.v = nn.Linear(6, 8 * groups), nn.Linear(6, 8 * groups)
        self.meet, self.groups = meet, groups

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(2, 5, 4, 8).transpose(1, 2)
        k, v = (f(x).view(2, 5, self.groups, 8).transpose(1, 2) for f in (self.k, self.v))
        made: Tensor = self.last(self.meet(q, k, v).transpose(1, 2).reshape(2, 5, 32))
        return made


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


def sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k), -1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def attention_file(middle: list[Any], groups: int = 4, opset: int = 23) -> onnx.ModelProto:
    """The same, where ``middle`` makes ``o`` of ``q``, ``k`` and ``v``."""
    held = [tensor("wq", 6, 32), tensor("wk", 6, 8 * groups), tensor("wv", 6, 8 * groups)]
    return model_of(
        [*(node("MatMul", f"x w{n}", n) for n in "qkv"), *middle, node("MatMul", "o last", "y")],
        [info("x", 2, 5, 6)],
        [info("y", 2, 5, 3)],
        [*held, tensor("last", 32, 3), int64("apart", 2, 5, 4, 8), int64("whole", 2, 5, 32)],
        opset=opset,
        ir=10,
    )


MICROSOFT: dict[str, Any] = {"domain": "com.microsoft"}
APART = [node("Reshape", f"{n} apart", f"{n}r") for n in "qkv"]
TURNED = [node("Transpose", f"{n}r", f"{n}t", perm=[0, 2, 1, 3]) for n in "qv"]
TOGETHER = [
    node("Transpose", "ot", "or", perm=[0, 2, 1, 3]),
    node("Reshape", "or whole", "o"),
]
MATMULS = [
    *APART,
    *TURNED,
    node("Transpose", "kr", "kt", perm=[0, 2, 3, 1]),
    node("MatMul", "qt kt", "s"),
    node("Softmax", "s", "p"),
    node("MatMul", "p vt", "ot"),
    *TOGETHER,
]
EINSUMS = [
    *APART,
    node("Einsum", "qr kr", "s", equation="bqhd,bkhd->bhqk"),
    node("Softmax", "s", "p"),
    node("Einsum", "p vr", "or", equation="bhqk,bkhd->bqhd"),
    node("Reshape", "or whole", "o"),
]
BOTH = {"head_dim": [8, 8], "heads": [4]}


@pytest.mark.parametrize("meet", [fused, products, sums])
def test_heads_of_modules(meet: Any) -> None:
    assert sizes(analysed(Attention(meet).eval(), torch.randn(2, 5, 6))) == BOTH


@pytest.mark.parametrize(
    "middle",
    [
        [node("Attention", "q k v", "o", q_num_heads=4, kv_num_heads=4)],
        [node("MultiHeadAttention", "q k v", "o", num_heads=4, **MICROSOFT)],
        MATMULS,
        EINSUMS,
    ],
    ids=["Attention", "MultiHeadAttention", "MatMul", "Einsum"],
)
def test_heads_of_files(middle: list[Any]) -> None:
    assert sizes(analysed_file(attention_file(middle))) == BOTH


def test_heads_of_attention_with_its_projection() -> None:
    model = model_of(
        [
            node("Attention", "x w b", "o", num_heads=4, **MICROSOFT),
            node("MatMul", "o last", "y"),
        ],
        [info("x", 2, 5, 6)],
        [info("y", 2, 5, 3)],
        [tensor("w", 6, 96), tensor("b", 96), tensor("last", 32, 3)],
    )
    assert sizes(analysed_file(model)) == BOTH


def test_key_value_groups() -> None:
    want = {"head_dim": [8, 8], "heads": [2], "kv groups": [2]}
    assert sizes(analysed(Attention(fused, 2).eval(), torch.randn(2, 5, 6))) == want
    grouped = [node("Attention", "q k v", "o", q_num_heads=4, kv_num_heads=2)]
    assert sizes(analysed_file(attention_file(grouped, 2))) == want


# -- the rest --------------------------------------------------------------------------------------


def images(nodes: list[Any], *held: Any, opset: int = 21) -> onnx.ModelProto:
    return model_of(
        [node("Conv", "x w", "a", kernel_shape=[1, 1]), *nodes, node("Conv", "n v", "y")],
        [info("x", 1, 3, 6, 6)],
        [info("y", None, None, None, None)],
        [tensor("w", 12, 3, 1, 1), tensor("v", 5, 12, 1, 1), *held],
        opset=opset,
        ir=10,
    )


class Images(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 12, 1, bias=False), inner
        self.last = nn.Conv2d(12, 5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.inner(self.first(x)))
        return made


def test_channels_of_norm_groups() -> None:
    want = {"channels": [3], "norm-group channels": [4]}
    assert sizes(analysed(Images(nn.GroupNorm(3, 12)).eval(), torch.randn(1, 3, 6, 6))) == want
    norm = node("GroupNormalization", "a s b", "n", num_groups=3)
    assert sizes(analysed_file(images([norm], tensor("s", 12), tensor("b", 12)))) == want
    written = [  # as exporters write it
        node("Reshape", "a flat", "f"),
        node("InstanceNormalization", "f one zero", "i"),
        node("Reshape", "i full", "m"),
        node("Mul", "m s", "n"),
    ]
    held = [int64("flat", 1, 3, -1), int64("full", 1, 12, 6, 6), tensor("s", 12, 1, 1)]
    held += [tensor("one", 3), tensor("zero", 3)]
    assert sizes(analysed_file(images(written, *held))) == want


def test_channels_of_grouped_convolutions() -> None:
    want = {"channels": [3, 4], "grouped channels": [4]}
    inner = nn.Sequential(nn.ConstantPad2d((0, 1, 1, 0), 0.0), nn.Conv2d(12, 12, 3, groups=3))
    assert sizes(analysed(Images(inner).eval(), torch.randn(1, 3, 6, 6))) == want
    conv = node("Conv", "a k", "n", group=3, kernel_shape=[3, 3], pads=[1, 0, 0, 1])
    assert sizes(analysed_file(images([conv], tensor("k", 12, 4, 3, 3)))) == want


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(20, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.table(x))
        return made


def test_embedding_widths() -> None:
    want = {"embedding width": [16]}
    ids = torch.randint(0, 20, (2, 5))
    assert sizes(analysed(Lookup().eval(), ids)) == want
    model = model_of(
        [node("Gather", "table x", "e"), node("MatMul", "e last", "y")],
        [info("x", 2, 5, kind=TensorProto.INT64)],
        [info("y", 2, 5, 3)],
        [tensor("table", 20, 16), tensor("last", 16, 3)],
    )
    assert sizes(analysed_file(model)) == want
