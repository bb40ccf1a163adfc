"""Instances after ``apply_to``: sizes that forward does not read, noise, buffers, scripts; and
modules that are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune.errors import IrpruneError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def linear(*sizes: int) -> nn.Linear:
    return nn.Linear(*sizes)


def cut(model: nn.Module, x: Tensor = X) -> Any:
    pruned = irprune.prune(model.eval(), (x,))
    expected = pruned.module(x)
    pruned.apply_to(model)
    if isinstance(expected, Tensor):
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    return pruned


def test_cells_and_blocks_of_torch_say_their_sizes() -> None:
    model = Model(lambda m, x: m.o(m.c(x)[0]), c=nn.LSTMCell(8, 16), o=linear(16, 3))
    cut(model)
    assert model.c.hidden_size == 8
    model = Model(lambda m, x: m.o(m.c(x)), c=nn.GRUCell(8, 16), o=linear(16, 3))
    cut(model)
    assert model.c.hidden_size == 8
    block = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    model = Model(lambda m, x: m.o(m.t(m.i(x), m.i(x))), t=block, i=linear(8, 16), o=linear(16, 3))
    cut(model, torch.randn(2, 5, 8))
    assert model.t.d_model == 8
    chain = nn.Sequential(
        linear(8, 24), nn.Unflatten(1, (6, 4)), nn.Conv1d(6, 5, 2), nn.Flatten(), linear(15, 3)
    )
    cut(chain)
    assert chain[1].unflattened_size[0] < 6


class Backbone(nn.Module):
    """As timm's models: widths and descriptions of stages that forward does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 48, 3)
        self.head = linear(48, 10)
        self.num_features, self.embed_dim, self.image_size, self.num_classes = 48, 48, 32, 10
        self.stem_chs = 32
        self.feature_info = [
            {"module": "stem", "num_chs": 32, "reduction": 1},
            {"module": "blocks", "num_chs": 48, "reduction": 1},
        ]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out

    def reset_classifier(self, classes: int) -> None:
        self.head = linear(self.num_features, classes)


def test_widths_that_forward_does_not_read_are_the_new_ones() -> None:
    model = Backbone()
    x = torch.randn(2, 3, 16, 16)
    pruned = cut(model, x)
    assert (model.num_features, model.embed_dim, model.stem_chs) == (24, 24, 16)
    assert (model.image_size, model.num_classes) == (32, 10)
    assert [stage["num_chs"] for stage in model.feature_info] == [16, 24]
    assert not [note for note in pruned.report.notes if "as they were" in note]
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)


class TwoStages(nn.Module):
    """Two stages that were of one width, and a head that reads the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage1, self.stage2 = (nn.Conv2d(i, 48, 3) for i in (3, 48, 48))
        self.head, self.num_features = linear(48, 10), 48

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))
        return out


@pytest.mark.parametrize(("ratios", "left"), [({"stage2.weight:0": 0.0}, 48), ({}, 24)])
def test_a_head_tells_which_of_two_equal_widths_is_meant(ratios: Any, left: int) -> None:
    model = TwoStages().eval()
    pruned = irprune.prune(model, (torch.randn(2, 3, 12, 12),), ratio=0.5, ratios=ratios)
    pruned.apply_to(model)
    assert model.stage1.out_channels == 24
    assert model.num_features == model.head.in_features == left


def test_a_width_without_one_new_size_is_named() -> None:
    model = Model(
        lambda m, x: m.o(m.b(m.a(x).relu()).relu()),
        a=linear(8, 16),
        b=linear(16, 16),
        o=linear(16, 3),
    )
    model.hidden_size = 16
    pruned = irprune.prune(model.eval(), (X,), ratios={"a.*": 0.25})
    pruned.apply_to(model)
    assert model.hidden_size == 16
    assert any("leaves the sizes in hidden_size as they were" in n for n in pruned.report.notes)


def test_models_that_draw_noise_are_compared_with_the_same_draws(tmp_path: Any) -> None:
    def noisy(m: Any, x: Tensor) -> Tensor:
        out: Tensor = m.b(m.a(x).relu() + torch.randn_like(x[:, :1]))
        return out

    model = Model(noisy, a=linear(8, 16), b=linear(16, 3)).eval()
    pruned = irprune.prune(model, (X,))
    pruned.onnx(tmp_path / "m.onnx")
    assert pruned.report.parity is None
    assert any("draws random numbers" in note for note in pruned.report.notes)
    state = torch.get_rng_state()
    pruned.apply_to(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.a.out_features == 8


def test_buffers_and_counters_are_as_before() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        m.peak.copy_(torch.maximum(m.peak, h.detach().abs().max()))
        m.calls += 1
        out: Tensor = m.b(h.view(-1, 24))  # 24 stands in the code: this instance cannot be cut
        return out

    model = Model(body, a=linear(8, 24), b=linear(24, 3), calls=0)
    model.register_buffer("peak", torch.zeros(()))
    pruned = irprune.prune(model.eval(), (X,))
    with pytest.raises(IrpruneError, match="cannot be made in this instance"):
        pruned.apply_to(model)
    assert (float(model.peak), model.calls, model.a.out_features) == (0.0, 0, 24)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.o = nn.LSTM(8, 16, batch_first=True), linear(16, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        out: Tensor = self.o(self.g(packed)[1][0][-1])
        return out


def test_packed_sequences_are_those_of_the_example() -> None:
    model, x = Packed().eval(), torch.randn(3, 5, 8)
    pruned = irprune.prune(model, (x, torch.tensor([5, 2, 4])))
    assert pruned.report.proof is not None and pruned.report.proof.passed
    assert pruned.report.params.left < 0.6
    assert any("captured as the example goes" in note for note in pruned.report.notes)
    with pytest.raises(ValueError, match=r"forward goes by values at test_instances.py:\d+"):
        pruned.module(x, torch.tensor([3, 3, 2]))


def test_what_cannot_be_captured_says_why_in_one_line() -> None:
    model = Model(lambda m, x: torch.sparse.mm(m.s, m.a(x)), a=linear(8, 16))
    model.register_buffer("s", torch.eye(4).to_sparse())
    with pytest.raises(IrpruneError, match="'s' is a sparse tensor"):
        irprune.prune(model.eval(), (X,))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripts() -> None:
    inner = torch.jit.script(nn.Sequential(linear(8, 32), nn.ReLU(), linear(32, 16)))
    with pytest.raises(IrpruneError, match=r"a torch.jit script"):
        irprune.prune(inner.eval(), (X,))
    model = Model(lambda m, x: m.o(m.inner(x)), inner=inner, o=linear(16, 3)).eval()
    pruned = irprune.prune(model, (X,))
    assert pruned.report.params.left < 0.6
    with pytest.raises(IrpruneError, match=r"'inner' is a torch.jit script"):
        pruned.apply_to(model)


def test_complex_numbers_written_in_place_train() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        h = torch.fft.rfft(m.a(x), dim=0)
        o = torch.zeros(3, 16, dtype=torch.cfloat)
        o[:2] = h[:2] * m.w
        o[2] = h[2]
        out: Tensor = m.b(torch.fft.irfft(o, n=4, dim=0))
        return out

    w = nn.Parameter(torch.randn(16, dtype=torch.cfloat))
    model = Model(body, a=linear(8, 16), w=w, b=linear(16, 3)).eval()
    pruned = irprune.prune(model, (X,), ratio=0)
    assert model.w.grad is None
    for m in (pruned.module, model):
        m(X).square().sum().backward()
    torch.testing.assert_close(pruned.module.w.grad, model.w.grad)


def test_a_half_model_may_cast_its_inputs_itself() -> None:
    model = Model(
        lambda m, x: m.b(m.a(x.to(m.a.weight.dtype)).relu()).float(),
        a=linear(8, 16),
        b=linear(16, 3),
    )
    assert irprune.prune(model.bfloat16().eval(), (X,)).report.proof.passed


def test_numbers_among_the_outputs_are_left_out_of_a_file(tmp_path: Any) -> None:
    import onnx

    model = Model(
        lambda m, x: {"n": len(x), "out": m.b(m.a(x).relu())}, a=linear(8, 16), b=linear(16, 3)
    )
    pruned = irprune.prune(model.eval(), (X,))
    with torch.no_grad():
        pruned.module.b.weight.mul_(2)  # the file has what the module has
    path = pruned.onnx(tmp_path / "m.onnx")
    assert [v.name for v in onnx.load(path).graph.output] == ["out"]
    assert pruned.report.parity.passed
