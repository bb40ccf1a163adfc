"""A ``.pt2`` file of a stranger runs nothing of its own, wherever in it the code lies; one that
``torch.export.save`` wrote loads as it did."""

from __future__ import annotations

import io
import json
import pathlib
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune.errors import IrpruneError
from irprune.frontend.torch.program_file import load_program


class Net(nn.Module):
    """A dynamic batch, keyword arguments, results in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> dict[str, Any]:
        y = self.second(self.first(x).relu()) + self.shift
        return {"out": y.reshape(x.shape[0] * 2, -1), "more": [scale]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        Net().eval(),
        (torch.randn(4, 6),),
        {"scale": torch.randn(2)},
        dynamic_shapes={"x": {0: batch}, "scale": None},
    )
    torch.export.save(program, str(path))
    return path


def test_a_program_loads_as_torch_loads_it(plain: Path) -> None:
    ours, theirs = load_program(plain), torch.export.load(str(plain))
    assert str(ours.graph) == str(theirs.graph)
    assert ours.state_dict.keys() == theirs.state_dict.keys()
    assert irprune.prune(plain).report.proof is not None


Edit = Callable[[dict[str, Any]], None]


def changed(path: Path, out: Path, edit: Edit) -> Path:
    """A copy of an archive with its model edited."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                model = json.loads(data)
                edit(model)
                data = json.dumps(model).encode()
            new.writestr(name, data)
    return out


def in_size(model: dict[str, Any], code: str) -> None:
    values = model["graph_module"]["graph"]["tensor_values"]
    values["x"]["sizes"][0]["as_expr"]["expr_str"] = code


def in_nested_size(model: dict[str, Any], code: str) -> None:
    in_size(model, f"Max({code!r}, 2)")


def in_input(model: dict[str, Any], code: str) -> None:
    """An input's name is a parameter in the source that torch generates."""
    text = json.dumps(model).replace('{"name": "x"}', json.dumps({"name": f"x={code}"}))
    text = text.replace('"x": {"dtype"', f'"x={code}": {{"dtype"'.replace("'", "\\u0027"))
    model.update(json.loads(text))


def in_result(model: dict[str, Any], code: str) -> None:
    node = model["graph_module"]["graph"]["nodes"][0]
    node["name"] = node["outputs"][0]["as_sym_int"]["as_name"] = f"a = {code}; b"


def in_keyword(model: dict[str, Any], code: str) -> None:
    node = model["graph_module"]["graph"]["nodes"][1]
    node["inputs"][-1].update(name=f"bias={code}, other", kind=2)


def in_operator(model: dict[str, Any], code: str) -> None:
    model["graph_module"]["graph"]["nodes"][1]["target"] = "torch.hub.load"


def in_library(model: dict[str, Any], code: str) -> None:
    model["graph_module"]["graph"]["nodes"][1]["target"] = "torch.ops.debugprims.load_tensor"


def in_builtin(model: dict[str, Any], code: str) -> None:
    target = "torch.ops.__class__.__init__.__globals__"
    model["graph_module"]["graph"]["nodes"][1]["target"] = target


def in_file(model: dict[str, Any], code: str) -> None:
    model["graph_module"]["graph"]["nodes"][1]["target"] = "torch.ops.aten.from_file.default"


def in_guard(model: dict[str, Any], code: str) -> None:
    model["guards_code"] = [code]


def in_structure(model: dict[str, Any], code: str) -> None:
    """A pytree may name a module that is imported."""
    context = json.dumps(
        {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}
    )
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    model["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, spec])


def in_enumeration(model: dict[str, Any], code: str) -> None:
    context = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
    spec = {"type": "builtins.dict", "context": context, "children_spec": []}
    model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, spec])


def in_parameter(model: dict[str, Any], code: str) -> None:
    for spec in model["graph_module"]["signature"]["input_specs"]:
        if "parameter" in spec:
            spec["parameter"]["parameter_name"] = f'a"), {code}, ("'


EDITS = [v for k, v in list(globals().items()) if k.startswith("in_")]


@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__)
def test_code_in_the_model_is_refused(
    edit: Callable[[dict[str, Any], str], None], plain: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "owned"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    evil = changed(plain, tmp_path / "evil.pt2", lambda model: edit(model, code))
    with pytest.raises(IrpruneError, match=r"may run code of its own: .*; say trust=True"):
        irprune.prune(evil)
    assert not mark.exists()


def test_the_code_in_a_size_would_run(plain: Path, tmp_path: Path) -> None:
    """What the checks are for: torch itself runs the text of a size."""
    mark = tmp_path / "owned"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    evil = changed(plain, tmp_path / "evil.pt2", lambda model: in_size(model, code))
    with pytest.raises(IrpruneError):
        load_program(evil, trust=True)
    assert mark.exists()


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.mark,)


def test_a_pickle_is_refused_and_loaded_on_trust(plain: Path, tmp_path: Path) -> None:
    mark, evil = tmp_path / "owned", tmp_path / "evil.pt2"
    data = io.BytesIO()
    torch.save((((torch.randn(4, 6), Evil(mark)),), {}), data)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(evil, "w") as new:
        for name in old.namelist():
            new.writestr(name, data.getvalue() if "sample_inputs" in name else old.read(name))
    with pytest.raises(IrpruneError, match=r"sample_inputs/model.pt needs unpickling .*trust=True"):
        load_program(evil)
    assert not mark.exists()
    load_program(evil, trust=True)
    assert mark.exists()


def test_compiled_libraries_objects_and_the_older_format_are_refused(
    plain: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(plain) as old:
        members = {name: old.read(name) for name in old.namelist()}
    root = next(iter(members)).split("/")[0]
    constants = f"{root}/data/constants/model_constants_config.json"
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    for extra in (
        {f"{root}/data/aotinductor/model/net.so": b"ELF"},
        {constants: json.dumps({"config": {"a": {**entry, "tensor_meta": None}}}).encode()},
    ):
        evil = tmp_path / "evil.pt2"
        with zipfile.ZipFile(evil, "w") as new:
            for name, data in {**members, **extra}.items():
                new.writestr(name, data)
        with pytest.raises(IrpruneError, match="may run code of its own"):
            load_program(evil)
    older = tmp_path / "older.pt2"
    with zipfile.ZipFile(older, "w") as new:
        new.writestr("version", "8.8")
        new.writestr("serialized_state_dict.pt", b"")
    with pytest.raises(IrpruneError, match=r"not a program of torch\.export"):
        load_program(older)


def test_ordinary_programs_are_not_refused(tmp_path: Path) -> None:
    """Structures, sizes and guards of many kinds."""

    class Many(nn.Module):
        def forward(self, x: Tensor, held: dict[str, list[Tensor]]) -> Any:
            n, m = x.shape
            y = x.reshape(-1)[: (n * m) // 2 - 1]
            z = torch.nn.functional.pad(x, (0, n)) if n < m else x
            y = torch.cond(y.sum() > 0, lambda v: v + 1, lambda v: v - 1, (y,))
            return defaultdict(list, {"y": y, "z": [z, held["a"][0] * max(n, m)]}), (x.sqrt(), n)

    dim = torch.export.Dim.DYNAMIC
    call = (torch.rand(4, 6), {"a": [torch.randn(3)]})
    shapes = {"x": {0: dim, 1: dim}, "held": {"a": [None]}}
    with torch.no_grad():
        program = torch.export.export(Many(), call, dynamic_shapes=shapes)
    path = tmp_path / "many.pt2"
    torch.export.save(program, str(path))
    assert str(load_program(path).graph) == str(torch.export.load(str(path)).graph)
