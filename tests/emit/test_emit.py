"""The emitted module: readable, called as the original, trainable, at home without irprune, and
byte for byte the same twice."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from opcheck import Case, Misfit, build, cases
from shared import outputs
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import irprune
import models
from irprune.emit.torch.module import emit_module, source_of
from irprune.emit.torch.source import write
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors


def captured(model: nn.Module, *args: Any, dynamic: Any = None, **kwargs: Any) -> Graph:
    return irprune.capture(model, args, kwargs, dynamic)


def emitted(model: nn.Module, *args: Any, dynamic: Any = None, **kwargs: Any) -> nn.Module:
    """The model out again, uncut."""
    return emit_module(captured(model, *args, dynamic=dynamic, **kwargs))


# -- every operator --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_each_spelling_runs_as_the_overload_does(case: Case) -> None:
    try:
        built = build(case)
    except Misfit:
        pytest.skip("the sample does not fit this overload")
    if case.entry.random:
        pytest.skip("draws its results")
    module = emit_module(built.graph)
    tensors = iter(built.feed)
    with torch.no_grad():
        found = module(*(next(tensors) for _ in built.graph.inputs))
    found = list(found) if isinstance(found, (tuple, list)) else [found]
    assert relative_error(found, [built.results[v.index] for v in built.graph.outputs]) <= 1e-12


def test_a_wrong_spelling_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from irprune.ops.torch import python_form

    monkeypatch.setitem(python_form._INFIX, "sub.Tensor", "+")
    case = next(c for c in cases() if c.target == "aten.sub.Tensor")
    with pytest.raises(AssertionError):
        test_each_spelling_runs_as_the_overload_does(case)


# -- the source ------------------------------------------------------------------------------------


def test_source_reads_as_a_person_would_write_it() -> None:
    torch.manual_seed(0)
    text = source_of(emitted(models.get("digits").build(small=True), torch.randn(2, 1, 8, 8)))
    assert "put(self, 'blocks.0.conv1', nn.Conv2d(16, 16, 3, padding=1, bias=False))" in text
    assert "self.blocks[0].conv1(" in text
    assert re.search(r"\w+ = F\.relu\(\w+\)", text)
    assert re.search(r"add = \w+ \+ \w+", text)
    assert "torch.ops" not in text
    assert "irprune" not in text.split('"""')[2]


def test_layers_keep_their_names_types_and_state() -> None:
    torch.manual_seed(0)
    model = models.get("digits").build(small=True)
    out = emitted(model, torch.randn(2, 1, 8, 8))
    assert list(out.state_dict()) == list(model.state_dict())
    assert type(out.get_submodule("blocks.0.norm1")) is nn.BatchNorm2d
    assert type(out.get_submodule("head")) is nn.Linear
    assert list(out.blocks) == list(out.blocks.children())  # type: ignore[arg-type, union-attr]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in out.state_dict().items())


@pytest.mark.parametrize("name", [n for n in models.names() if models.get(n).refused is None])
def test_every_case_comes_out_as_it_came_in(name: str) -> None:
    case = models.get(name)
    torch.manual_seed(0)
    model = case.build(small=True).eval()
    args, kwargs = case.example_inputs(small=True)
    out = emitted(model, *args, **kwargs)
    assert list(out.state_dict()) == list(model.state_dict())
    assert relative_error(outputs(out, *args, **kwargs), outputs(model, *args, **kwargs)) <= 1e-6
    again = pickle.loads(pickle.dumps(out))
    assert relative_error(outputs(again, *args, **kwargs), outputs(out, *args, **kwargs)) == 0


class Everything(nn.Module):
    """Tied weights, a dropout layer, a buffer that is not saved, one that is never read, a frozen
    weight, a functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.inner = nn.Sequential(
            OrderedDict(up=nn.Linear(8, 12), drop=nn.Dropout(0.5), down=nn.Linear(12, 8))
        )
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight
        self.unused = nn.Linear(3, 3)
        self.inner.up.bias.requires_grad_(False)
        self.register_buffer("shift", torch.randn(8), persistent=False)
        self.register_buffer("count", torch.zeros(2, dtype=torch.long))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.inner(self.table(ids)) + self.shift
        x = F.dropout(self.norm(x.transpose(1, 2)), 0.25, self.training)
        out: Tensor = self.head(x.transpose(1, 2))
        return out


@pytest.fixture
def everything() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, ids = Everything(), torch.randint(0, 11, (4, 5))
    return model.eval(), emitted(model, ids), ids


def test_state_is_the_models_own(everything: tuple[nn.Module, nn.Module, Tensor]) -> None:
    model, out, ids = everything
    assert list(out.state_dict()) == list(model.state_dict())
    assert "shift" not in out.state_dict() and torch.equal(out.shift, model.shift)
    assert out.head.weight is out.table.weight
    assert [n for n, p in out.named_parameters() if not p.requires_grad] == ["inner.up.bias"]
    assert torch.equal(outputs(out, ids)[0], outputs(model, ids)[0])
    out.load_state_dict(model.state_dict())


def test_a_module_made_in_inference_mode_can_be_trained() -> None:
    graph = captured(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), torch.randn(2, 8))
    with torch.inference_mode():
        module = emit_module(graph)
    assert not any(t.is_inference() for t in module.state_dict().values())


def test_training_never_reaches_the_users_model(
    everything: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    model, out, ids = everything
    before = {k: v.clone() for k, v in model.state_dict().items()} | {"shift": model.shift.clone()}
    shared = {t.untyped_storage().data_ptr() for t in before.values()}
    shared |= {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not shared & {
        t.untyped_storage().data_ptr() for t in (*out.parameters(), *out.buffers())
    }
    out.train()
    optimizer = torch.optim.SGD([p for p in out.parameters() if p.requires_grad], 0.1)
    optimizer.zero_grad()
    F.cross_entropy(out(ids).flatten(0, 1), ids.flatten()).backward()
    optimizer.step()
    with torch.no_grad():
        out.shift.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model.shift, before["shift"])


def test_train_and_eval_mean_what_they_mean(
    everything: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    model, out, ids = everything
    assert not out.training
    torch.manual_seed(1)
    theirs = outputs(model.train(), ids)[0]
    torch.manual_seed(1)
    ours = outputs(out.train(), ids)[0]
    assert torch.equal(ours, theirs)
    assert torch.equal(out.norm.running_mean, model.norm.running_mean)
    assert int(out.norm.num_batches_tracked) == 1
    assert not torch.equal(outputs(out, ids)[0], ours)


class Written(nn.Module):
    """Writes through views, which torch.export functionalises, between dropouts of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 8, 3)
        self.drops = nn.ModuleList(
            [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)]
        )
        self.last = nn.Sequential(nn.RReLU(), nn.Dropout(0.5, inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        y = self.drops[0](self.up(x))
        both = torch.cat((y, y), 1)
        both[:, :8].mul_(2)
        both[:, 8:].relu_()
        for drop in self.drops:
            both = drop(both)
        return self.last(F.dropout(both, 0.25, self.training) + 1)


def test_dropouts_survive_writes_through_views() -> None:
    torch.manual_seed(0)
    model, x = Written().eval(), torch.randn(2, 3, 6, 6)
    program = torch.export.export(model, (x,), strict=False)
    before = str(program.graph)
    for out in (emitted(model, x), irprune.prune(program, ratio=0).module):
        assert relative_error(outputs(out, x), outputs(model, x)) == 0
        torch.manual_seed(1)
        theirs = outputs(model.train(), x)[0]
        torch.manual_seed(1)
        assert torch.equal(outputs(out.train(), x)[0], theirs)
        assert [type(m) for m in out.drops.children()] == [type(m) for m in model.drops]
        model.eval()
    assert str(program.graph) == before


def test_copies_are_independent(everything: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, out, ids = everything
    expected = outputs(out, ids)[0]
    twin = copy.deepcopy(out)
    assert twin.head.weight is twin.table.weight
    with torch.no_grad():
        twin.table.weight.zero_()
    assert torch.equal(outputs(out, ids)[0], expected)


def test_moves_between_element_types(everything: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, out, ids = everything
    wide = outputs(copy.deepcopy(out).double(), ids)[0]
    assert wide.dtype == torch.float64
    assert relative_error([wide.float()], outputs(out, ids)) < 1e-5


def test_compiles_exports_and_traces_again(everything: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, out, ids = everything
    expected = outputs(out, ids)
    assert relative_error(outputs(torch.compile(out, backend="eager"), ids), expected) == 0
    program = torch.export.export(out, (ids,), strict=False)
    assert relative_error(outputs(program.module(), ids), expected) == 0
    assert relative_error(outputs(emitted(out, ids), ids), expected) == 0
    assert source_of(emitted(out, ids)) == source_of(out).replace("Everything", "Model")


def test_pickle_loads_in_another_process(
    everything: tuple[nn.Module, nn.Module, Tensor], tmp_path: Path
) -> None:
    _, out, ids = everything
    torch.save((out, ids), tmp_path / "whole.pt")
    code = "import sys, torch; m, x = torch.load(sys.argv[1], weights_only=False); torch.save(m(x).detach(), sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "whole.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "whole.pt"), outputs(out, ids)[0])


def test_recurrent_layers_come_out_as_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(
                6, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3
            )
            self.gru = nn.GRU(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            y, (h, c) = self.lstm(x)
            return self.gru(y)[0] + h.sum() + c.sum()

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 7, 6)
    out = emitted(model, x)
    assert isinstance(out.lstm, nn.LSTM) and isinstance(out.gru, nn.GRU)
    assert out.lstm.dropout == 0.3 and out.lstm.bidirectional and out.lstm.batch_first
    assert list(out.state_dict()) == list(model.state_dict())
    assert relative_error(outputs(out, x), outputs(model, x)) < 1e-6


# -- the call --------------------------------------------------------------------------------------


Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Answer:
    logits: Tensor
    hidden: list[Tensor]
    missing: Tensor | None = None


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(
        self,
        x: Tensor,
        scale: float = 1.0,
        flag: bool = False,
        *rest: Tensor,
        where: Pair,
        **extra: Tensor,
    ) -> dict[str, Any]:
        y = self.fc(x) * scale + rest[0]
        answer = Answer(y, [where.left + y, where.right])
        return {
            "answer": answer,
            "pair": Pair(y * 2, None),
            "ordered": OrderedDict(a=(y, extra["bias"])),
            "flag": flag,
            "name": "n",
        }


def nested_call() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(2, 4), 2.0, True, torch.randn(6)), {
        "where": Pair(torch.randn(6), torch.ones(1)),
        "bias": torch.randn(3),
    }


def test_signature_and_nested_results_stay() -> None:
    torch.manual_seed(0)
    model = Nested()
    args, kwargs = nested_call()
    out = emitted(model, *args, **kwargs)
    theirs, ours = model(*args, **kwargs), out(*args, **kwargs)
    assert (
        isinstance(ours["answer"], Answer)
        and isinstance(ours["pair"], Pair)
        and isinstance(ours["ordered"], OrderedDict)
    )
    assert ours["answer"].missing is None and ours["pair"].right is None
    assert ours["flag"] is True and ours["name"] == "n" and list(ours) == list(theirs)
    assert all(
        torch.equal(a, b) for a, b in zip(flat_tensors(ours), flat_tensors(theirs), strict=True)
    )


def test_arguments_go_by_name_and_other_constants_are_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(
            self, x: Tensor, mask: Tensor | None = None, gain: float = 1.0, *, loud: bool = False
        ) -> Tensor:
            y = self.fc(x) * gain
            return y * 2 if loud else y

    model, x = Net().eval(), torch.randn(2, 4)
    out = emitted(model, x, gain=3.0)
    assert torch.equal(out(x=x, gain=3.0), model(x, gain=3.0))
    assert torch.equal(out(x, None, 3.0, loud=False), model(x, gain=3.0))
    for call in ({"gain": 2.0}, {"gain": 3.0, "loud": True}, {"gain": 3.0, "mask": x}):
        with pytest.raises((ValueError, TypeError, RuntimeError), match="captured"):
            out(x, **call)
    with pytest.raises(TypeError):
        out()


def test_dynamic_sizes_follow_the_input() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            y = self.fc(x).view(n, t, 2, 4).transpose(1, 2).reshape(n * 2, t * 4)
            return y + torch.arange(t * 4, device=x.device)

    model, x = Net().eval(), torch.randn(3, 6, 8)
    shapes = {"x": {0: Dim("batch"), 1: Dim("time", max=64)}}
    out = emitted(model, x, dynamic=shapes)
    for n, t in ((3, 6), (1, 9), (5, 2)):
        y = torch.randn(n, t, 8)
        assert torch.allclose(out(y), model(y), atol=1e-6)
    again = torch.export.export(out, (x,), dynamic_shapes=shapes, strict=False)
    assert again.module()(torch.randn(2, 5, 8)).shape == (4, 20)


def test_sizes_solved_from_a_multiple() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1, 2).sum(1) + torch.zeros(x.shape[0] // 2)

    half = Dim("half", min=2, max=50)
    out = emitted(Net(), torch.randn(8), dynamic={"x": {0: 2 * half}})
    assert out(torch.ones(14)).shape == (7,)


def test_modules_with_names_that_python_lacks() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict(
                {"a-b": nn.Linear(3, 3), "0": nn.Linear(3, 3), "class": nn.Linear(3, 3)}
            )
            self.many = nn.ParameterList([nn.Parameter(torch.randn(3))])

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts.values():
                x = part(x)
            return x + self.many[0]

    model, x = Net().eval(), torch.randn(2, 3)
    out = emitted(model, x)
    assert list(out.state_dict()) == list(model.state_dict())
    assert torch.equal(out(x), model(x))


def test_unprintable_results_are_refused_by_name() -> None:
    class Opaque:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    torch.utils._pytree.register_pytree_node(
        Opaque, lambda o: ([o.x], object()), lambda c, _: Opaque(*c)
    )

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Opaque:
            return Opaque(x + 1)

    graph = captured(nn.Identity(), torch.randn(2))
    graph.source.out_spec = torch.utils._pytree.tree_structure(Opaque(torch.ones(1)))
    with pytest.raises(IrpruneError, match="Opaque"):
        write(graph)


# -- ONNX ------------------------------------------------------------------------------------------


def test_onnx_names_and_dynamic_axes(tmp_path: Path) -> None:
    import onnx

    case = models.get("dict_io")
    torch.manual_seed(0)
    args, kwargs = case.example_inputs(small=True)
    pruned = irprune.prune(case.build(small=True), args, kwargs)
    model = onnx.load(str(pruned.onnx(tmp_path / "m.onnx")))
    assert [v.name for v in model.graph.input] == [
        "features_image",
        "features_text",
        "context_mask",
        "context_scale",
        "offset",
    ]
    assert [v.name for v in model.graph.output] == [
        "prediction_logits",
        "prediction_confidence",
        "hidden_0",
        "hidden_1",
    ]
    onnx.checker.check_model(model, full_check=True)
    assert not any(n.metadata_props for n in model.graph.node)
    parity = pruned.report.parity
    assert parity is not None and parity.passed and len(parity.outputs) == 4
    assert (
        sum(parity.nodes.values()) > 5
        and set(parity.nodes) == {"CPUExecutionProvider"}
        and parity.provider == "CPUExecutionProvider"
    )

    case = models.get("digits")
    pruned = irprune.prune(
        case.build(small=True), (torch.randn(2, 1, 8, 8),), dynamic_shapes=case.dynamic
    )
    model = onnx.load(str(pruned.onnx(tmp_path / "d.onnx")))
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in shape][1:] == [1, 8, 8] and shape[0].dim_param


def test_onnx_that_differs_from_the_module_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from irprune.errors import CheckFailed
    from irprune.validate import module_parity

    torch.manual_seed(0)
    pruned = irprune.prune(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(2, 4),)
    )
    real = module_parity.measure
    monkeypatch.setattr(
        module_parity,
        "measure",
        lambda path, feed, expected, device: real(
            path, feed, [e * 1.001 for e in expected], device
        ),
    )
    with pytest.raises(CheckFailed, match="differs from the module"):
        pruned.onnx(tmp_path / "m.onnx")


def test_an_operator_that_the_exporter_lacks_leaves_the_rest_of_the_folder(tmp_path: Path) -> None:
    case = models.get("unknown_op")
    torch.manual_seed(0)
    args, kwargs = case.example_inputs(small=True)
    pruned = irprune.prune(case.build(small=True), args, kwargs)
    folder = pruned.save(tmp_path / "net")
    assert not (folder / "model.onnx").exists() and (folder / "model.py").exists()
    assert any("mirror_channels" in note for note in pruned.report.notes)


def test_what_libraries_are_told_of_a_model_goes_with_it() -> None:
    """timm's ``resolve_data_config(model=...)`` reads it, also from a copy in another process."""
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    model.pretrained_cfg = {"input_size": (3, 8, 8), "mean": [0.5]}  # type: ignore[assignment]
    module = irprune.prune(model, (torch.randn(2, 6),)).module
    assert module.pretrained_cfg == model.pretrained_cfg
    assert module.pretrained_cfg["mean"] is not model.pretrained_cfg["mean"]  # type: ignore[index]
    assert pickle.loads(pickle.dumps(module)).pretrained_cfg == model.pretrained_cfg
    assert not hasattr(
        irprune.prune(model[:1], (torch.randn(2, 6),), ratio=0).module, "default_cfg"
    )


class WeightAlone(nn.Module):
    """Layers of which forward takes the weights without their biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 12)
        self.norm, self.out = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(x, self.conv.weight).relu().mean((2, 3))
        x = nn.functional.linear(x, self.fc.weight)
        return self.out(nn.functional.layer_norm(x, (x.shape[-1],), self.norm.weight))


def test_a_layer_whose_bias_forward_does_not_read_is_called_without_it() -> None:
    model, x = WeightAlone().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for layer in (model.conv, model.fc, model.norm):
            layer.bias.fill_(7.0)
    whole = irprune.prune(model, (x,), ratio=0.0).module
    assert torch.allclose(whole(x), model(x), atol=1e-6)
    pruned = irprune.prune(model, (x,), ratio=0.5, keep=["norm*"])
    assert pruned.report.proof is not None and pruned.report.proof.passed
    instance = pruned.apply_to(copy.deepcopy(model))
    assert instance.conv.weight.shape[0] == 8
    assert torch.allclose(instance(x), pruned.module(x), atol=1e-6)
