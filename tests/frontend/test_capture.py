"""Models by name and by call: what MODEL and --input mean, and what a capture tells about a model
that it refuses."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune.api.load import InputSpec, load_graph, load_model, parse_input
from irprune.errors import IrpruneError
from irprune.frontend.torch.export import export, from_exported

SOURCE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

def with_args():
    return make(), (torch.ones(3, 4),)

def with_kwargs():
    return make(), (), {"input": torch.ones(5, 4)}

ready = make()
Kind = nn.Identity
number = 3

def takes(size):
    return make()

def gives_text():
    return "no model"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_net.py"
    path.write_text(SOURCE)
    return path


# -- inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1x3x224x224", InputSpec(shape=(1, 3, 224, 224))),
        ("7", InputSpec(shape=(7,))),
        ("ids=1x16:i64", InputSpec("ids", (1, 16), "i64")),
        ("mask=scalar:bool", InputSpec("mask", (), "bool")),
        ("2x4:bf16", InputSpec(shape=(2, 4), dtype="bf16")),
    ],
)
def test_inputs_are_read(text: str, spec: InputSpec) -> None:
    assert parse_input(text) == spec


@pytest.mark.parametrize(
    "text", ["", "3x", "axb", "x=", "1,3,224", "-1x3", "x=y=2x3", "missing.npy", "x=missing.npz"]
)
def test_what_is_no_input_is_refused(text: str) -> None:
    with pytest.raises(IrpruneError, match=r"is no shape|no such input file"):
        parse_input(text)


def test_inputs_are_drawn_alike_every_time(file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(8, dtype=np.float32).reshape(2, 4))
    first, second = (load_model(f"{file}:make", ["2x4"]) for _ in range(2))
    assert torch.equal(first.args[0], second.args[0]) and first.args[0].shape == (2, 4)
    named = load_model(f"{file}:make", [f"input={tmp_path / 'x.npy'}"])
    assert named.args == () and named.kwargs["input"][1, 3] == 7
    mixed = load_model(f"{file}:make", ["2x3:i64", "flag=5:bool"])
    assert (
        set(mixed.args[0].unique().tolist()) <= {0, 1} and mixed.kwargs["flag"].dtype == torch.bool
    )
    with pytest.raises(IrpruneError, match="no element type 'f99'"):
        load_model(f"{file}:make", ["2x4:f99"])


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [("make", (2, 4)), ("with_args", (3, 4)), ("with_kwargs", (5, 4)), ("ready", (2, 4))],
)
def test_a_callable_in_a_file_is_a_model(file: Path, name: str, shape: tuple[int, ...]) -> None:
    loaded = load_model(f"{file}:{name}", [] if name.startswith("with") else ["2x4"])
    assert isinstance(loaded.model, nn.Module) and loaded.kind == "module"
    example = (*loaded.args, *loaded.kwargs.values())
    assert example[0].shape == shape
    assert [n.op for n in load_graph(f"{file}:{name}", ["2x4"]).nodes] == [
        "linear",
        "relu",
        "linear",
    ]


def test_random_weights_are_the_same_every_time_and_the_callers_generator_is_left(
    file: Path,
) -> None:
    state = torch.get_rng_state()
    a, b = (load_model(f"{file}:make", ["2x4"]).model for _ in range(2))
    assert torch.equal(a[0].weight, b[0].weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_in_a_package_imports_its_neighbours() -> None:
    root = Path(__file__).resolve().parents[2]
    loaded = load_model(f"{root / 'models' / 'dict_io.py'}:build")
    assert loaded.name == "NestedIO" and set(loaded.kwargs) == {"context", "offset"}
    assert load_model("models.digits:build").dynamic_shapes is not None


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nothing", r"no 'nothing' here.*there are: make"),
        ("number", "neither a module nor a callable"),
        ("takes", "cannot be called"),
        ("gives_text", "gave str, not an nn.Module"),
        ("make", "no example input"),
    ],
)
def test_what_a_file_lacks_is_said(file: Path, name: str, what: str) -> None:
    with pytest.raises(IrpruneError, match=what):
        load_model(f"{file}:{name}")


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("gone.onnx", "no such file"),
        ("gone.pt2", "no such file"),
        ("gone.py:build", "no such file"),
        ("gone", "no such model"),
        ("no.such.package:build", "no module 'no'"),
        ("a b:c", "no such file or module"),
        ("hf:/nowhere", "no config.json|not installed"),
        ("timm:no_such_net", "timm has no model|not installed"),
        ("torchvision:no_such_net", "torchvision has no model|not installed"),
    ],
)
def test_what_is_not_there_is_refused(spec: str, what: str) -> None:
    with pytest.raises(IrpruneError, match=what) as error:
        load_model(spec)
    assert error.value.hint and "\n" not in str(error.value)


def test_empty_files_folders_and_broken_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "lacks.py").write_text("import no_such_library_anywhere\n")
    (tmp_path / "dir.onnx").mkdir()
    for spec, what in (
        ("empty.onnx", "the file is empty"),
        ("broken.py:build", "cannot be imported"),
        ("lacks.py:build", "no module 'no_such_library_anywhere'"),
        ("dir.onnx", "a folder, not a file"),
        (".", "no model.py here"),
    ):
        with pytest.raises(IrpruneError, match=what):
            load_model(str(tmp_path / spec))


def test_libraries_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(IrpruneError, match=r"timm is not installed.*pip install"):
        load_model("timm:resnet18")


def test_timm_names_are_models(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_cfg = {"input_size": (3, 12, 12)}

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    fake = ModuleType("timm")
    fake.list_models = lambda: ["tiny_net"]  # type: ignore[attr-defined]
    fake.create_model = lambda name, pretrained: Tiny()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", fake)
    loaded = load_model("timm:tiny_net")
    assert loaded.name == "tiny_net" and loaded.args[0].shape == (1, 3, 12, 12)
    with pytest.raises(IrpruneError, match="near matches: tiny_net"):
        load_model("timm:tiny")


def test_hugging_face_folders_are_models(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    try:
        transformers.BertModel  # noqa: B018 - the library imports its parts when they are asked for
    except ImportError as broken:
        pytest.skip(f"transformers cannot import its models: {broken}")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        architectures=["BertModel"],
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}")
    assert type(loaded.model).__name__ == "BertModel" and set(loaded.kwargs) == {
        "input_ids",
        "attention_mask",
    }


def test_a_saved_folder_is_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pruned = irprune.prune(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(3, 4),)
    )
    loaded = load_model(str(pruned.save(tmp_path / "net")))
    assert torch.equal(loaded.model(*loaded.args), pruned.module(*loaded.args)) and loaded.args[
        0
    ].shape == (3, 4)
    again = irprune.prune(loaded.model, loaded.args)
    assert again.module.get_submodule("0").out_features == 2


# -- torch.export ----------------------------------------------------------------------------------


def test_dataclasses_need_no_registration() -> None:
    @dataclasses.dataclass
    class Batch:
        x: Tensor
        scale: Tensor

    @dataclasses.dataclass
    class Out:
        y: Tensor

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, batch: Batch) -> Out:
            return Out(self.fc(batch.x) * batch.scale)

    model = Net().eval()
    graph = from_exported(export(model, (Batch(torch.randn(2, 4), torch.ones(1)),)), model)
    assert [v.shape for v in graph.inputs] == [(2, 4), (1,)] and len(graph.outputs) == 1


def test_the_whole_state_is_recorded_in_its_order() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.spare = nn.Linear(3, 3)
            self.register_buffer("mask", torch.ones(2), persistent=False)

        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            return self.fc(x) * self.mask * gain

    model = Net().eval()
    x = torch.randn(2, 4)
    for graph in (
        from_exported(export(model, (x,), {"gain": 2.0}), model),
        irprune.capture(model, (x,), {"gain": 2.0}),
    ):
        state = graph.source.state
        assert [n for n, e in state.items() if e.persistent] == list(model.state_dict())
        assert (
            not state["mask"].persistent
            and state["mask"].kind == "buffer"
            and state["spare.weight"].kind == "parameter"
        )
        assert list(graph.source.signature.parameters) == [
            "x",
            "gain",
        ] and graph.source.names == ("x", "gain")


def test_fx_takes_over_where_torch_export_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.randn(3, 4)
    real, seen = torch.export.export, []

    def choosy(module: nn.Module, *args: object, **kwargs: object) -> object:
        seen.append(type(module))
        if not isinstance(module, torch.fx.GraphModule):
            raise RuntimeError("not this one")
        return real(module, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.export, "export", choosy)
    graph = from_exported(export(model, (x,)), model)
    assert seen[0] is nn.Sequential
    assert len(seen) == 3 and issubclass(seen[2], torch.fx.GraphModule)
    assert [n.op for n in graph.nodes] == ["linear", "relu", "linear"] and list(
        graph.weights
    ) == list(model.state_dict())
    monkeypatch.setattr(
        torch.fx, "symbolic_trace", lambda _: (_ for _ in ()).throw(TypeError("nor that"))
    )
    with pytest.raises(
        IrpruneError,
        match=r"torch.export says 'RuntimeError: not this one'; torch.fx says 'TypeError: nor that'",
    ):
        export(model, (x,))


def test_quiet_captures(capfd: pytest.CaptureFixture[str]) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(IrpruneError, match="cannot be captured"):
        irprune.capture(Branch(), (torch.randn(3),))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["trace", "export"])
def test_checks_of_a_distributions_arguments_are_no_branches(method: str) -> None:
    class Entropy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            chances = torch.distributions.Categorical(logits=self.down(self.up(x).relu()))
            return chances.probs * chances.logits

    kind = torch.distributions.Distribution
    before = kind._validate_args
    graph = irprune.capture(Entropy(), (torch.randn(5, 4),), method=method)
    assert [n.op for n in graph.nodes][:3] == ["linear", "relu", "linear"]
    assert kind._validate_args is before
