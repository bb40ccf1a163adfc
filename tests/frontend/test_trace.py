"""The quick capture: the same graph as torch.export's, and torch.export where it declines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
import models
from irprune.errors import IrpruneError
from irprune.frontend.torch import trace as tracing
from irprune.frontend.torch.capture import capture
from irprune.frontend.torch.declined import Declined
from irprune.ir.graph import Graph, Value
from irprune.passes.dead_code import DeadCode
from irprune.run.interpret import evaluate


def described(graph: Graph) -> list[str]:
    """The graph in text with values numbered, without source lines, and without operators that hand
    their operand on."""
    DeadCode().run(graph)
    names: dict[Value, str] = {v: f"input {v.name}" for v in graph.inputs}
    names |= {w: f"weight {w.name}" for w in graph.weights.values() if w.kind != "constant"}

    def name(value: Value | None) -> str:
        if value is None:
            return "-"
        return names.setdefault(
            value, f"%{len(names)} {'constant' if value.producer is None else ''}"
        )

    rows = []
    for node in graph.nodes:
        if node.op == "cast" and node.out.type == node.operand(0).type:
            names[node.out] = name(node.operand(0))
            continue
        operands = [name(v) for v in node.inputs]
        results = [f"{name(v)}: {v.type}" for v in node.outputs]
        origin = node.origin
        rows.append(
            f"{results} = {node.op}{operands} {node.attrs} {origin.target} {origin.layout} {origin.scope} {origin.raw}"
        )
    rows += [
        f"{w.name}: {w.type} {w.kind} {w.aliases} {w.trainable}"
        for w in graph.weights.values()
        if w.kind != "constant"
    ]
    kept = graph.source
    state = {k: (e.kind, e.persistent) for k, e in sorted(kept.state.items())}
    rows += [
        str([name(v) for v in graph.outputs]),
        f"{kept.in_spec} {kept.out_spec} {kept.inputs} {kept.outputs} {kept.names} {state}",
    ]
    return rows


SAME = [
    "bert",
    "convnext_t",
    "densenet121",
    "dict_io",
    "einsum_attention",
    "gpt2",
    "llama",
    "mha_packed",
    "resnet50",
    "shared_conv",
    "shufflenetv2",
    "tied_weights",
    "unet",
    "vit_b16",
]


@pytest.mark.parametrize("name", SAME)
def test_trace_and_export_make_the_same_graph(name: str) -> None:
    case = models.get(name)
    torch.manual_seed(0)
    model = case.build(small=True)
    args, kwargs = case.example_inputs(small=True)
    traced = capture(model, args, kwargs, method="trace", dynamic="none")
    exported = capture(model, args, kwargs, method="export")
    assert described(traced) == described(exported)
    assert not traced.notes


class Layer(nn.Module):
    """[n, 8] to whatever ``body`` makes of it."""

    def __init__(self, body: Callable[[Layer, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("count", torch.zeros(8))
        self.table = torch.arange(8.0)
        self.log: list[Any] = []
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def _in_place(m: Layer, x: Tensor) -> Tensor:
    y = m.linear(x)
    y.mul_(2)
    return y.relu_() + m.table


def _views(m: Layer, x: Tensor) -> Tensor:
    return (
        F.linear(x, m.linear.weight.data.t())
        + m.linear.weight[1:3].sum()
        + torch.tensor([1.0, 2.0])[1]
        + x.flatten()[0]
    )


def _autocast(m: Layer, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = m.linear(x)
    return y + m.other(y.float())


def _identity(m: Layer, x: Tensor) -> Tensor:
    y = m.linear(x)
    return y + F.dropout(y, 0.5, m.training) * y.to(torch.float32)


def _lists(m: Layer, x: Tensor) -> dict[str, Any]:
    a, b = m.linear(x).chunk(2, -1)
    return {
        "pair": (b, a),
        "top": list(torch.max(a, -1)),
        "name": "layer",
        "same": x,
        "weight": m.other.weight,
    }


def _factories(m: Layer, x: Tensor) -> Tensor:
    return (
        m.linear(x) * torch.ones(8).cumsum(0)
        + torch.zeros_like(x).detach()
        + torch.empty(8).fill_(3.0)
    )


@pytest.mark.parametrize("body", [_in_place, _views, _autocast, _identity, _lists, _factories])
def test_a_traced_graph_computes_what_forward_does(body: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = Layer(body).eval()
    x = torch.randn(3, 8)
    graph = capture(model, (x,), method="trace")
    with torch.no_grad():
        expected = [
            t for t in torch.utils._pytree.tree_leaves(model(x.clone())) if isinstance(t, Tensor)
        ]
    found = evaluate(graph, [x])
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


def test_an_operand_handed_back_stays_another_value() -> None:
    graph = capture(Layer(_identity), (torch.ones(2, 8),), method="trace")
    linear, dropout, add = (
        next(n for n in graph.nodes if n.op == op) for op in ("linear", "dropout", "add")
    )
    assert add.inputs[0] is linear.out
    assert dropout.out.users
    assert dropout.out is not linear.out


def _write_buffer(m: Layer, x: Tensor) -> Tensor:
    m.count.add_(1)
    return m.linear(x) + m.count


def _write_view(m: Layer, x: Tensor) -> Tensor:
    y = m.linear(x)
    y[:, :4].mul_(2)
    return y


def _write_viewed(m: Layer, x: Tensor) -> Tensor:
    y = m.linear(x)
    z = y.view(-1)
    y.mul_(2)
    return z.sum() + y


def _write_input(m: Layer, x: Tensor) -> Tensor:
    x.add_(1)
    return m.linear(x)


def _promoting(m: Layer, x: Tensor) -> Tensor:
    y = m.linear(x).half()
    y += x
    return y


@pytest.mark.parametrize(
    ("body", "exported"),
    [
        (_write_buffer, False),
        (_write_view, False),
        (_write_viewed, False),
        (_write_input, True),
        (_promoting, True),
    ],
)
def test_writes_that_cannot_be_renamed_go_to_export(
    body: Callable[..., Any], exported: bool
) -> None:
    torch.manual_seed(0)
    model = Layer(body).eval()
    x = torch.randn(3, 8)
    graph = capture(model, (x.clone(),))
    assert any("the quick trace declined" in note for note in graph.notes) == exported
    assert torch.equal(model.count, torch.zeros(8))
    (found,) = evaluate(graph, [x])
    with torch.no_grad():
        expected = model(x.clone())
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


def test_attributes_and_modes_are_as_before() -> None:
    def body(m: Layer, x: Tensor) -> Tensor:
        m.calls = getattr(m, "calls", 0) + 1
        m.log.append("called")
        return m.norm(m.linear(x))

    model = Layer(body)
    model.norm.eval()
    graph = capture(model, (torch.ones(2, 8),), method="trace")
    assert not hasattr(model, "calls")
    assert model.log == []
    assert (model.training, model.linear.training, model.norm.training) == (True, True, False)
    assert [n.attrs["training"] for n in graph.nodes if n.op == "batch_norm"] == [False]


def test_a_tensor_kept_in_an_attribute_is_said_and_taken_back() -> None:
    def body(m: Layer, x: Tensor) -> Tensor:
        m.log.append(x)
        return m.linear(x)

    model = Layer(body)
    graph = capture(model, (torch.ones(2, 8),), method="trace")
    assert any("keeps a tensor in an attribute" in note for note in graph.notes)
    assert model.log == []


def test_models_that_ask_are_told_that_they_are_exported() -> None:
    model = Layer(
        lambda m, x: (
            m.linear(x) if torch.compiler.is_exporting() and torch.compiler.is_compiling() else x
        )
    )
    graph = capture(model, (torch.ones(2, 8),), method="trace")
    assert [n.op for n in graph.nodes] == ["linear"]
    assert not torch.compiler.is_exporting()


def test_an_error_leaves_the_model_and_torch_as_they_were() -> None:
    def body(m: Layer, x: Tensor) -> Tensor:
        m.calls = 1
        raise RuntimeError("no")

    model = Layer(body)
    with pytest.raises(IrpruneError, match="no"):
        capture(model, (torch.ones(2, 8),), method="trace")
    assert model.training
    assert not hasattr(model, "calls")
    assert not torch.is_inference_mode_enabled()
    assert not torch.compiler.is_compiling()
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    assert not nn.modules.module._global_forward_hooks


def test_data_dependent_control_flow_names_the_line() -> None:
    case = models.get("refused_control_flow")
    args, kwargs = case.example_inputs()
    with pytest.raises(IrpruneError, match=r"refused_control_flow\.py:\d+"):
        capture(case.build(), args, kwargs)


def test_names_of_inputs_follow_the_arguments() -> None:
    class Many(nn.Module):
        def forward(
            self,
            first: Tensor,
            pair: tuple[Tensor, Tensor],
            *rest: Tensor,
            scale: float,
            extra: dict[str, Tensor],
        ) -> Tensor:
            return (first + pair[0] * pair[1] + sum(rest)) * scale + extra["Bias"]

    t = torch.ones(2)
    call = ((t, (t, t), t, t), {"scale": 2.0, "extra": {"Bias": t}})
    for method in ("trace", "export"):
        graph = capture(Many(), *call, method=method)
        assert [v.name for v in graph.inputs] == [
            "first",
            "pair_0",
            "pair_1",
            "rest_0",
            "rest_1",
            "extra_bias",
        ], method
        assert graph.source.inputs == [0, 1, 2, 3, 4, (2.0,), 5], method


@dataclasses.dataclass
class Result:
    value: Tensor
    label: str


def test_dataclasses_come_out() -> None:
    model = Layer(lambda m, x: Result(m.linear(x), "y"))
    graph = capture(model, (torch.ones(2, 8),), method="trace")
    assert graph.source.outputs == [0, ("y",)]
    made = torch.utils._pytree.tree_unflatten([1, "y"], graph.source.out_spec)
    assert isinstance(made, Result)


def test_source_is_the_innermost_line_of_the_user() -> None:
    def helper(x: Tensor) -> Tensor:
        return x.relu()

    model = Layer(lambda m, x: helper(m.linear(x)))
    graph = capture(model, (torch.ones(2, 8),), method="trace")
    line = helper.__code__.co_firstlineno + 1
    assert [n.origin.source for n in graph.nodes if n.op == "relu"] == [f"{__file__}:{line}"]
    assert [n.origin.scope for n in graph.nodes] == ["linear", ""]


def test_a_meta_model_is_captured_without_memory() -> None:
    with torch.device("meta"):
        model = Layer(_identity)
        x = torch.ones(2, 8)
    graph = capture(model, (x,), method="trace")
    assert [n.op for n in graph.nodes].count("linear") == 1
    assert graph.weights["linear.weight"].load().is_meta


def test_dynamic_shapes_go_to_export_without_a_note() -> None:
    model = Layer(lambda m, x: m.linear(x))
    graph = capture(
        model, (torch.ones(2, 8),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}
    )
    assert not graph.inputs[0].type.static
    assert not graph.notes
    with pytest.raises(IrpruneError, match="static shapes"):
        capture(
            model,
            (torch.ones(2, 8),),
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            method="trace",
        )


def test_a_torch_that_splits_composites_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    monkeypatch.setattr(tracing.torch, "inference_mode", lambda *a: contextlib.nullcontext())
    monkeypatch.setattr(tracing.Recorder, "__torch_dispatch__", _without_inference_check)
    tracing._composites_are_split.cache_clear()
    try:
        assert "splits composite operators" in tracing._composites_are_split()
    finally:
        tracing._composites_are_split.cache_clear()


_dispatch = tracing.Recorder.__torch_dispatch__


def _without_inference_check(self: Any, *args: Any) -> Any:
    original, torch.is_inference_mode_enabled = torch.is_inference_mode_enabled, lambda: True
    try:
        return _dispatch(self, *args)
    finally:
        torch.is_inference_mode_enabled = original


def test_values_that_follow_from_constants_are_read() -> None:
    def masked(m: Layer, x: Tensor) -> Tensor:
        mask = torch.ones(len(x), dtype=torch.long).cumsum(0) - 2
        if mask.all():
            return x
        rows = mask.nonzero()[:, 0]
        width = mask.sum()
        return m.linear(x)[rows] * int(width) + m.table[: int(m.count.sum().item()) + 8]

    model = Layer(masked).eval()
    x = torch.randn(3, 8)
    graph = capture(model, (x,), method="trace")
    with torch.no_grad():
        torch.testing.assert_close(evaluate(graph, [x]), [model(x)])


@pytest.mark.parametrize(
    "read", [lambda m, x: x.sum(), lambda m, x: m.linear.weight.sum(), lambda m, x: torch.rand(1)]
)
def test_values_of_inputs_parameters_and_chance_are_not_read(read: Callable[..., Tensor]) -> None:
    model = Layer(lambda m, x: x * read(m, x).item())
    with pytest.raises(Declined, match="depends on"):
        tracing.trace(model, (torch.randn(3, 8),))


# -- code that asks whether it is being captured ---------------------------------------------------


class Asking(nn.Module):
    """``mask`` is made in a plain call alone, where it changes what is computed."""

    def __init__(self, needed: bool) -> None:
        super().__init__()
        self.needed = needed
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        asked = torch.compiler.is_compiling() or isinstance(x, torch._subclasses.FakeTensor)
        mask = None if asked else torch.full(x.shape[:-1], 0.5)
        h = self.first(x).relu()
        if mask is None and not self.needed:
            return self.last(h)
        return self.last(h * mask[..., None])  # type: ignore[index]


def test_forward_that_fails_under_export_is_captured_as_it_runs() -> None:
    torch.manual_seed(0)
    model, x = Asking(needed=True), torch.randn(3, 8)
    graph = capture(model, (x,))
    assert torch.equal(evaluate(graph, [x])[0], model(x))
    assert "captured as it runs" in graph.notes[0]
    assert "'NoneType' object is not subscriptable" in graph.notes[0]


def test_forward_that_computes_otherwise_under_export_is_pruned_as_it_runs() -> None:
    torch.manual_seed(0)
    model, x = Asking(needed=False), torch.randn(3, 8)
    assert not torch.allclose(evaluate(capture(model, (x,)), [x])[0], model(x))
    pruned = irprune.prune(model, (x,))
    assert pruned.report.proof is not None
    assert pruned.report.proof.passed
    assert "computes otherwise" in pruned.report.notes[-1]
    again = irprune.apply_plan(model, pruned.plan, (x,))
    assert torch.equal(again.module(x), pruned.module(x))


def test_torch_itself_still_knows_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    from irprune.frontend.torch.tracing_flags import as_run

    with FakeTensorMode():
        x = torch.ones(2)
    with as_run():
        assert not isinstance(x, torch._subclasses.FakeTensor)
        assert torch._meta_registrations.device_hint(x) == "cpu"
    assert isinstance(x, torch._subclasses.FakeTensor)


class Checked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._check_tensor_all(x > -100, lambda: "too small")
        return x * 2


def test_checks_of_values_are_taken_to_hold() -> None:
    graph = capture(Checked(), (torch.ones(2, 8),), method="trace")
    assert torch.equal(evaluate(graph, [torch.full((2, 8), 3.0)])[0], torch.full((2, 8), 6.0))
