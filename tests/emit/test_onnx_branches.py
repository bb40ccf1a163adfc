"""Ifs whose branches are pruned: the file that goes out computes, whatever the conditions, what the
original does with the dropped channels silenced, and is the file that came in where nothing is
cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import info, model_of, node, tensor
from shared import analysed_file, cut_file

import irprune
from irprune.emit.bridge.onnx_module import module_from_onnx
from irprune.emit.onnx import branches as emitted_branches
from irprune.emit.onnx.emitter import emit_onnx
from irprune.frontend.onnx import closed_branches
from irprune.frontend.onnx.closed_branches import close_branches, is_opened
from irprune.frontend.onnx.opened_branches import open_branches
from irprune.ir.group import groups_of
from irprune.run.error import relative_error
from irprune.run.interpret import evaluate
from irprune.validate import onnx_proof
from irprune.validate.onnx_oracle import silenced_onnx
from irprune.validate.onnx_run import run_model

BOOL = TensorProto.BOOL


def graph_of(
    name: str, nodes: list[onnx.NodeProto], outputs: str, *tensors: onnx.TensorProto
) -> onnx.GraphProto:
    infos = [info(o, 4, 6) for o in outputs.split()]
    made = helper.make_graph(nodes, name, [], infos, list(tensors))
    made.doc_string = f"the branch {name}"
    return made


def net(name: str, x: str, width: int, out: str, own: str = "") -> onnx.GraphProto:
    """Two layers; ``own`` is put before the names of what it makes."""
    a, b, w, v = (f"{own}{s}" for s in "abwv")
    nodes = [node("MatMul", f"{x} {w}", a), node("Tanh", a, b), node("MatMul", f"{b} {v}", out)]
    made = graph_of(name, nodes, out, tensor(w, 6, width), tensor(v, width, 6))
    made.value_info.append(info(a, 4, width))
    made.initializer[0].doc_string = "the first"
    return made


def choice(
    condition: str, then: onnx.GraphProto, other: onnx.GraphProto, outs: str, name: str = ""
):  # type: ignore[no-untyped-def]
    made = node("If", condition, outs, then_branch=then, else_branch=other)
    made.name = name
    return made


def around(
    nodes: list[onnx.NodeProto], *tensors: onnx.TensorProto, flags: str = "p"
) -> onnx.ModelProto:
    """A layer, ``nodes`` that make ``y`` of ``h``, and a layer."""
    nodes = [
        node("MatMul", "x first", "h0"),
        node("Relu", "h0", "h"),
        *nodes,
        node("Tanh", "y", "z0"),
        node("MatMul", "z0 last", "z"),
    ]
    held = [tensor("first", 4, 6), tensor("last", 6, 3), *tensors]
    conditions = [info(f, kind=BOOL) for f in flags.split()]
    return model_of(nodes, [info("x", 4, 4), *conditions], [info("z", 4, 3)], held)


def alike() -> onnx.ModelProto:
    """Both branches make the same names, one of which the graph makes afterwards as well."""
    then, other = net("then", "h", 16, "r"), net("else", "h", 8, "r")
    return around(
        [choice("p", then, other, "c", "If_0"), node("Neg", "c", "a"), node("Abs", "a", "y")]
    )


def nested() -> onnx.ModelProto:
    inner = choice("q", net("deep", "m", 12, "i"), net("flat", "m", 10, "j", "f"), "k")
    nodes = [node("MatMul", "h tw", "m0"), node("Relu", "m0", "m"), inner, node("Neg", "k", "t")]
    then = graph_of("then", nodes, "t", tensor("tw", 6, 6))
    return around([choice("p", then, net("else", "h", 8, "e", "e"), "y")], flags="p q")


def several() -> onnx.ModelProto:
    """One after the other, and one that asks what the first has computed."""
    first = choice("p", net("a", "h", 16, "t"), net("b", "h", 8, "e", "e"), "c")
    second = choice("q", net("c", "c", 12, "t2", "s"), net("d", "h", 8, "e2", "u"), "y0")
    nodes = [first, second, node("ReduceSum", "c", "total", keepdims=0)]
    nodes += [node("Greater", "total zero", "more")]
    third = choice(
        "more", net("g", "y0", 10, "t3", "g"), graph_of("n", [node("Neg", "y0", "e3")], "e3"), "y"
    )
    zero = numpy_helper.from_array(np.float32(0), "zero")
    return around([*nodes, third], zero, flags="p q")


def shared() -> onnx.ModelProto:
    """Weights of the graph that both branches read, and one that the graph reads as well."""
    then = graph_of(
        "then",
        [node("MatMul", "h up", "a"), node("Relu", "a", "b"), node("MatMul", "b down", "t")],
        "t",
    )
    other = graph_of(
        "else",
        [
            node("MatMul", "h up", "c"),
            node("MatMul", "c down", "d"),
            node("MatMul", "d square", "e"),
        ],
        "e",
    )
    nodes = [choice("p", then, other, "y0"), node("MatMul", "y0 square", "y")]
    return around(nodes, tensor("up", 6, 16), tensor("down", 16, 6), tensor("square", 6, 6))


def results() -> onnx.ModelProto:
    """Several results: what a branch reads from outside, a weight, and the same twice."""
    then = net("then", "h", 16, "t")
    then.node.append(node("Identity", "h", "same"))
    then.output.append(info("same", 4, 6))
    other = net("else", "h", 8, "e", "e")
    other.initializer.append(tensor("held", 4, 6))
    other.node.append(node("Identity", "held", "given"))
    other.output.append(info("given", 4, 6))
    return around([choice("p", then, other, "c d"), node("Add", "c d", "y")])


def looped() -> onnx.ModelProto:
    """A loop in a branch, which reads a weight of the branch."""
    body = helper.make_graph(
        [node("MatMul", "s w", "s1"), node("Identity", "on", "off")],
        "body",
        [info("k", kind=TensorProto.INT64), info("on", kind=BOOL), info("s", 4, 6)],
        [info("off", kind=BOOL), info("s1", 4, 6)],
    )
    then = graph_of(
        "then",
        [
            node("MatMul", "h v", "a"),
            node("Relu", "a", "b"),
            node("MatMul", "b u", "c"),
            helper.make_node("Loop", ["two", "", "c"], ["t"], body=body),
        ],
        "t",
        *(tensor("w", 6, 6), tensor("v", 6, 16), tensor("u", 16, 6)),
        numpy_helper.from_array(np.array(2), "two"),
    )
    return around([choice("p", then, net("else", "h", 8, "w2", "e"), "y")])


def constants() -> onnx.ModelProto:
    """Weights in Constant nodes, and a size that follows the width."""
    held = {n: numpy_helper.to_array(tensor(n, *s)) for n, s in (("w", (6, 16)), ("v", (16, 6)))}
    nodes = [
        *(
            helper.make_node("Constant", [], [n], value=numpy_helper.from_array(a))
            for n, a in held.items()
        ),
        node("MatMul", "h w", "a"),
        node("Shape", "a", "s"),
        node("ConstantOfShape", "s", "ones", value=helper.make_tensor("o", 1, [1], [0.5])),
        node("Add", "a ones", "b"),
        node("Relu", "b", "b2"),
        node("MatMul", "b2 v", "t"),
    ]
    return around([choice("p", graph_of("then", nodes, "t"), net("else", "h", 8, "e", "e"), "y")])


def with_function(
    model: onnx.ModelProto, name: str, inputs: str, nodes: list[onnx.NodeProto]
) -> onnx.ModelProto:
    """``model`` with a local function that gives ``made``."""
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(
        helper.make_function("mine", name, inputs.split(), ["made"], nodes, opsets)
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    return model


def calling() -> onnx.ModelProto:
    """A branch that calls a function."""
    call = helper.make_node("Net", ["h", "w", "v"], ["t"], domain="mine")
    then = graph_of("then", [call], "t", tensor("w", 6, 16), tensor("v", 16, 6))
    model = around([choice("p", then, net("else", "h", 8, "e", "e"), "y")])
    nodes = [node("MatMul", "a b", "r"), node("Relu", "r", "s"), node("MatMul", "s c", "made")]
    return with_function(model, "Net", "a b c", nodes)


def called() -> onnx.ModelProto:
    """A function that is an If."""
    fork = choice("on", net("then", "a", 16, "t", "t"), net("else", "a", 8, "e", "e"), "made")
    model = around([helper.make_node("Fork", ["h", "p"], ["y"], domain="mine")])
    return with_function(model, "Fork", "a on", [fork])


KINDS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (alike, nested, several, shared, results, looped, constants, calling, called)
}


def calls(model: onnx.ModelProto):  # type: ignore[no-untyped-def]
    """Inputs with all values of the conditions."""
    x = np.random.default_rng(0).standard_normal((4, 4)).astype("f4")
    flags = [v.name for v in model.graph.input if v.name != "x"]
    for values in product([True, False], repeat=len(flags)):
        yield {"x": x, **{f: np.array(v) for f, v in zip(flags, values, strict=True)}}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_cut_stays_as_it_is(kind: str) -> None:
    model = KINDS[kind]()
    onnx.checker.check_model(model, full_check=True)
    same = emit_onnx(analysed_file(model))
    assert same.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("kind", KINDS)
def test_branches_are_cut(kind: str) -> None:
    model = KINDS[kind]()
    graph = analysed_file(model)
    emitted = emit_onnx(cut_file(graph))
    onnx.checker.check_model(emitted, full_check=True)
    assert emitted.ByteSize() < 0.8 * model.ByteSize()
    for x in calls(model):
        silent = silenced_onnx(graph, graph.kept, x)
        assert relative_error(run_model(emitted.SerializeToString(), x), silent) < 1e-4
        assert relative_error(run_model(model, x), silent) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_proof_runs_each_branch(kind: str) -> None:
    report = irprune.prune(KINDS[kind](), ratio=0.5).report
    assert report.proof.passed and report.proof.second_pass is not None  # type: ignore[union-attr]
    assert "each branch of its Ifs that was cut was run" in report.proof.notes  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"called"}))
def test_opened_and_closed_it_computes_the_same(kind: str) -> None:
    model = KINDS[kind]()
    opened = open_branches(model)
    assert opened is not None and any(map(is_opened, opened.model.graph.node))
    again = close_branches(opened.model)
    assert not any(map(is_opened, again.graph.node))
    for x in calls(model):
        assert relative_error(run_model(again, x), run_model(model, x)) == 0


def test_names_of_the_file_stay() -> None:
    model = alike()
    small = emit_onnx(cut_file(analysed_file(model)))
    (node_,) = (n for n in small.graph.node if n.op_type == "If")
    widths = {a.name: a.g for a in node_.attribute}
    assert node_.name == "If_0" and [list(n.output) for n in widths["then_branch"].node] == [
        ["a"],
        ["b"],
        ["r"],
    ]
    for name, half in (("then_branch", 8), ("else_branch", 4)):
        body = widths[name]
        assert body.doc_string == f"the branch {name[:4]}"
        assert {t.name: list(t.dims) for t in body.initializer} == {"w": [3, half], "v": [half, 3]}
        assert body.initializer[0].doc_string == "the first"
        shape = body.value_info[0].type.tensor_type.shape
        assert [d.dim_value for d in shape.dim] == [4, half]


def swapped(node_: onnx.NodeProto, truth: bool) -> onnx.GraphProto:
    found: onnx.GraphProto = next(
        a.g for a in node_.attribute if a.name == ("else_branch" if truth else "then_branch")
    )
    return found


def test_swapped_branches_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the emitter, which the oracle does not share."""
    pruned = irprune.prune(alike(), ratio=0.5, proof=False)
    monkeypatch.setattr(emitted_branches, "branch_of", swapped)
    assert not onnx_proof.prove_onnx(pruned.graph, pruned.cut).passed


def test_a_fault_in_a_branch_that_inputs_never_take_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = alike()
    del model.graph.input[1]
    model.graph.input.append(info("rate", kind=TensorProto.INT64))
    model.graph.initializer.append(numpy_helper.from_array(np.array(16000), "known"))
    model.graph.node.insert(0, node("Equal", "rate known", "p"))
    pruned = irprune.prune(model, ratio=0.5, proof=False)
    w = next(w for w in pruned.cut.weights.values() if w.name == "w")
    right = w.load()
    w.load = lambda: 3 * right
    assert not onnx_proof.prove_onnx(pruned.graph, pruned.cut).passed
    monkeypatch.setattr(onnx_proof, "drives", lambda graph: [])
    assert onnx_proof.prove_onnx(pruned.graph, pruned.cut).passed


def test_a_node_of_the_wrong_branch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What closes a branch for a run goes by who reads what."""
    monkeypatch.setattr(closed_branches, "shared_start", lambda a, b: max(a, b, key=len))
    with pytest.raises(irprune.IrpruneError, match="no proof is possible"):
        irprune.prune(shared(), ratio=0.5)


def test_data_in_another_file(tmp_path: Path) -> None:
    """A weight of a branch that lies beside the file lies beside the one that goes out."""
    model = alike()
    then = swapped(next(n for n in model.graph.node if n.op_type == "If"), False)
    tensor_ = then.initializer[0]
    (tmp_path / "w.bin").write_bytes(tensor_.raw_data)
    tensor_.ClearField("raw_data")
    tensor_.data_location = TensorProto.EXTERNAL
    tensor_.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    out = irprune.prune(tmp_path / "m.onnx", ratio=0.5).onnx(tmp_path / "out" / "small.onnx")
    small = onnx.load(out, load_external_data=False)
    places = {t.name: t.data_location for t in small.graph.initializer}
    assert places["then/w"] == TensorProto.EXTERNAL
    whole = irprune.prune(alike(), ratio=0.5).onnx(tmp_path / "whole.onnx")
    for x in calls(model):
        assert relative_error(run_model(out, x), run_model(whole, x)) == 0


def test_a_branch_that_is_not_taken_need_not_run() -> None:
    """One that takes four rows alone, and a call with three."""
    four = numpy_helper.from_array(np.array([4, 6]), "four")
    then = graph_of(
        "then",
        [
            node("Reshape", "h four", "rows"),
            node("MatMul", "rows w", "a"),
            node("Relu", "a", "b"),
            node("MatMul", "b v", "t"),
        ],
        "t",
        *(four, tensor("w", 6, 16), tensor("v", 16, 6)),
    )
    other = net("else", "h", 8, "e", "e")
    for body in (then, other):
        body.output[0].CopyFrom(info(body.output[0].name, None, 6))
    del other.value_info[:]
    nodes = [
        node("MatMul", "x first", "h"),
        choice("p", then, other, "y"),
        node("ReduceSum", "y one", "z", keepdims=0),
    ]
    held = [tensor("first", 4, 6), numpy_helper.from_array(np.array([0]), "one")]
    model = model_of(nodes, [info("x", "n", 4), info("p", kind=BOOL)], [info("z", 6)], held)
    pruned = irprune.prune(model, (), {"x": np.zeros((4, 4), "f4")}, ratio=0.5)
    assert pruned.report.proof.passed  # type: ignore[union-attr]
    assert [(g.name, g.kept) for g in pruned.report.groups] == [("w:1", 8), ("ew:1", 4)]
    x = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype("f4"), "p": np.array(False)}
    expected = silenced_onnx(pruned.graph, pruned.graph.kept, x)
    assert relative_error(run_model(emit_onnx(pruned.cut), x), expected) < 1e-5
    given = [torch.from_numpy(x["x"]), torch.tensor(False)]
    assert relative_error(evaluate(pruned.cut, given), expected) < 1e-5
    assert relative_error([module_from_onnx(pruned.cut)(*given).detach()], expected) < 1e-5


def test_what_only_chooses_between_shapes_stays_closed() -> None:
    then = graph_of("then", [node("Neg", "h", "t")], "t")
    other = graph_of("else", [node("Abs", "h", "e")], "e")
    model = around([choice("p", then, other, "y")])
    assert open_branches(model) is None
    frozen = [str(g.frozen) for g in groups_of(analysed_file(model)) if g.frozen]
    assert any("branches of an If" in why for why in frozen)
