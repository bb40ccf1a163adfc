"""The same cut in the user's own instance: made whole, or not at all."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from shared import outputs
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
import models
from irprune.errors import IrpruneError
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors

REFUSE = {"hardcoded_view": r"hardcoded_view\.py:5\d: .*128.*tried Block\.added"}


@pytest.mark.parametrize("name", [n for n in models.names() if models.get(n).refused is None])
def test_apply_to_makes_the_same_cut_or_changes_nothing(name: str) -> None:
    case = models.get(name)
    torch.manual_seed(0)
    model = case.build(small=True).train()
    args, kwargs = case.example_inputs(small=True)
    pruned = irprune.prune(model, args, kwargs, proof=False, calibration=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = {
        (k, n): v
        for k, m in model.named_modules()
        for n, v in vars(m).items()
        if isinstance(v, (int, tuple))
    }
    if name in REFUSE:
        with pytest.raises(IrpruneError, match=REFUSE[name]):
            pruned.apply_to(model)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert plain == {
            (k, n): v
            for k, m in model.named_modules()
            for n, v in vars(m).items()
            if isinstance(v, (int, tuple))
        }
        return
    assert pruned.apply_to(model) is model
    assert model.training
    used = [
        k for w in pruned.cut.weights.values() if w.kind != "constant" for k in (w.name, *w.aliases)
    ]
    assert {k: model.get_parameter(k).shape for k, _ in model.named_parameters() if k in used} == {
        k: p.shape for k, p in pruned.module.named_parameters() if k in used
    }
    model.eval()
    assert (
        relative_error(outputs(model, *args, **kwargs), outputs(pruned.module, *args, **kwargs))
        <= 1e-5
    )
    model.train()
    sum(
        t.float().sum() for t in flat_tensors(model(*args, **kwargs)) if t.is_floating_point()
    ).backward()


def test_apply_to_updates_sizes_that_layers_and_modules_hold() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.head_dim = 4, 6
            self.qkv = nn.Linear(10, 72)
            self.out = nn.Linear(24, 10)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(2, 5, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).reshape(2, 5, self.heads * self.head_dim))

    torch.manual_seed(0)
    model, x = Attention(), torch.randn(2, 5, 10)
    pruned = irprune.prune(model, (x,))
    tied = model.qkv.weight
    pruned.apply_to(model)
    assert (model.heads, model.head_dim) == (2, 6)
    assert (model.qkv.in_features, model.qkv.out_features, model.out.in_features) == (10, 36, 12)
    assert isinstance(model.qkv.weight, nn.Parameter) and model.qkv.weight is not tied
    with pytest.raises(IrpruneError, match="apply the cut to the model that was pruned, once"):
        pruned.apply_to(model)


def test_apply_to_another_model_is_refused(tmp_path: Path) -> None:
    pruned = irprune.prune(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(2, 4),)
    )
    with pytest.raises(IrpruneError, match=r"no '0\.weight'"):
        pruned.apply_to(nn.Identity())
    for other, thing in (
        (pruned, "model"),
        (irprune.prune(pruned.onnx(tmp_path / "m.onnx"), proof=False), nn.Identity()),
    ):
        with pytest.raises(IrpruneError, match="there is no instance to cut"):
            other.apply_to(thing)


def test_apply_to_takes_repaired_values_and_leaves_trained_ones() -> None:
    torch.manual_seed(0)
    layers, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)
    plain, repaired = (irprune.prune(layers, (x,), repair=how) for how in (None, "bias"))
    with torch.no_grad():
        for parameter in plain.module.parameters():
            parameter.add_(1)  # the user's training
    made = [pruned.apply_to(copy.deepcopy(layers)) for pruned in (plain, repaired)]
    assert torch.equal(made[0][0].weight, made[1][0].weight)
    assert not torch.equal(made[0][2].bias, made[1][2].bias)
    assert torch.allclose(made[1](x), repaired.module(x), atol=1e-6)


def test_apply_to_a_model_without_values() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.empty(3, 4)
    irprune.prune(model, (x,), importance="random").apply_to(model)
    assert (
        model[0].out_features == 4 and model[2].weight.shape == (2, 4) and model[2].weight.is_meta
    )
