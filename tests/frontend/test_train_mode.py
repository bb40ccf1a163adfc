"""What a model does in training alone: the pruned module does it too, or the report says what is
lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irprune


class DropPath(nn.Module):
    def __init__(self, p: float, whole: bool = False, scale: bool = True) -> None:
        super().__init__()
        self.p, self.whole, self.scale = p, whole, scale

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        rows = 1 if self.whole else x.shape[0]
        kept = x.new_empty([rows, *[1] * (x.dim() - 1)]).bernoulli_(1 - self.p)
        return x * kept / (1 - self.p) if self.scale else x * kept


class Model(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.body = nn.Linear(8, 16), nn.Linear(16, 3), body
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.body(self, self.a(x)))
        return out


def _attention(m: Any, h: Tensor) -> Tensor:
    q = h.reshape(1, -1, 2, 8).transpose(1, 2)
    rate = 0.4 if m.training else 0.0
    mixed = F.scaled_dot_product_attention(q, q, q, dropout_p=rate)
    return mixed.transpose(1, 2).reshape(h.shape)


LAYER = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=True)
KEPT = {
    "dropout": lambda: Model(lambda m, h: m.d(h), d=nn.Dropout(0.3)),
    "function": lambda: Model(lambda m, h: F.dropout(h, 0.4, m.training)),
    "stochastic depth": lambda: Model(lambda m, h: h + m.d(h), d=DropPath(0.4)),
    "of the batch": lambda: Model(lambda m, h: h + m.d(h), d=DropPath(0.6, whole=True)),
    "attention": lambda: Model(_attention),
    "encoder": lambda: Model(lambda m, h: m.e(h[None])[0], e=LAYER),
    "momentum": lambda: Model(lambda m, h: m.n(h), n=nn.BatchNorm1d(16, momentum=0.03)),
}
X = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))


def _trained(model: nn.Module) -> Tensor:
    torch.manual_seed(5)
    out: Tensor = model.train()(X)
    model.eval()
    return out


@pytest.mark.parametrize("kind", KEPT)
def test_training_draws_what_the_original_draws(kind: str) -> None:
    model = KEPT[kind]().eval()
    pruned = irprune.prune(model, (X,), ratio=0)
    assert not [n for n in pruned.report.notes if "training" in n]
    torch.testing.assert_close(_trained(pruned.module), _trained(model), rtol=1e-4, atol=1e-5)
    if kind == "momentum":
        torch.testing.assert_close(pruned.module.n.running_mean, model.n.running_mean)
    elif kind != "encoder":  # what is drawn matters
        assert not torch.allclose(_trained(model), model(X))
    half = irprune.prune(model, (X,), ratio=0.5)
    assert torch.isfinite(_trained(half.module)).all()


def test_a_rate_of_nothing_is_nothing() -> None:
    pruned = irprune.prune(Model(lambda m, h: m.d(h), d=DropPath(0.0)).eval(), (X,), ratio=0.5)
    assert not [n for n in pruned.report.notes if "training" in n]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: Model(lambda m, h: m.d(h), d=DropPath(0.3, scale=False)), "DropPath"),
        (lambda: Model(lambda m, h: h * 2 if m.training else h), "Model"),
        (
            lambda: Model(
                lambda m, h: m.m(h, h, h)[0], m=nn.MultiheadAttention(16, 2, dropout=0.1)
            ),
            "MultiheadAttention",
        ),
    ],
)
def test_what_is_lost_is_named(model: Callable[[], nn.Module], name: str) -> None:
    notes = irprune.prune(model().eval(), (X,), ratio=0.5).report.notes
    assert any(f"what {name} does in training alone" in n for n in notes)


def test_an_exported_file_has_no_training(tmp_path: Any) -> None:
    import onnx

    pruned = irprune.prune(KEPT["stochastic depth"]().eval(), (X,), ratio=0.5)
    path = pruned.onnx(tmp_path / "m.onnx")
    kinds = {n.op_type for n in onnx.load(path).graph.node}
    assert kinds <= {"Gemm", "Add", "MatMul", "Identity"}
