"""Every pass by the text before and after it, and that what it computes stays the same."""

from __future__ import annotations

import importlib
from dataclasses import replace

import onnx
import pytest
import torch
from pass_checks import REGISTRY, check, filled, pipeline

from irprune.driver.run import run
from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import Files
from irprune.frontend.onnx.source import OnnxSource
from irprune.ir.axis import leaves
from irprune.ir.parse import from_text
from irprune.ops import registry
from irprune.ops.registry import load_table


def test_fold_constants_computes_what_depends_on_no_input() -> None:
    graph = check(
        "fold-constants",
        """\
graph g {
  %x: f32[2, 6] = input
  %w: f32[6] = parameter
  %scale: f32[6] = buffer
  %shift: f32[6] = constant

  %half: f32[6] = mul(%scale) {other=0.5}
  %both: f32[6] = add(%half, %shift)
  %range: f32[6] = arange() {start=0, end=6, step=1, dtype="f32"}
  %sum: f32[6] = add(%both, %range)
  %own: f32[6] = mul(%w, %scale)
  %y: f32[2, 6] = mul(%x, %sum)
  %z: f32[2, 6] = add(%y, %own)
  return %z, %half
}
""",
        """\
graph g {
  %x: f32[2, 6] = input
  %w: f32[6] = parameter
  %scale: f32[6] = buffer
  %shift: f32[6] = constant
  %folded.half: f32[6] = constant
  %folded.sum: f32[6] = constant

  %own: f32[6] = mul(%w, %scale)
  %y: f32[2, 6] = mul(%x, %folded.sum)
  %z: f32[2, 6] = add(%y, %own)
  return %z, %folded.half
}
""",
    )
    assert graph.weights["folded.half"].load() is not graph.weights["folded.half"].load(), (
        "each load gives an array of its own"
    )


def test_fold_constants_leaves_what_is_large_random_or_unknown() -> None:
    text = """\
graph g {
  %x: f32[6] = input
  %c: f32[6] = constant

  %noise: f32[6] = rand() {size=[6], dtype="f32"}
  %large: f32[1024, 6] = expand(%c) {shape=[1024, 6]}
  %odd: f32[6] = "vendor::op"(%c)
  return %noise, %large, %odd
}
"""
    graph = filled(text)
    assert not run(graph, REGISTRY.parse("fold-constants{largest=1000}")) and str(graph) == text
    assert run(graph, REGISTRY.parse("fold-constants{largest=6144}"))
    assert [v.name for v in graph.outputs] == ["noise", "folded.large", "odd"]


def test_dead_code_removes_what_no_result_needs() -> None:
    check(
        "dead-code",
        """\
graph g {
  %x: f32[2, 6] = input
  %spare: f32[2, 6] = input
  %unused: f32[8] = parameter
  %w: f32[6] = parameter
  %v: f32[6] = parameter

  %a: f32[2, 6] = relu(%x)
  %b: f32[2, 6] = rand_like(%a)
  %c: f32[2, 6] = mul(%a, %v)
  %p: f32[2, 3], %q: f32[2, 3] = split(%x) {split_sizes=[3, 3], dim=1}
  %y: f32[2, 6] = mul(%x, %w)
  return %y, %q
}
""",
        """\
graph g {
  %x: f32[2, 6] = input
  %spare: f32[2, 6] = input
  %w: f32[6] = parameter

  %p: f32[2, 3], %q: f32[2, 3] = split(%x) {split_sizes=[3, 3], dim=1}
  %y: f32[2, 6] = mul(%x, %w)
  return %y, %q
}
""",
    )


BLOCK = """\
graph g {
  %x: f32[2, 4] = input
  %up: f32[12, 4] = parameter
  %down: f32[3, 12] = parameter
  %table: f32[4] = buffer

  %h: f32[2, 12] = linear(%x, %up)
  %v: f32[2, 3, 4] = reshape(%h) {shape=[2, 3, 4]}
  %steps: i64[4] = arange() {start=0, end=4, step=1}
  %s: f32[4] = add(%table, %steps)
  %r: f32[2, 3, 4] = mul(%v, %s)
  %f: f32[2, 12] = reshape(%r) {shape=[2, -1]}
  %odd: f32[2, 12] = "vendor::op"(%f)
  %g: f32[2, 12] = relu(%f)
  %y: f32[2, 3] = linear(%g, %down)
  return %y
}
"""


def test_infer_axes_gives_every_dimension_its_axis() -> None:
    check(
        "infer-axes",
        BLOCK.replace('  %odd: f32[2, 12] = "vendor::op"(%f)\n', ""),
        """\
graph g with axes {
  axis c0 = 3
  axis c1 = 4

  %x: f32[2, 4] = input
  %up: f32[(c0 c1), 4] = parameter
  %down: f32[3, (c0 c1)] = parameter
  %table: f32[c1] = buffer

  %h: f32[2, (c0 c1)] = linear(%x, %up)
  %v: f32[2, c0, c1] = reshape(%h) {shape=[2, 3, 4]}
  %steps: i64[c1] = foldable arange() {start=0, end=4, step=1}
  %s: f32[c1] = add(%table, %steps)
  %r: f32[2, c0, c1] = mul(%v, %s)
  %f: f32[2, (c0 c1)] = reshape(%r) {shape=[2, -1]}
  %g: f32[2, (c0 c1)] = relu(%f)
  %y: f32[2, 3] = linear(%g, %down)
  return %y
}
""",
    )


def test_untie_copies_an_array_of_a_file_whose_uses_do_not_agree() -> None:
    text = """\
graph g {
  %x: f32[2, 4] = input
  %w: f32[4, 4] = parameter
  %v: f32[4, 4] = parameter

  %a: f32[2, 4] = matmul(%x, %w)
  %b: f32[2, 4] = matmul(%a, %v)
  %y: f32[2, 4] = matmul(%b, %w)
  return %y
}
"""
    for stored, after in (({"w": "one array"}, UNTIED), ({}, None)):
        graph = filled(text)
        graph.source = OnnxSource(onnx.ModelProto(), Files(), stored=stored)
        pipeline(graph, "infer-axes")
        tied = str(graph)
        assert pipeline(graph, "untie") == (after is not None)
        assert str(graph) == (after or tied)
        assert not pipeline(graph, "untie"), "a second run finds nothing to do"
        assert stored == ({} if after is None else {"w": "one array", "w@2": "one array"})


UNTIED = """\
graph g with axes {
  axis c0 = 4
  axis c1 = 4

  %x: f32[2, 4] = input
  %w: f32[4, c0] = parameter
  %v: f32[c0, c1] = parameter
  %"w@2": f32[c1, 4] = parameter

  %a: f32[2, c0] = matmul(%x, %w)
  %b: f32[2, c1] = matmul(%a, %v)
  %y: f32[2, 4] = matmul(%b, %"w@2")
  return %y
}
"""


def test_an_operator_without_a_rule_freezes_what_it_touches_with_a_reason() -> None:
    graph = filled(BLOCK)
    graph.nodes[6].origin.source = "net.py:41"
    pipeline(graph, "infer-axes")
    assert "axis" not in str(graph).splitlines()[1] and "%up: f32[12, 4]" in str(graph)
    reasons = {str(x.reason) for a in graph.weights["up"].axes or () for x in leaves(a)}
    assert "no rule for vendor::op at net.py:41" in reasons


def test_a_rule_that_fails_freezes_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(axes: object, node: object) -> None:
        raise KeyError("dim")

    entry = load_table()["mul"]
    monkeypatch.setitem(registry.TABLE, "mul", replace(entry, rule=broken))
    graph = filled(BLOCK)
    pipeline(graph, "infer-axes,infer-axes")
    assert graph.notes == ["the rule of mul failed: KeyError: 'dim' at r"]
    assert "%g: f32[2, 12] = relu" in str(graph)


def test_a_tensor_of_unknown_rank_freezes() -> None:
    graph = from_text("""\
graph g {
  %x: f32[?] = input
  %w: f32[6] = parameter

  %y: f32[?] = mul(%x, %w)
  return %y
}
""")
    run(graph, REGISTRY.parse("infer-axes"))
    assert str(graph.weights["w"].axes[0].reason) == "a tensor of unknown rank at y"  # type: ignore[index]


def test_slice_cuts_weights_sizes_and_constants() -> None:
    graph = filled(BLOCK.replace('  %odd: f32[2, 12] = "vendor::op"(%f)\n', ""))
    pipeline(graph, "infer-axes")
    text = (
        str(graph)
        .replace("axis c0 = 3\n", "axis c0 = 3 keep=[0, 2]\n")
        .replace("axis c1 = 4\n", "axis c1 = 4 keep=[1:4]\n")
    )
    chosen = from_text(text)
    for name, weight in graph.weights.items():
        chosen.weights[name].load = weight.load
    assert pipeline(chosen, "slice")
    assert (
        str(chosen)
        == """\
graph g {
  %x: f32[2, 4] = input
  %up: f32[6, 4] = parameter
  %down: f32[3, 6] = parameter
  %table: f32[3] = buffer
  %folded.steps: i64[3] = constant

  %h: f32[2, 6] = linear(%x, %up)
  %v: f32[2, 2, 3] = reshape(%h) {shape=[2, 2, 3]}
  %s: f32[3] = add(%table, %folded.steps)
  %r: f32[2, 2, 3] = mul(%v, %s)
  %f: f32[2, 6] = reshape(%r) {shape=[2, -1]}
  %g: f32[2, 6] = relu(%f)
  %y: f32[2, 3] = linear(%g, %down)
  return %y
}
"""
    )
    at = [1, 2, 3, 9, 10, 11]
    assert torch.equal(chosen.weights["up"].load(), graph.weights["up"].load()[at])
    assert torch.equal(chosen.weights["down"].load(), graph.weights["down"].load()[:, at])
    assert chosen.weights["folded.steps"].load().tolist() == [1, 2, 3]
    assert chosen.axes is None and chosen.kept is None


def test_slice_without_a_choice_says_what_to_do() -> None:
    with pytest.raises(
        IrpruneError,
        match=r"nothing is chosen \(slice; in slice, the first pass\); run choose first",
    ):
        run(filled(BLOCK), REGISTRY.parse("slice"))


def test_slicing_leaves_the_uncut_graph_as_it_was() -> None:
    graph = filled(BLOCK.replace('  %odd: f32[2, 12] = "vendor::op"(%f)\n', ""))
    pipeline(graph, "infer-axes,score,choose{ratio=0.5}")
    before, whole = str(graph), graph.weights["up"].load()
    twin = graph.copy()
    assert pipeline(twin, "slice,dead-code")
    assert str(graph) == before and graph.weights["up"].load() is whole and str(twin) != before


def test_every_pass_shows_before_and_after() -> None:
    files = {cls.__module__.rpartition(".")[2] for cls in REGISTRY.passes.values()}
    assert len(files) >= 14
    for name in sorted(files):
        doc = importlib.import_module(f"irprune.passes.{name}").__doc__ or ""
        assert doc.startswith(f"{name.replace('_', '-')}: "), name
        assert "Before" in doc and "After" in doc, name
    for name, cls in REGISTRY.passes.items():
        assert (cls.__doc__ or "").strip() and not (cls.__doc__ or "").startswith(
            cls.__name__ + "("
        ), name
