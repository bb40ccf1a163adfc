"""Names in a file may hold anything; none of them runs, in the process or when the written source
is imported."""

from __future__ import annotations

import ast
import builtins
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import irprune
from irprune.emit.torch import code, source
from irprune.emit.torch.module import emit_module, source_of
from irprune.errors import IrpruneError
from irprune.ir.size import parse_size

RUN = "__import__('builtins').canary.append(1)"
PIECES = [
    RUN,
    f"\n{RUN}\n",
    f"\n        {RUN}\n        #",
    f'"""\n{RUN}\n"""',
    f"')\n{RUN}\n('",
    f"\\'); {RUN} #",
    f"{{{RUN}}}",
    "\r",
    "\x00",
    "\x0c",
    "\u2028",
    "\u202e",
    "\\",
    "'",
    '"',
    '"""',
    "'''",
    "..",
    ".",
    "/",
    "../../evil",
    "self",
    "self.__class__",
    "__init__",
    "forward",
    "training",
    "_modules",
    "torch",
    "F",
    "device",
    "own",
    "getattr",
    "max",
    "class",
    "None",
    "lambda",
    "ªº",
    "ﬁ",
    "٣",
    "0",
    "-1",
    "a-b",
    "weight",
    "model.weight",
    " ",
    "x" * 300,
    "<script>alert(1)</script>",
]
PLACES = ("graph", "node", "input", "weight", "value", "output", "dimension", "doc", "producer")
names = st.one_of(
    st.sampled_from(PIECES),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)


def network(said: dict[str, str]) -> onnx.ModelProto:
    """Two layers with an activation and a shift between them, every name as ``said``."""
    rng = np.random.default_rng(0)
    w, v, x, y = said["weight"] or "w", said["value"], said["input"], said["output"]
    arrays = {
        f"{w}1": rng.standard_normal((8, 4)),
        f"{w}2": rng.standard_normal((3, 8)),
        f"{w}": rng.standard_normal(8),
    }
    held = [numpy_helper.from_array(a.astype("f4"), k) for k, a in arrays.items()]
    n, doc = said["node"], said["doc"]
    nodes = [
        helper.make_node("Gemm", [f"{x}in", f"{w}1"], [f"{v}a"], f"{n}1", doc, transB=1),
        helper.make_node("Relu", [f"{v}a"], [f"{v}b"], f"{n}/2"),
        helper.make_node("Add", [f"{v}b", w], [f"{v}c"], f"{n}.3/"),
        helper.make_node("Gemm", [f"{v}c", f"{w}2"], [f"{y}out"], n, transB=1),
    ]
    batch = said["dimension"] or "batch"
    inputs = [helper.make_tensor_value_info(f"{x}in", TensorProto.FLOAT, [batch, 4], doc)]
    outputs = [helper.make_tensor_value_info(f"{y}out", TensorProto.FLOAT, [batch, 3])]
    graph = helper.make_graph(nodes, said["graph"], inputs, outputs, held, doc)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, doc_string=doc)
    model.producer_name = said["producer"]
    return model


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows where a name was run as code."""
    grows: list[int] = []
    monkeypatch.setattr(builtins, "canary", grows, raising=False)
    return grows


def written(folder: Path) -> Any:
    """The module that the source in ``folder`` gives when it is imported."""
    spec = importlib.util.spec_from_file_location("written_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(said=st.fixed_dictionaries(dict.fromkeys(PLACES, names)))
def test_no_name_of_a_file_runs(
    said: dict[str, str], canary: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("names")
    file, folder = where / "in" / "model.onnx", where / "in" / "out"
    file.parent.mkdir()
    onnx.save(network(said), file)
    pruned = irprune.prune(file)
    assert pruned.report.proof is not None and pruned.report.proof.passed
    x = torch.randn(5, 4)
    with torch.no_grad():
        expected = pruned.module(x)
        pruned.save(folder)
        assert torch.equal(written(folder)(x), expected)
    assert not canary
    page = (folder / "report.html").read_text()
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script") <= 3  # the page's own
    assert [p.name for p in where.iterdir()] == ["in"]
    assert sorted(p.name for p in file.parent.iterdir()) == ["model.onnx", "out"]
    for text in (str(pruned.report), repr(pruned)):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert len(str(pruned.report).splitlines()) < 30


class Odd(nn.Module):
    """Names that a user's own code may give: of modules, and of what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        key = f"a'\n{RUN}\n".replace(".", "")
        self.parts = nn.ModuleDict(
            {key: nn.Linear(4, 8), '"""': nn.Linear(8, 3), "class": nn.ReLU()}
        )
        self.key = key

    def forward(self, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        hidden = self.parts["class"](self.parts[self.key](x[f"'\n{RUN}"]))
        return {f'"""\n{RUN}': self.parts['"""'](hidden), "self": hidden.sum(1)}


def test_no_name_of_a_module_runs(canary: list[int], tmp_path: Path) -> None:
    call = ({f"'\n{RUN}": torch.randn(2, 4)},)
    net = Odd().eval()
    pruned = irprune.prune(net, call)
    pruned.save(tmp_path / "out")
    made = written(tmp_path / "out")(*call)
    assert list(made) == list(net(*call))
    # torch writes such names into the source of a program as they are
    assert not (tmp_path / "out" / "model.pt2").exists()
    assert any(note.startswith("no model.pt2: torch cannot read") for note in pruned.report.notes)
    with pytest.raises(IrpruneError, match="torch cannot read a program with the name"):
        pruned.program(tmp_path / "net.pt2")
    assert not canary


def test_a_comment_that_breaks_out_is_seen(
    canary: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "printable", lambda text: text)
    said = dict.fromkeys(PLACES, "a") | {"node": f"a\n        {RUN}\n        #/"}
    with pytest.raises(IrpruneError, match="does not say what it was meant to"):
        irprune.prune(network(said)).module  # noqa: B018
    assert not canary


def test_a_name_that_is_no_identifier_is_seen(
    canary: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "is_identifier", lambda text: True)
    said = dict.fromkeys(PLACES, "a") | {"value": f"a = 1; {RUN}; b"}
    with pytest.raises(IrpruneError, match="does not say what it was meant to"):
        irprune.prune(network(said)).module  # noqa: B018
    assert not canary


def test_a_name_that_stands_for_something_else_is_not_shadowed() -> None:
    """Dimensions, values and parameters that are called as what the source itself uses."""
    for taken in ("torch", "self", "device", "F", "getattr", "float", "max"):
        said = dict.fromkeys(PLACES, "a") | {"value": taken, "dimension": taken, "weight": "3."}
        pruned = irprune.prune(network(said))
        assert pruned.module(torch.randn(3, 4)).shape == (3, 3)


def test_a_size_is_written_from_its_tree() -> None:
    size = parse_size("max(s0, 2 * (s1 + 1)) // 3")
    shown = source.size_code(size, lambda s: code.variable(f"{s}_"))
    assert str(shown) == "max(s0_, 2 * (s1_ + 1)) // 3"


@pytest.mark.parametrize(
    "value",
    [0, -1, 2**70, 1.5, -0.0, float("inf"), -float("inf"), 1e-30, True, None, "a'\n", [1, [-2.5]]],
    ids=repr,
)
def test_a_literal_is_read_as_it_was(value: Any) -> None:
    text = str(code.literal(value))
    assert eval(text, {"float": float}) == value
    code.parsed_as_meant(text, [ast.Expr(code.literal(value).tree)], "")


@pytest.mark.parametrize("name", ["a; b", "a\nb", "a  # b", "a \\", "'a'", "a\x0cb"], ids=repr)
def test_a_line_that_python_reads_otherwise_is_refused(name: str) -> None:
    meant = code.Line((ast.Expr(ast.Name(name)),))
    with pytest.raises(IrpruneError, match="does not say what it was meant to"):
        meant.checked("")
    assert code.Line((ast.Expr(ast.Name("device")),)).checked("").names_device


def test_the_source_of_a_module_is_the_same_each_time() -> None:
    said = dict.fromkeys(PLACES, "a'b")
    first, second = (source_of(irprune.prune(network(said)).module) for _ in range(2))
    assert first == second


def test_private_names_are_not_mangled() -> None:
    """Python reads ``self.__x`` in a class as ``self._Model__x``."""

    class Private(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.__inner = nn.Linear(4, 4)
            self.add_module("__other", nn.Linear(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._modules["__other"](self.__inner(x))  # type: ignore[misc]

    net, x = Private().eval(), torch.randn(2, 4)
    out = emit_module(irprune.capture(net, (x,)))
    assert torch.allclose(out(x), net(x))
