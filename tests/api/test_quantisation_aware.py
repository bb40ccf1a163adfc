"""Modules prepared for training with quantisation: pruned, proven, trained and converted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import irprune
from irprune.emit.torch import instance
from irprune.frontend.torch.fake_quantise import fake_quantisers, quantised_weights, rounding_paused

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Net(nn.Module):
    """Convolutions with batch norms, which are prepared as one layer, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c1, self.b1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.c2, self.b2 = nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24)
        self.fc, self.out = nn.Linear(24, 20), nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b1(self.c1(x)))
        x = torch.relu(self.b2(self.c2(x))).mean((2, 3))
        return self.out(torch.relu(self.fc(x)))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def by_fx() -> nn.Module:
    import torch.ao.quantization as quantization
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
    made: nn.Module = prepare_qat_fx(Net().train(), mapping, (X,))
    for batch in DATA.split(8):  # observers see something
        made(batch)
    return made.eval()


def by_export() -> nn.Module:
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch = torch.export.Dim("b", min=2, max=64)
    program = torch.export.export(Net().train(), (X,), dynamic_shapes=({0: batch},))
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    made: nn.Module = prepare_qat_pt2e(program.module(), quantizer)
    for some in DATA.split(8):
        made(some)
    move_exported_model_to_eval(made)
    return made


def trained(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = [p.detach().clone() for p in model.parameters()]
    for batch in DATA.split(16):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def scales(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is held for each channel, by name."""
    return {
        f"{path}.{name}": held
        for path, module in fake_quantisers(model)
        if module.is_per_channel
        for name, held in module.named_buffers()
        if held.dim() == 1 and len(held) > 1
    }


def test_prepared_by_fx_it_is_pruned_trained_and_converted() -> None:
    from torch.ao.quantization.quantize_fx import convert_fx

    model = by_fx()
    pruned = irprune.prune(model, (X,), ratio=0.5, calibration=DATA)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    # The scale of a folded batch norm divides: the judge leaves it as it is
    second = pruned.report.proof.second_pass
    assert second is not None and second.judged == 1.0 and second.judge_error is not None
    assert any("without the rounding of its fake quantisers" in n for n in pruned.report.notes)
    whole = scales(model)
    assert len(whole["c1.weight_fake_quant.scale"]) == 16  # the model is as it was
    instance = pruned.apply_to(copy.deepcopy(model))
    kept = pruned.kept
    for name, weight in (("c1", "c1.weight"), ("c2", "c2.weight"), ("fc", "fc.weight")):
        rows = kept[weight][0]
        for own in ("scale", "zero_point", "activation_post_process.min_val"):
            held = f"{name}.weight_fake_quant.{own}"
            assert torch.equal(scales(instance)[held], whole[held][rows])
    with rounding_paused(instance):
        assert torch.allclose(instance(X), pruned.module(X), atol=1e-5)
    trained(instance.train())
    converted = convert_fx(copy.deepcopy(instance.eval()))
    assert converted(X).shape == (4, 10)
    assert converted.c1.weight().shape == (8, 3, 3, 3)
    near = (converted(X) - instance(X)).abs().max() / instance(X).abs().max()
    assert near < 0.15  # a step or two of 127


def test_prepared_from_an_export_it_is_pruned_trained_and_converted() -> None:
    model = by_export()
    from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    pruned = irprune.prune(model, (X,), ratio=0.5, calibration=DATA)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    found = quantised_weights(model, (X,))
    assert sorted(name for name, _ in found.values()) == [
        "c1.weight",
        "c2.weight",
        "fc.weight",
        "out.weight",
    ]
    instance = pruned.apply_to(model)
    move_exported_model_to_train(instance)
    trained(instance)
    move_exported_model_to_eval(instance)
    converted = convert_pt2e(copy.deepcopy(instance))
    assert converted(X).shape == (4, 10)
    near = (converted(X) - instance(X)).abs().max() / instance(X).abs().max()
    assert near < 0.15


def test_scales_that_stay_whole_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: without the cut of scales the instance cannot round."""
    model = by_fx()
    pruned = irprune.prune(model, (X,), ratio=0.5)
    monkeypatch.setattr(instance, "cut_observers", lambda *given: None)
    spoilt = pruned.apply_to(model)
    with pytest.raises(RuntimeError, match="dimensions of scale and zero-point"):
        spoilt(X)


def test_observers_are_as_they_were_after_a_capture() -> None:
    model = by_fx()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    irprune.capture(model, (X,))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all("forward" not in m.__dict__ for _, m in fake_quantisers(model))


@pytest.mark.parametrize(("bits", "near"), [(8, 0.02), (4, 0.25)])
def test_weights_alone_are_quantised_afterwards(bits: int, near: float) -> None:
    """As docs/guides/quantise.md says."""
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).eval()
    x = torch.randn(8, 256)
    module = irprune.prune(model, (x,), ratio=0.5).module
    wanted = module(x)
    if bits == 8:
        config = quantization.Int8WeightOnlyConfig()
    else:
        groups = quantization.granularity.PerGroup(64)
        config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=groups)
    quantization.quantize_(module, config)
    result = module(x)
    assert type(module.get_submodule("0").weight) is not nn.Parameter
    assert 0 < (result - wanted).norm() / wanted.norm() < near
