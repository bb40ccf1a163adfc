"""A mean that is written out, a sum over a number, counts who is left after a cut."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_models import info, int64, model_of, node, tensor
from torch import nn

import irprune
from irprune.validate.onnx_run import run_model

WIDTH = 8


class Norm(nn.Module):
    """A norm as people write it who know its width, between two layers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 4)
        self.register_buffer("share", torch.tensor(1 / WIDTH))

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        whole = x.sum(-1, keepdim=True)
        if self.way == "quotient":
            return whole / WIDTH
        return whole * self.share if self.way == "buffer" else (1 / WIDTH) * whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        mean = self.mean(h)
        return self.second((h - mean) / (self.mean(h * h) - mean**2 + 1e-3).sqrt())


@pytest.mark.parametrize("way", ["quotient", "buffer", "product"])
def test_a_norm_that_forward_writes_out_is_over_what_is_left(way: str) -> None:
    torch.manual_seed(1)
    model, x = Norm(way).eval(), torch.randn(5, 6)
    pruned = irprune.prune(model, (x,), ratio=0.5, calibration=False)
    assert pruned.module.first.out_features == 4 and pruned.report.proof.max_error < 1e-5
    h = torch.relu(pruned.module.first(x))
    wanted = pruned.module.second(
        (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-3).sqrt()
    )
    torch.testing.assert_close(pruned.module(x), wanted)


def test_a_sum_that_is_rounded_before_it_is_divided_stays_one() -> None:
    torch.manual_seed(1)
    model, x = Norm("quotient").bfloat16().eval(), torch.randn(5, 6).bfloat16()
    pruned = irprune.prune(model, (x,), ratio=0.5, calibration=False)
    assert [n.op for n in pruned.graph.nodes].count("sum") == 2


def test_a_norm_of_an_exported_program_is_over_what_is_left() -> None:
    torch.manual_seed(1)
    model, x = Norm("quotient").eval(), torch.randn(5, 6)
    graph = irprune.capture(torch.export.export(model, (x,)))
    assert [n.op for n in graph.nodes].count("mean") == 2
    assert not any(n.op == "sum" for n in graph.nodes)


@pytest.mark.parametrize("scaled", [lambda s, x: s / 7, lambda s, x: s + s / WIDTH])
def test_what_is_no_mean_stays_a_sum(scaled: object) -> None:
    class Summed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scaled(x.sum(-1, keepdim=True), x)  # type: ignore[operator]

    graph = irprune.capture(Summed(), (torch.randn(5, WIDTH),))
    assert [n.op for n in graph.nodes].count("sum") == 1


def normed(opset: int, count: float) -> onnx.ModelProto:
    """Two layers and between them a norm with sums times ``1 / count``, as XLA spells it."""
    share = numpy_helper.from_array(np.float32(1 / count), "share")
    axes = {"axes": [1]} if opset < 13 else {}
    over = "" if opset < 13 else " one"
    nodes = [
        node("Gemm", "x w1 b1", "h"),
        node("ReduceSum", f"h{over}", "s1", keepdims=1, **axes),
        node("Mul", "s1 share", "m1"),
        node("Mul", "h h", "hh"),
        node("ReduceSum", f"hh{over}", "s2", keepdims=1, **axes),
        node("Mul", "share s2", "m2"),
        node("Mul", "m1 m1", "mm"),
        node("Sub", "m2 mm", "var"),
        node("Add", "var small", "kept"),
        node("Sqrt", "kept", "root"),
        node("Sub", "h m1", "centred"),
        node("Div", "centred root", "n"),
        node("Gemm", "n w2 b2", "y"),
    ]
    tensors = [
        tensor("w1", 6, WIDTH),
        tensor("b1", WIDTH),
        tensor("w2", WIDTH, 4),
        tensor("b2", 4),
        share,
        numpy_helper.from_array(np.float32(1e-3), "small"),
        *([] if opset < 13 else [int64("one", 1)]),
    ]
    return model_of(nodes, [info("x", "n", 6)], [info("y", "n", 4)], tensors, opset)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_norm_of_a_file_with_sums_is_over_what_is_left(opset: int, tmp_path: object) -> None:
    pruned = irprune.prune(normed(opset, WIDTH), ratio=0.5, calibration=False)
    made = pruned.onnx(tmp_path / "m.onnx")  # type: ignore[operator]
    model = onnx.load(tmp_path / "m.onnx")  # type: ignore[operator]
    assert made is not None and "ReduceMean" in {n.op_type for n in model.graph.node}
    held = {t.name: numpy_helper.to_array(t).astype(float) for t in model.graph.initializer}
    assert held["w1"].shape == (6, 4)
    x = np.random.default_rng(0).standard_normal((3, 6))
    h = x @ held["w1"] + held["b1"]
    n = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-3)

    (found,) = run_model(model, {"x": x.astype(np.float32)})
    np.testing.assert_allclose(found, n @ held["w2"] + held["b2"], rtol=1e-4, atol=1e-4)


def test_a_file_whose_sums_are_no_means_keeps_them() -> None:
    graph = irprune.capture(normed(13, 7))
    assert [n.op for n in graph.nodes].count("sum") == 2
    given = normed(13, WIDTH)
    before = given.SerializeToString()
    irprune.capture(given)
    assert given.SerializeToString() == before
