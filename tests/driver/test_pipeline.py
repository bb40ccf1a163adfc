"""The driver: pipelines as text, passes by name, instruments around them, and the commands that
stand on it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from shared import MY_PASS, NET

from irprune.base.atomic_write import write_text
from irprune.driver import registry as registry_module
from irprune.driver.instruments import Dump, Instrument, PrintAfterAll, PrintDiff, Time, Verify
from irprune.driver.passes import (
    fitted,
    help_of,
    is_pass,
    name_of,
    options_of,
    type_name,
    written,
)
from irprune.driver.read import PassCall, read_pipeline
from irprune.driver.registry import Registry, standard
from irprune.driver.run import run
from irprune.errors import CheckFailed, IrpruneError
from irprune.ir.graph import Graph, TensorType
from irprune.ir.parse import from_text
from irprune.passes.canonicalize import Canonicalize
from irprune.passes.choose import Choose
from irprune.passes.dead_code import DeadCode
from irprune.passes.infer_axes import InferAxes
from irprune.passes.result import PassResult
from irprune.passes.untie import Untie

# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("infer-axes", [PassCall("infer-axes")]),
        (" a , b{} ,c ", [PassCall("a"), PassCall("b"), PassCall("c")]),
        (
            "choose{ratio=0.3, scope=global}",
            [PassCall("choose", {"ratio": 0.3, "scope": "global"})],
        ),
        ("p{a=1 b=-2 c=1e-3,d=.5}", [PassCall("p", {"a": 1, "b": -2, "c": 0.001, "d": 0.5})]),
        (
            "p{deep, on=true off=False nil=none}",
            [PassCall("p", {"deep": True, "on": True, "off": False, "nil": None})],
        ),
        (
            "p{keep=[\"head*\", layers.0.*, 'a b'], names=[]}",
            [PassCall("p", {"keep": ["head*", "layers.0.*", "a b"], "names": []})],
        ),
        (
            "p{budget={macs=0.5, params=9}, ratios={'a.*'=0.3}}",
            [PassCall("p", {"budget": {"macs": 0.5, "params": 9}, "ratios": {"a.*": 0.3}})],
        ),
        (r'p{s="say \"no\""}', [PassCall("p", {"s": 'say "no"'})]),
        ("p{size=3x3}", [PassCall("p", {"size": "3x3"})]),
    ],
)
def test_pipelines_are_read(text: str, calls: list[PassCall]) -> None:
    assert read_pipeline(text) == calls


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the name of a pass expected at the end"),
        ("a,,b", "the name of a pass expected at ',b'"),
        ("a b", "',' or the end expected at 'b'"),
        ("a{x=}", "a value expected at '}'"),
        ("a{x=1", "an option or '}' expected at the end"),
        ("a{x=1, x=2}", "'x' is given twice"),
        ("a{]}", "an option or '}' expected at ']}'"),
    ],
)
def test_pipelines_that_cannot_be_read_say_where(text: str, says: str) -> None:
    with pytest.raises(IrpruneError) as caught:
        read_pipeline(text)
    assert caught.value.what == says and caught.value.where == f"pipeline {text!r}"


# -- passes and options ----------------------------------------------------------------------------


@dataclass(frozen=True)
class AddNothing:
    """Do nothing, with options.

    More text.
    """

    count: int = 1
    share: float = 0.5
    name: str = "x"
    names: tuple[str, ...] = ()
    table: Mapping[str, float] = field(default_factory=dict)
    maybe: int | None = None

    def run(self, graph: Graph) -> PassResult:
        return PassResult(False)


def test_a_pass_names_and_describes_itself() -> None:
    assert (
        name_of(AddNothing) == name_of(AddNothing()) == "add-nothing"
        and help_of(AddNothing) == "Do nothing, with options."
    )
    made = [name_of(type(n, (), {})) for n in ("FoldBatchNorm", "LAMP", "ToONNXForm", "Step2")]
    assert made == ["fold-batch-norm", "lamp", "to-onnx-form", "step2"]
    assert list(options_of(AddNothing)) == ["count", "share", "name", "names", "table", "maybe"]
    assert is_pass(AddNothing) and not is_pass(AddNothing()) and not is_pass(Graph)
    assert not is_pass(dataclass(type("Loose", (), {"run": run}))), "not frozen"


@pytest.mark.parametrize(
    "given",
    [
        {"count": 3},
        {"share": 1},
        {"name": "a b"},
        {"names": ["p*", "q"]},
        {"table": {"a.*": 1}},
        {"maybe": None},
        {"maybe": 4},
    ],
)
def test_options_are_written_as_they_are_read(given: dict[str, Any]) -> None:
    registry = Registry()
    registry.add(AddNothing, "here")
    text = f"add-nothing{{{', '.join(f'{k}={written(v)}' for k, v in given.items())}}}"
    (made,) = registry.parse(text)
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    assert made == AddNothing(**plain)


def test_an_option_may_be_a_name_or_an_object() -> None:
    (made,) = standard().parse("score{importance=random, seed=3}")
    assert (made.importance, made.seed) == ("random", 3)  # type: ignore[attr-defined]
    with pytest.raises(IrpruneError, match="score: importance is 3; it takes text"):
        standard().parse("score{importance=3}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("chose", "no pass 'chose'; did you mean choose"),
        ("qqq", "no pass 'qqq'; `irprune passes` lists them all"),
        ("choose{ration=0.3}", "choose has no option 'ration'; did you mean ratio"),
        ("dead-code{x=1}", "dead-code has no option 'x'; it has none"),
        ("choose{ratio=half}", "choose: ratio is half; it takes float"),
        ("choose{round_to=8.5}", "choose: round_to is 8.5; it takes int"),
        ("choose{per_block=1}", "choose: per_block is 1; it takes bool"),
        ("choose{keep=head}", "choose: keep is head; it takes tuple[text, ...]"),
        (
            "choose{ratio=1.5}",
            "ratio is 1.5 (choose); a ratio is the share that is dropped, from 0 to 1",
        ),
        (
            "choose{budget={macs=half}}",
            "choose: budget is {macs=half}; it takes Mapping[text, float] | None",
        ),
        (
            "repair-bias",
            "repair-bias needs the option 'original'; it is made in Python, with the objects it works on",
        ),
        (
            "repair-bias{original=3}",
            "option 'original' of repair-bias cannot be given in a pipeline string; make the pass in Python",
        ),
        (
            "prune{ratio=0.3}",
            "the pipeline 'prune' takes no options; write out prepare,analyse,decide,cut",
        ),
    ],
)
def test_what_does_not_fit_a_pass_is_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(IrpruneError) as caught:
        standard().parse(text)
    assert str(caught.value).startswith(says)


def test_types_take_what_fits_and_nothing_else() -> None:
    assert (
        fitted(3, float) == 3.0
        and type(fitted(3, float)) is float
        and fitted([1], list[int]) == [1]
    )
    wrong = (
        (True, int),
        (True, float),
        ("3", int),
        (3, str),
        ([1, "a"], tuple[int, ...]),
        ({"a": "b"}, dict[str, int]),
        (2, Graph),
    )
    for value, hint in wrong:
        with pytest.raises(TypeError):
            fitted(value, hint)
    assert type_name(int | None) == "int | None" and type_name(str) == "text"


def test_pipelines_stand_for_their_passes() -> None:
    registry = standard()
    names = [name_of(p) for p in registry.parse("prune")]
    assert names == [
        "canonicalize",
        "dead-code",
        "infer-axes",
        "untie",
        "score",
        "choose",
        "slice",
        "dead-code",
    ]
    assert registry.parse("analyse,choose{ratio=0.25}") == [InferAxes(), Untie(), Choose(0.25)]


# -- where passes come from ------------------------------------------------------------------------


def test_a_pass_in_any_file_joins() -> None:
    registry = standard([MY_PASS])
    (made,) = registry.parse("protect-small{least=10}")
    graph = from_text(NET)
    InferAxes().run(graph)
    assert (
        run(graph, [made], [Verify()])
        and "%up: f32[8, 4]" in str(graph)
        and "%mid: f32[c0, 8]" in str(graph)
    )
    assert not run(graph, [made])


_DATA = "import dataclasses\n\n@dataclasses.dataclass"
_FROZEN = f"{_DATA}(frozen=True)"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nothing_of_that_name\n", "cannot be loaded: ModuleNotFoundError"),
        ("def run(graph): return True\n", "no pass in this file"),
        ("x = (\n", "cannot be loaded: SyntaxError"),
        (
            "import dataclasses\n\n@dataclasses.dataclass(frozen=True)\nclass Slice:\n    def run(self, graph): return False\n",
            "two passes are called 'slice'",
        ),
        ("class Mine:\n    def run(self, graph): ...\n", "Mine is no frozen dataclass"),
        (f"{_DATA}\nclass Mine:\n    def run(self, graph): ...\n", "Mine is no frozen dataclass"),
        (
            f"{_FROZEN}\nclass Mine:\n    n: int = 'a'\n    def run(self, graph): ...\n",
            "Mine: the default of n is 'a'",
        ),
        (
            f"{_FROZEN}\nclass Mine:\n    n: int = None\n    def run(self, graph): ...\n",
            "Mine: the default of n is None",
        ),
    ],
)
def test_a_file_that_holds_no_pass_says_so(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(IrpruneError) as caught:
        standard([path])
    assert caught.value.what.startswith(says) and str(path) in caught.value.where
    with pytest.raises(IrpruneError, match="no such file"):
        standard([tmp_path / "none.py"])


def test_a_base_of_passes_is_none_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    base = "class Base:\n    def run(self, graph): ...\n\n"
    path.write_text(f"{base}{_FROZEN}\nclass Mine(Base):\n    n: int | None = None\n")
    assert "mine" in standard([path]).passes and "base" not in standard([path]).passes


@pytest.mark.parametrize(("changed", "notes"), [(1, ()), (True, "told"), (False, [1])])
def test_a_result_that_says_nothing_is_refused(changed: object, notes: object) -> None:
    with pytest.raises(TypeError, match=r"a PassResult (begins with True|takes a tuple of texts)"):
        PassResult(changed, notes)  # type: ignore[arg-type]


def test_installed_packages_offer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("mine", f"{__name__}:AddNothing", registry_module.ENTRY_POINTS)]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points)
    assert standard().get("add-nothing") is AddNothing
    points.append(EntryPoint("odd", f"{__name__}:NET", registry_module.ENTRY_POINTS))
    with pytest.raises(IrpruneError, match="is no pass"):
        standard()
    points[1] = EntryPoint("gone", "no_such_module:Thing", registry_module.ENTRY_POINTS)
    with pytest.raises(IrpruneError, match="'no_such_module:Thing' cannot be loaded"):
        standard()


# -- running ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fails:
    """Raise."""

    error: Any = None

    def run(self, graph: Graph) -> PassResult:
        if self.error is not None:
            raise self.error
        return None  # type: ignore[return-value]


@dataclass(frozen=True)
class OldStyle:
    """Say whether it changed the graph, as passes did up to 0.1."""

    def run(self, graph: Graph) -> bool:
        graph.nodes[0].attrs["note"] = 1
        return True


@dataclass(frozen=True)
class Finds:
    """Count nodes."""

    def run(self, graph: Graph) -> PassResult:
        return PassResult(False, (f"{len(graph.nodes)} nodes",), {"nodes": len(graph.nodes)})


def test_a_pass_that_returns_a_bool_runs_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match=r"return PassResult\(True\)"):
        result = run(from_text(NET), [OldStyle()], [Verify()])  # type: ignore[list-item]
    assert result == PassResult(True)


def test_what_passes_found_out_comes_back_behind_their_names() -> None:
    graph = from_text(NET)
    n = len(graph.nodes)
    result = run(graph, [InferAxes(), Finds()])
    assert result.changed and result.notes == (f"finds: {n} nodes",)
    assert result.data == {"finds": {"nodes": n}}
    with pytest.raises(TypeError):
        result.data["finds"] = {}  # type: ignore[index]


def test_passes_hold_nothing_that_changes() -> None:
    """No field of a pass of the project takes a list, a dict or a set: what a run finds out is in
    its result."""
    mutable = {
        f"{name}.{option.name}"
        for name, cls in standard().passes.items()
        for option in options_of(cls).values()
        if re.search(r"\b(list|dict|set)\b", str(option.type))
    }
    assert mutable == set()
    assert all(len(options_of(cls)) == len(fields(cls)) for cls in standard().passes.values())


def line_of_failure() -> str:
    """Where ``Fails`` raises."""
    lines = Path(__file__).read_text().splitlines()
    return str(lines.index("            raise self.error") + 1)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            ValueError("odd"),
            IrpruneError,
            f"ValueError: odd ({__file__}:LINE; in fails, after infer-axes, dead-code); this is a bug of the pass",
        ),
        (
            IrpruneError("bad", "here", "do that"),
            IrpruneError,
            "bad (here; in fails, after infer-axes, dead-code); do that",
        ),
        (CheckFailed("differs"), CheckFailed, "differs (in fails, after infer-axes, dead-code)"),
        (
            None,
            IrpruneError,
            "run returned None, not what it did to the graph (in fails, after infer-axes, dead-code)",
        ),
    ],
)
def test_an_error_names_the_pass_and_those_before_it(
    error: Exception | None, kind: type, says: str
) -> None:
    with pytest.raises(IrpruneError) as caught:
        run(from_text(NET), [InferAxes(), DeadCode(), Fails(error)])
    line = line_of_failure()
    assert type(caught.value) is kind and str(caught.value).removesuffix(
        "; return PassResult(True) or PassResult(False) of irprune.passes"
    ) == says.replace("LINE", line)
    assert caught.value.__cause__ is error


def test_instruments_stand_around_every_pass() -> None:
    seen: list[str] = []

    class Watch(Instrument):
        def __init__(self, name: str) -> None:
            self.name = name

        def start(self, graph: Graph) -> None:
            seen.append(f"{self.name} start")

        def before(self, graph: Graph, name: str, index: int) -> None:
            seen.append(f"{self.name} < {index} {name}")

        def after(self, graph: Graph, name: str, index: int, result: PassResult) -> None:
            seen.append(f"{self.name} > {index} {name} {result.changed}")

    assert run(from_text(NET), [Canonicalize(), DeadCode()], [Watch("a"), Watch("b")])
    assert seen == [
        "a start",
        "b start",
        "a < 1 canonicalize",
        "b < 1 canonicalize",
        "b > 1 canonicalize True",
        "a > 1 canonicalize True",
        "a < 2 dead-code",
        "b < 2 dead-code",
        "b > 2 dead-code False",
        "a > 2 dead-code False",
    ]


@dataclass(frozen=True)
class Lies:
    """Change something (or nothing) and say the opposite."""

    what: str = ""

    def run(self, graph: Graph) -> PassResult:
        if self.what == "text":
            graph.nodes[0].attrs["note"] = 1
        elif self.what == "value":
            graph.weights["up"].load = lambda: None
        elif self.what == "spelling":
            graph.nodes[0].origin.target = "aten.other.default"
        elif self.what == "scores":
            import numpy as np

            graph.scores[graph.weights["mid"].axes[0]] = np.ones(24)  # type: ignore[index]
        elif self.what == "break":
            graph.weights["up"].type = TensorType("f32", (8, 5))
            return PassResult(True)
        return PassResult(not self.what)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("text", "lies said that nothing changed, but the text did (pass 2)"),
        ("value", "lies said that nothing changed, but the values of a weight did (pass 2)"),
        ("spelling", "lies said that nothing changed, but the spelling of a node did (pass 2)"),
        ("scores", "lies said that nothing changed, but the scores did (pass 2)"),
        ("", "lies said that it changed the graph, but nothing did (pass 2)"),
        (
            "break",
            "the graph is broken after lies: %up: dimension 1 has size 5, its axis 4; this is a bug of the pass",
        ),
    ],
)
def test_verify_holds_a_pass_to_its_word(what: str, says: str) -> None:
    told: list[str] = []
    with pytest.raises(CheckFailed) as caught:
        run(from_text(NET), [InferAxes(), Lies(what)], [Verify(told.append)])
    assert str(caught.value).startswith(says)
    assert bool(told) == (what == "break") and all(
        "# ^^^ dimension 1 has size 5, its axis 4" in t for t in told
    )


def test_every_pass_of_the_default_pipeline_tells_the_truth_the_second_time() -> None:
    """Run twice, each pass has nothing to do and says so: scores and choices are compared, not
    counted."""
    import torch

    graph = from_text(NET)
    for weight in graph.weights.values():
        weight.load = lambda shape=weight.shape: torch.linspace(-1, 1, shape[0] * shape[1]).reshape(
            shape
        )
    passes = standard().parse("prepare,analyse,decide")
    assert run(graph, passes, [Verify()])
    assert not run(graph, passes[:2], [Verify()]) and graph.kept is not None
    assert not run(graph, passes[3:], [Verify()])
    assert run(graph, standard().parse("choose{ratio=0}"), [Verify()]) and graph.kept.choice == {}


def test_verify_looks_before_the_first_pass() -> None:
    graph = from_text(NET)
    graph.weights["up"].type = TensorType("f32", (8, 5))
    with pytest.raises(CheckFailed, match="broken before the first pass"):
        run(graph, [], [Verify()])


def test_time_measures_each_pass() -> None:
    ticks = iter(range(100))
    clock = Time(clock=lambda: float(next(ticks)))
    run(from_text(NET), [Canonicalize(), DeadCode()], [Verify(), clock])
    assert clock.rows == [
        ("canonicalize", 1.0, PassResult(True)),
        ("dead-code", 1.0, PassResult(False)),
    ]
    assert clock.table().splitlines() == [
        "canonicalize     1000.00 ms  changed",
        "dead-code        1000.00 ms  same",
        "total            2000.00 ms  changed",
    ]


def test_what_changed_is_printed() -> None:
    told: list[str] = []
    run(from_text(NET), [Canonicalize(), DeadCode()], [PrintAfterAll(told.append)])
    assert told[0].startswith("# after canonicalize (changed)\ngraph Net {\n")
    assert told[1].startswith("# after dead-code (nothing changed)\n")
    assert str(from_text(told[0])) + "" == told[0].split("\n", 1)[1], "what is printed parses"
    told.clear()
    run(from_text(NET), [Canonicalize(), DeadCode()], [PrintDiff(told.append, around=0)])
    assert told == [
        textwrap.dedent("""\
            --- before canonicalize
            +++ after canonicalize
            @@ -8,2 +8 @@
            -  %i: f32[2, 8] = identity(%a)
            -  %b: f32[2, 24] = linear(%i, %mid)
            +  %b: f32[2, 24] = linear(%a, %mid)"""),
        "# dead-code: no difference in the text",
    ]


def test_dumps_are_numbered_and_parse(tmp_path: Path) -> None:
    dump = Dump(tmp_path / "deep" / "er")
    run(from_text(NET), [Canonicalize(), InferAxes()], [dump])
    assert [f.name for f in dump.files] == [
        "00-input.irp",
        "01-canonicalize.irp",
        "02-infer-axes.irp",
    ]
    assert sorted(f.name for f in dump.folder.iterdir()) == [f.name for f in dump.files], (
        "nothing else stays behind"
    )
    assert dump.files[0].read_text() == NET and "with axes" in str(
        from_text(dump.files[2].read_text())
    )
    (tmp_path / "taken").write_text("")
    with pytest.raises(IrpruneError, match="no folder can be made"):
        run(from_text(NET), [], [Dump(tmp_path / "taken")])


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(IrpruneError, match="cannot write"):
        write_text(tmp_path / "out", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
