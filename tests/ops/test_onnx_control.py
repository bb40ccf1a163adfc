"""If, Loop and Scan: what the bodies of loops read keeps its sizes, the model is pruned around
them; widths pass through the branches of an If; and torch runs them all."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from shared import analysed_file, cut_file

from irprune.emit.bridge.onnx_module import module_from_onnx
from irprune.emit.onnx.emitter import emit_onnx
from irprune.frontend.onnx.reader import capture_onnx
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.run.error import relative_error
from irprune.validate.onnx_oracle import silenced_onnx
from irprune.validate.onnx_run import run_model

FLOAT, BOOL, INT = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
node = helper.make_node


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    random = np.random.default_rng(crc32(name.encode()))
    return numpy_helper.from_array((random.standard_normal(shape) * 0.5).astype(np.float32), name)


def info(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def branches() -> list[onnx.NodeProto]:
    """Both branches read ``b`` and ``w3`` from outside; one has a weight of its own."""
    then = helper.make_graph(
        [node("MatMul", ["b", "own"], ["t0"]), node("MatMul", ["t0", "w3"], ["t"])],
        "then",
        [],
        [info("t", FLOAT, 4, 10)],
        [tensor("own", 8, 8)],
    )
    other = helper.make_graph(
        [node("MatMul", ["b", "w3"], ["e0"]), node("Neg", ["e0"], ["e"])],
        "else",
        [],
        [info("e", FLOAT, 4, 10)],
    )
    return [node("If", ["flag"], ["c"], then_branch=then, else_branch=other)]


def rounds() -> list[onnx.NodeProto]:
    """A state that goes around as often as ``flag`` says, and what each round leaves behind,
    summed."""
    body = helper.make_graph(
        [
            node("MatMul", ["s", "own"], ["s0"]),
            node("Add", ["s0", "b"], ["s1"]),
            node("Tanh", ["s1"], ["s2"]),
            node("Identity", ["going"], ["on"]),
            node("Identity", ["s2"], ["seen"]),
        ],
        "body",
        [info("k", INT), info("going", BOOL), info("s", FLOAT, 4, 8)],
        [info("on", BOOL), info("s2", FLOAT, 4, 8), info("seen", FLOAT, 4, 8)],
        [tensor("own", 8, 8)],
    )
    many = [
        node("Loop", ["trips", "", "b"], ["last", "all"], body=body),
        node("ReduceSum", ["all", "first"], ["sum"], keepdims=0),
    ]
    return [*many, node("Add", ["last", "sum"], ["c0"]), node("MatMul", ["c0", "w3"], ["c"])]


def steps() -> list[onnx.NodeProto]:
    """A recurrence over the rows of ``b``."""
    body = helper.make_graph(
        [
            node("MatMul", ["s", "own"], ["s0"]),
            node("Add", ["s0", "row"], ["s1"]),
            node("Relu", ["s1"], ["s2"]),
            node("Identity", ["s2"], ["seen"]),
        ],
        "body",
        [info("s", FLOAT, 8), info("row", FLOAT, 8)],
        [info("s2", FLOAT, 8), info("seen", FLOAT, 8)],
        [tensor("own", 8, 8)],
    )
    return [
        node("Scan", ["zero", "b"], ["last", "all"], body=body, num_scan_inputs=1),
        node("MatMul", ["all", "w3"], ["c"]),
    ]


INSIDE = {"If": branches, "Loop": rounds, "Scan": steps}
FLAGS = {
    "If": [np.array(True), np.array(False)],
    "Loop": [np.array(3), np.array(1)],
    "Scan": [None],
}


def model_of(kind: str) -> onnx.ModelProto:
    """Two layers before the body, one behind it: widths 16 and 12 may shrink; 8 and 10 are read
    inside, and may shrink in an If."""
    nodes = [
        node("MatMul", ["x", "w1"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "w2"], ["b"]),
        *INSIDE[kind](),
    ]
    nodes += [
        node("MatMul", ["c", "w4"], ["d"]),
        node("Relu", ["d"], ["f"]),
        node("MatMul", ["f", "w5"], ["y"]),
    ]
    given = [info("x", FLOAT, 4, 6)]
    given += {"If": [info("flag", BOOL)], "Loop": [info("trips", INT)], "Scan": []}[kind]
    tensors = [
        tensor("w1", 6, 16),
        tensor("w2", 16, 8),
        tensor("w3", 8, 10),
        tensor("w4", 10, 12),
        tensor("w5", 12, 3),
    ]
    tensors += [
        numpy_helper.from_array(np.array([0]), "first"),
        numpy_helper.from_array(np.zeros(8, np.float32), "zero"),
    ]
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "g",
        given,
        [info("y", FLOAT, 4, 3)],
        [t for t in tensors if t.name in used or t.name == "w3"],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inputs(kind: str, flag: np.ndarray | None) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    return {"x": x} if flag is None else {"x": x, {"If": "flag", "Loop": "trips"}[kind]: flag}


def in_torch(module: torch.nn.Module, graph: Graph, x: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        return [module(*(torch.from_numpy(np.asarray(x[v.name])) for v in graph.inputs)).numpy()]


@pytest.mark.parametrize("kind", INSIDE)
def test_a_model_is_pruned_around_a_body(kind: str) -> None:
    model = model_of(kind)
    onnx.checker.check_model(model, full_check=True)
    graph = analysed_file(model)
    assert emit_onnx(graph).SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )
    small = cut_file(graph)
    emitted = emit_onnx(small)
    onnx.checker.check_model(emitted, full_check=True)
    sizes = {t.name: tuple(t.dims) for t in emitted.graph.initializer}
    assert (
        sizes["w1"] == (6, 8)
        and sizes["w5"] == (6, 3)
        and sizes["w3"] == ((4, 5) if kind == "If" else (8, 5))
    )
    for flag in FLAGS[kind]:
        x = inputs(kind, flag)
        assert relative_error(run_model(emitted, x), silenced_onnx(graph, graph.kept, x)) < 1e-5
        assert relative_error(run_model(model, x), silenced_onnx(graph, graph.kept, x)) > 1e-3


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_the_reason_names_the_body(kind: str) -> None:
    graph = analysed_file(model_of(kind))
    reasons = {
        str(g.frozen)
        for g in groups_of(graph)
        if g.frozen and any(m.weight.name == "w2" for m in g.members)
    }
    assert any(kind in r for r in reasons), reasons


@pytest.mark.parametrize("kind", INSIDE)
def test_torch_runs_the_body(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    graph = analysed_file(model)
    small = cut_file(graph)
    for g, m in ((graph, model), (small, emit_onnx(small))):
        module = module_from_onnx(g)
        for flag in FLAGS[kind]:
            x = inputs(kind, flag)
            assert relative_error(in_torch(module, g, x), run_model(m, x)) < 1e-5
    torch.save(module, tmp_path / "m.pt")
    again = torch.load(tmp_path / "m.pt", weights_only=False)
    assert relative_error(in_torch(again, small, x), in_torch(module, small, x)) == 0.0


@pytest.mark.parametrize("kind", INSIDE)
def test_the_weights_of_a_body_train(kind: str) -> None:
    """They count among the parameters and get gradients."""
    graph = capture_onnx(model_of(kind))
    assert graph.weights["own"].trainable
    module = module_from_onnx(graph)
    x = inputs(kind, FLAGS[kind][0])
    module(
        *(torch.from_numpy(np.asarray(x[v.name])) for v in graph.inputs)
    ).square().sum().backward()
    held = dict(module.named_parameters())
    assert held["own"].grad is not None and float(held["own"].grad.abs().max()) > 0


def counted(*kept: str, rows: int | str = 2) -> onnx.ModelProto:
    """A loop that leaves an integer and a float row behind in each round; ``kept`` of its results
    are outputs."""
    body = helper.make_graph(
        [
            node("Identity", ["on"], ["on2"]),
            node("Add", ["s", "x"], ["s2"]),
            node("Cast", ["s2"], ["whole"], to=INT),
            node("Exp", ["s2"], ["z"]),
        ],
        "body",
        [info("k", INT), info("on", BOOL), info("s", FLOAT, rows, 3)],
        [
            info("on2", BOOL),
            info("s2", FLOAT, rows, 3),
            info("whole", INT, rows, 3),
            info("z", FLOAT, rows, 3),
        ],
    )
    kinds = {"last": FLOAT, "wholes": INT, "zs": FLOAT}
    loop = node("Loop", ["trips", "first", "x"], list(kinds), body=body)
    graph = helper.make_graph(
        [loop],
        "g",
        [info("trips", INT), info("first", BOOL), info("x", FLOAT, rows, 3)],
        [helper.make_tensor_value_info(name, kinds[name], None) for name in kept],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("rows", [2, "n"])
@pytest.mark.parametrize(("trips", "first"), [(0, True), (3, False), (2, True)])
def test_a_loop_without_rounds_leaves_empty_rows(rows: int | str, trips: int, first: bool) -> None:
    """Their type and their shape are onnxruntime's, which takes sizes that are not known as 0."""
    model = counted("last", "wholes", "zs", rows=rows)
    x = {"trips": np.array(trips), "first": np.array(first), "x": np.ones((2, 3), np.float32)}
    ours = module_from_onnx(capture_onnx(model))(
        *(torch.from_numpy(np.asarray(v)) for v in x.values())
    )
    for made, wanted in zip(ours, run_model(model, x), strict=True):
        assert made.numpy().dtype == wanted.dtype and made.shape == wanted.shape
        np.testing.assert_allclose(made.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("kept", [("last",), ("wholes",), ("last", "wholes")])
def test_results_of_a_body_that_nobody_reads(kept: tuple[str, ...]) -> None:
    model = counted(*kept)
    x = {"trips": np.array(2), "first": np.array(True), "x": np.ones((2, 3), np.float32)}
    ours = module_from_onnx(capture_onnx(model))(
        *(torch.from_numpy(np.asarray(v)) for v in x.values())
    )
    ours = [ours] if len(kept) == 1 else ours
    assert relative_error([y.numpy() for y in ours], run_model(model, x)) == 0.0


@pytest.mark.parametrize("place", [0, 1])
def test_a_scan_over_nothing_leaves_empty_rows(place: int) -> None:
    """As ONNX defines it; onnxruntime refuses to run one."""
    body = helper.make_graph(
        [node("Add", ["s", "row"], ["s2"]), node("Identity", ["s2"], ["seen"])],
        "body",
        [info("s", FLOAT, 8), info("row", FLOAT, 8)],
        [info("s2", FLOAT, 8), info("seen", FLOAT, 8)],
    )
    scan = node(
        "Scan",
        ["start", "x"],
        ["last", "all"],
        body=body,
        num_scan_inputs=1,
        scan_output_axes=[place],
    )
    graph = helper.make_graph(
        [scan],
        "g",
        [info("start", FLOAT, 8), info("x", FLOAT, "n", 8)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("last", "all")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = module_from_onnx(capture_onnx(model))
    for n in (0, 2):
        last, seen = module(torch.ones(8), torch.ones(n, 8))
        assert seen.shape == ((n, 8) if place == 0 else (8, n)) and torch.equal(
            last, torch.full((8,), 1.0 + n)
        )


def branch(cond, *, then, other, count):  # type: ignore[no-untyped-def]
    made = other() if cond else then()
    return made[0]


def test_a_wrong_body_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees the other branch."""
    from irprune.ops.onnx import functions

    graph = capture_onnx(model_of("If"))
    x = inputs("If", np.array(True))
    monkeypatch.setattr(functions, "branch", branch)
    assert (
        relative_error(in_torch(module_from_onnx(graph), graph, x), run_model(model_of("If"), x))
        > 1e-2
    )


def test_a_size_that_a_body_reads_stays_what_it_was() -> None:
    """A branch multiplies by the width of a layer that is cut."""
    then = helper.make_graph(
        [node("Mul", ["b", "width"], ["t"])], "then", [], [info("t", FLOAT, 4, 8)]
    )
    other = helper.make_graph([node("Neg", ["b"], ["e"])], "else", [], [info("e", FLOAT, 4, 8)])
    nodes = [
        node("MatMul", ["x", "w1"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("Shape", ["r"], ["s"]),
        node("Gather", ["s", "one"], ["n"]),
    ]
    nodes += [node("Cast", ["n"], ["width"], to=FLOAT), node("MatMul", ["r", "w2"], ["b"])]
    nodes += [
        node("If", ["flag"], ["c"], then_branch=then, else_branch=other),
        node("MatMul", ["c", "w5"], ["y"]),
    ]
    tensors = [
        tensor("w1", 6, 16),
        tensor("w2", 16, 8),
        tensor("w5", 8, 3),
        numpy_helper.from_array(np.array(1), "one"),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("x", FLOAT, 4, 6), info("flag", BOOL)], [info("y", FLOAT, 4, 3)], tensors
    )
    analysis = analysed_file(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    emitted = emit_onnx(cut_file(analysis))
    assert {t.name: tuple(t.dims) for t in emitted.graph.initializer}["w1"] == (6, 8)
    for flag in FLAGS["If"]:
        x = inputs("If", flag)
        assert (
            relative_error(run_model(emitted, x), silenced_onnx(analysis, analysis.kept, x)) < 1e-5
        )
