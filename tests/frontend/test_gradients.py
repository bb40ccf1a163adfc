"""What forward says of gradients: the pruned module trains as the original does, or the report says
what is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import irprune
from irprune.errors import CheckFailed
from irprune.frontend.capture import capture

Function: Any = torch.autograd.Function


class Model(nn.Module):
    def __init__(self, body: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.k, self.b = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.body(self, self.a(x)))
        return out


class StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Sign(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (x.abs() < 0.5)


class Reversal(Function):
    @staticmethod
    def forward(x: Tensor, by: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.by = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return -ctx.by * g, None


class Swish(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        s = ctx.saved_tensors[0].sigmoid()
        return g * s * (1 + ctx.saved_tensors[0] * (1 - s))


class Centred(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g - g.mean()


swish = Swish.apply  # as many libraries keep it


def _no_grad(m: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = m.k(h).sigmoid()
    return h * scale


def _written(m: Any, h: Tensor) -> Tensor:
    h = m.k(h)
    with torch.no_grad():
        h[:, :4].clamp_(-0.1, 0.1)
    return h


def _hooked(m: Any, h: Tensor) -> Tensor:
    h = m.k(h)
    if h.requires_grad:
        h.register_hook(lambda g: g * 0.25)
    return h


def _clipped(m: Any, h: Tensor) -> Tensor:
    h.register_hook(lambda g: g.clamp(-0.01, 0.01)) if h.requires_grad else None
    return h


KEPT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "detach": lambda m, h: h * m.k(h).detach(),
    "data": lambda m, h: h * m.k(h).data,
    "data of a weight": lambda m, h: h @ m.k.weight.data + m.k(h),
    "no_grad": _no_grad,
    "nested": lambda m, h: h + torch.no_grad()(lambda: torch.enable_grad()(m.k)(h))(),
    "written": _written,
    "trick": lambda m, h: h + (h.round() - h).detach(),
    "straight through": lambda m, h: StraightThrough.apply(m.k(h)),
    "factor of the input": lambda m, h: Sign.apply(h),
    "reversal": lambda m, h: Reversal.apply(m.k(h), 0.5),
    "backward of forward": lambda m, h: swish(h),
    "hook": _hooked,
    "checkpoint": lambda m, h: checkpoint(m.k, h, use_reentrant=False),
    "checkpoint, reentrant": lambda m, h: checkpoint(m.k, h, use_reentrant=True),
}
LOST: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "backward": (lambda m, h: Centred.apply(h), "the backward of Centred is not kept"),
    "hook": (_clipped, "a hook that changes the gradient"),
}
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    model.zero_grad()
    (model(X) * torch.arange(15.0).reshape(5, 3)).sum().backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def differing(model: nn.Module, other: nn.Module) -> list[str]:
    mine, theirs = gradients(model), gradients(other)
    return [
        n
        for n, g in theirs.items()
        if not torch.allclose(
            torch.zeros(()) if mine[n] is None else mine[n],  # type: ignore[arg-type]
            torch.zeros(()) if g is None else g,
            rtol=1e-4,
            atol=1e-5,
        )
    ]


@pytest.mark.filterwarnings("ignore:None of the inputs")  # torch's own, of a checkpoint
@pytest.mark.parametrize("kind", KEPT)
def test_gradients_are_those_of_forward(kind: str) -> None:
    model = Model(KEPT[kind]).eval()
    whole = irprune.prune(model, (X,), ratio=0, proof="gradients")
    assert not differing(whole.module, model)
    assert not whole.report.proof.notes  # type: ignore[union-attr]
    half = irprune.prune(model, (X,), ratio=0.5, proof="gradients")
    assert half.report.params.left < 0.75
    assert half.report.proof.gradient_error < 1e-9  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("kind", LOST)
def test_what_is_lost_is_said(kind: str) -> None:
    body, said = LOST[kind]
    pruned = irprune.prune(Model(body).eval(), (X,), ratio=0.5)
    assert any(said in note and "test_gradients.py" in note for note in pruned.report.notes)
    if kind == "backward":  # the hook stands in no forward without gradients
        assert any("not those of forward at a." in n for n in pruned.report.proof.notes)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["detach", "no_grad", "trick"])
def test_torch_export_keeps_stops(kind: str) -> None:
    model = Model(KEPT[kind]).eval()
    shapes = ({0: torch.export.Dim("n", min=2, max=9)},)
    pruned = irprune.prune(model, (X,), ratio=0, dynamic_shapes=shapes)
    assert not differing(pruned.module, model)


def test_hooks_of_the_model_are_named() -> None:
    model = Model(lambda m, h: h).eval()
    model.a.register_full_backward_hook(lambda *_: None)
    model.b.weight.register_hook(lambda g: g * 2)
    notes = irprune.prune(model, (X,), ratio=0.5).report.notes
    assert any("backward hook of 'a'" in n for n in notes)
    assert any("gradient of 'b.weight'" in n for n in notes)


def test_no_operator_stands_for_what_has_no_gradient() -> None:
    def body(m: Any, h: Tensor) -> Tensor:
        with torch.no_grad():
            table = torch.arange(16).float().cos()
        return h * table.detach()

    graph = capture(Model(body).eval(), (X,))
    assert all(n.attrs["idle"] for n in graph.nodes if n.op == "stop_gradient")
    assert not any(
        n.op == "stop_gradient" for n in irprune.prune(Model(body).eval(), (X,)).cut.nodes
    )


def test_the_proof_sees_a_lost_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    from irprune.frontend.torch import gradient_stops

    model = Model(KEPT["no_grad"]).eval()
    monkeypatch.setattr(gradient_stops.GradientStops, "crossed", lambda self, value: value)
    proof = irprune.prune(model, (X,), ratio=0.5).report.proof
    assert any("not those of forward at" in n and "k.weight" in n for n in proof.notes)  # type: ignore[union-attr]


def test_the_proof_sees_gradients_that_the_module_gets_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from irprune.emit.torch import source

    model = Model(KEPT["detach"]).eval()
    spell = source.spell

    def forgetful(target: str, args: Any, kwargs: Any, rank: int) -> Any:
        return args[0] if target.startswith("aten.detach") else spell(target, args, kwargs, rank)

    monkeypatch.setattr(source, "spell", forgetful)
    pruned = irprune.prune(model, (X,), ratio=0.5)
    assert not pruned.report.proof.gradients_passed  # type: ignore[union-attr]
    with pytest.raises(CheckFailed, match="proof of gradients"):
        irprune.prune(model, (X,), ratio=0.5, proof="gradients")


def test_the_model_and_torch_are_as_before() -> None:
    model = Model(KEPT["straight through"]).train()
    irprune.prune(model, (X,), ratio=0.5)
    assert model.training and "training" not in nn.Module.__dict__
    assert "apply" not in torch.autograd.function._SingleLevelFunction.__dict__
    assert "requires_grad" not in torch.Tensor.__dict__
    assert torch.is_grad_enabled()


def test_hooks_on_tensors_that_torch_export_loses_are_named() -> None:
    def hooked(model: Any, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(lambda g: 2 * g)
        return h.relu()

    sizes = ({0: torch.export.Dim("n")},)
    model, x = Model(hooked).eval(), torch.randn(4, 8)
    notes = irprune.prune(model, (x,), dynamic_shapes=sizes).report.notes
    assert (
        "a hook that forward puts on a tensor is not kept: torch.export does not keep it" in notes
    )
    assert not any("hook" in note for note in irprune.prune(model, (x,)).report.notes)


class Halved(torch.autograd.Function):
    """Divides by a size, and lets the gradient through turned round."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, size: int) -> torch.Tensor:
        return x / size

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return -grad, None


def test_a_function_of_the_users_leaves_sizes_open() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return self.b(Halved.apply(torch.relu(self.a(x)), x.shape[1]))

    model = Net()
    module = irprune.prune(model, (torch.randn(2, 5, 6),), ratio=0.0).module
    x = torch.randn(3, 7, 6)
    torch.testing.assert_close(module(x), model(x))
    for net in (module, model):
        net(x).sum().backward()
    torch.testing.assert_close(module.a.weight.grad, model.a.weight.grad)
