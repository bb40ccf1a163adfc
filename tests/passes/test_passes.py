"""Every pass by the text before and after it, and that what it computes stays the same."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from irprune.driver.instruments import Verify
from irprune.driver.registry import standard
from irprune.driver.run import run
from irprune.emit.torch.module import emit_module
from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import Files
from irprune.frontend.onnx.source import OnnxSource
from irprune.frontend.torch.export import export, from_exported
from irprune.ir.axis import leaves
from irprune.ir.graph import Graph, Value
from irprune.ir.parse import from_text
from irprune.ir.size import probe_of
from irprune.ops import registry
from irprune.ops.dtypes import TO_TORCH
from irprune.ops.registry import load_table, lookup
from irprune.run.interpret import evaluate

REGISTRY = standard()


def values(of: Value) -> torch.Tensor:
    """Seeded values of that type: positive, so that they may be variances."""
    generator = torch.Generator().manual_seed(len(of.name))
    return (
        torch.rand([probe_of(s) for s in of.shape], generator=generator)
        .add(0.5)
        .mul(4)
        .to(TO_TORCH[of.dtype])
    )


def filled(text: str, as_numpy: bool = False) -> Graph:
    """The graph of ``text`` with seeded values for its weights."""
    graph = from_text(text)
    for weight in graph.weights.values():
        array = values(weight)
        held = array.numpy() if as_numpy else array
        weight.load = lambda held=held: held
    return graph


def pipeline(graph: Graph, text: str) -> bool:
    """Run a pipeline with the verifier around every pass."""
    return run(graph, REGISTRY.parse(text), [Verify(deep=True)]).changed


def check(text: str, before: str, after: str) -> Graph:
    """``text`` makes ``after`` of ``before``, and nothing more of ``after``; on the same input both
    give the same."""
    graph = filled(before)
    assert str(graph) == before, "the text before is as it would be printed"
    inputs = [values(v) for v in graph.inputs]
    original = evaluate(graph, inputs)
    assert pipeline(graph, text)
    assert str(graph) == after
    for a, b in zip(evaluate(graph, inputs), original, strict=True):
        torch.testing.assert_close(a, b)
    assert not pipeline(graph, text.split(",")[0]), "a second run finds nothing to do"
    return graph


def test_canonicalize_drops_what_gives_back_its_operand() -> None:
    check(
        "canonicalize",
        """\
graph g {
  %x: f32[2, 6] = input
  %i: i64[6] = constant

  %a: f32[2, 6] = identity(%x) {memory_format="contiguous_format"}
  %b: f32[2, 6] = reshape(%a) {shape=[2, -1]}
  %c: f32[2, 6] = permute(%b) {dims=[0, -1]}
  %d: f32[2, 6] = slice(%c) {dim=1, start=0, end=9223372036854775807, step=1}
  %e: f32[2, 6] = expand(%d) {shape=[-1, 6]}
  %f: f32[2, 6] = dropout(%e) {p=0.0, train=True}
  %j: i64[6] = cast(%i) {dtype="i64"}
  %g: f32[2, 6] = relu(%f)
  %h: f32[2, 6] = dropout(%g) {p=0.5, train=False}
  %k: f32[6, 2] = permute(%h) {dims=[1, 0]}
  %l: f32[6, 2] = cast(%k) {dtype="f32"}
  %m: f32[2, 6] = reshape(%l) {shape=[2, 6]}
  %n: f32[2, 5] = slice(%m) {dim=1, start=1, end=6, step=1}
  %o: f64[6] = cast(%j) {dtype="f64"}
  return %n, %o
}
""",
        """\
graph g {
  %x: f32[2, 6] = input
  %i: i64[6] = constant

  %g: f32[2, 6] = relu(%x)
  %h: f32[2, 6] = dropout(%g) {p=0.5, train=False}
  %k: f32[6, 2] = permute(%h) {dims=[1, 0]}
  %l: f32[6, 2] = cast(%k) {dtype="f32"}
  %m: f32[2, 6] = reshape(%l) {shape=[2, 6]}
  %n: f32[2, 5] = slice(%m) {dim=1, start=1, end=6, step=1}
  %o: f64[6] = cast(%i) {dtype="f64"}
  return %n, %o
}
""",
    )


def test_canonicalize_never_returns_an_input_or_one_result_twice() -> None:
    graph = from_text("""\
graph g {
  %x: f32[2, 6] = input

  %a: f32[2, 6] = identity(%x)
  %b: f32[2, 6] = relu(%x)
  %c: f32[2, 6] = identity(%b)
  %d: f32[2, 6] = identity(%c)
  return %a, %b, %d
}
""")
    assert pipeline(graph, "canonicalize")
    assert [n.out.name for n in graph.nodes] == ["a", "b", "d"] and [
        v.name for v in graph.outputs
    ] == ["a", "b", "d"]


class Copies(torch.nn.Module):
    """A copy that makes a view possible, and one that makes an access by strides right."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = x.transpose(1, 2).contiguous().view(2, -1)
        b = torch.as_strided(x.transpose(1, 2).contiguous(), (2, 3), (1, 2))
        return a, b


def test_canonicalize_minds_how_tensors_lie_in_memory() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    model = Copies()
    graph = from_exported(export(model, (x,)), model)
    assert pipeline(graph, "canonicalize")
    assert [n.op for n in graph.nodes if n.op != "transpose"] == [
        "reshape",
        "identity",
        "as_strided",
    ]
    for ours, theirs in zip(emit_module(graph)(x), model(x), strict=True):
        assert torch.equal(ours, theirs)
    graph = from_exported(export(model, (x,)), model)
    assert not pipeline(graph, "canonicalize{views=false}"), (
        "both copies are counted on by what reads them"
    )


def test_canonicalize_leaves_the_nodes_of_an_onnx_file() -> None:
    graph = from_text(
        "graph g {\n  %x: f32[2] = input\n\n  %a: f32[2] = identity(%x)\n  %y: f32[2] = relu(%a)\n  return %y\n}"
    )
    graph.nodes[0].origin.dialect = "onnx"
    assert not pipeline(graph, "canonicalize")


IDLE_USES = [
    ("identity", "f32[2, 6]", "f32[2, 6]", "", True),
    ("cast", "i64[2, 6]", "i64[2, 6]", 'dtype="i64"', True),
    ("cast", "bool[2]", "bool[2]", 'dtype="bool"', True),
    ("cast", "i64[2]", "i32[2]", 'dtype="i32"', False),
    ("cast", "f32[2]", "f32[2]", 'dtype="f32"', False),
    ("reshape", "f32[2, 6]", "f32[2, 6]", "shape=[2, -1]", True),
    ("reshape", "f32[2, 6]", "f32[6, 2]", "shape=[6, 2]", False),
    ("flatten", "f32[2, 6]", "f32[2, 6]", "start_dim=1, end_dim=-1", True),
    ("flatten", "f32[2, 6]", "f32[12]", "start_dim=0, end_dim=-1", False),
    ("permute", "f32[2, 2]", "f32[2, 2]", "dims=[0, -1]", True),
    ("permute", "f32[2, 2]", "f32[2, 2]", "dims=[1, 0]", False),
    ("expand", "f32[2, 6]", "f32[2, 6]", "shape=[-1, 6]", True),
    ("expand", "f32[1, 6]", "f32[2, 6]", "shape=[2, -1]", False),
    ("slice", "f32[2, 6]", "f32[2, 6]", "dim=1, start=-6, end=9, step=1", True),
    ("slice", "f32[2, 6]", "f32[2, 3]", "dim=1, start=0, end=6, step=2", False),
    ("squeeze", "f32[2, 6]", "f32[2, 6]", "dim=1", True),
    ("squeeze", "f32[2, 1]", "f32[2]", "dim=1", False),
    ("dropout", "f32[2, 6]", "f32[2, 6]", "p=0.0, train=True", True),
    ("dropout", "f32[2, 6]", "f32[2, 6]", "p=0.5, train=False", False),
    ("drop_path", "f32[2, 6]", "f32[2, 6]", 'p=0.0, mode="row", training=True', True),
    ("drop_path", "f32[2, 6]", "f32[2, 6]", 'p=0.5, mode="row", training=False', False),
    ("stop_gradient", "f32[2, 6]", "f32[2, 6]", "idle=True", True),
    ("stop_gradient", "f32[2, 6]", "f32[2, 6]", "", False),
]


@pytest.mark.parametrize(("op", "before", "after", "attrs", "idle"), IDLE_USES)
def test_what_the_table_calls_idle_gives_back_its_operand(
    op: str, before: str, after: str, attrs: str, idle: bool
) -> None:
    graph = from_text(
        f"graph g {{\n  %x: {before} = input\n\n  %y: {after} = {op}(%x) {{{attrs}}}\n  return %y\n}}"
    )
    entry = lookup(graph.nodes[0])
    assert entry is not None and entry.idle is not None and entry.idle(graph.nodes[0]) is idle
    x = values(graph.inputs[0])
    (y,) = evaluate(graph, [x])
    if idle:
        assert y.dtype == x.dtype and torch.equal(y, x)


def test_every_entry_that_may_be_idle_is_tried() -> None:
    tried = {op for op, *_ in IDLE_USES}
    assert {entry.name for entry in load_table().values() if entry.idle is not None} - {
        "expand_as"
    } == tried


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


NORMS = """\
graph g {
  %x: f32[2, 4, 6, 6] = input
  %conv.weight: f32[8, 2, 3, 3] = parameter
  %norm.weight: f32[8] = parameter
  %norm.bias: f32[8] = parameter
  %norm.mean: f32[8] = buffer
  %norm.var: f32[8] = buffer
  %up.weight: f32[8, 3, 2, 2] = parameter
  %up.bias: f32[6] = parameter
  %up.mean: f32[6] = buffer
  %up.var: f32[6] = buffer
  %fc.weight: f32[5, 6] = parameter
  %fc.bias: f32[5] = parameter {aliases=["other.bias"]}
  %fc.mean: f32[5] = buffer
  %fc.var: f32[5] = buffer

  %c: f32[2, 8, 4, 4] = conv(%x, %conv.weight) {stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=2}
  %n: f32[2, 8, 4, 4] = batch_norm(%c, %norm.weight, %norm.bias, %norm.mean, %norm.var) {training=False, momentum=0.1, eps=0.001}
  %u: f32[2, 6, 8, 8] = conv_transpose(%n, %up.weight, %up.bias) {stride=[2, 2], padding=[0, 0], output_padding=[0, 0], groups=2}
  %m: f32[2, 6, 8, 8] = batch_norm(%u, -, -, %up.mean, %up.var) {training=False, momentum=0.1, eps=0.001}
  %p: f32[2, 6] = mean(%m) {dim=[2, 3], keepdim=False}
  %f: f32[2, 5] = linear(%p, %fc.weight, %fc.bias)
  %y: f32[2, 5] = batch_norm(%f, -, -, %fc.mean, %fc.var) {training=False, momentum=0.1, eps=0.001}
  return %y
}
"""


def test_fold_batch_norm_multiplies_it_into_the_layer_before() -> None:
    graph = check(
        "fold-batch-norm,dead-code",
        NORMS,
        """\
graph g {
  %x: f32[2, 4, 6, 6] = input
  %conv.weight: f32[8, 2, 3, 3] = parameter
  %up.weight: f32[8, 3, 2, 2] = parameter
  %up.bias: f32[6] = parameter
  %fc.weight: f32[5, 6] = parameter
  %conv.bias: f32[8] = parameter
  %fc.bias.folded1: f32[5] = parameter

  %c: f32[2, 8, 4, 4] = conv(%x, %conv.weight, %conv.bias) {stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=2}
  %u: f32[2, 6, 8, 8] = conv_transpose(%c, %up.weight, %up.bias) {stride=[2, 2], padding=[0, 0], output_padding=[0, 0], groups=2}
  %p: f32[2, 6] = mean(%u) {dim=[2, 3], keepdim=False}
  %f: f32[2, 5] = linear(%p, %fc.weight, %fc.bias.folded1)
  return %f
}
""",
    )
    assert graph.weights["conv.bias"].load().dtype == torch.float32
    twin = filled(NORMS, as_numpy=True)
    pipeline(twin, "fold-batch-norm")
    for name in ("conv.weight", "conv.bias", "up.weight", "fc.weight"):
        array = twin.weights[name].load()
        assert isinstance(array, np.ndarray) and array.dtype == np.float32
        np.testing.assert_array_equal(array, graph.weights[name].load().numpy())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            ("%m: f32[2, 6, 8, 8] = batch_norm(%u", "%m: f32[2, 6, 8, 8] = batch_norm(%u2"),
            "another reader stands between",
        ),
        (
            (
                "training=False, momentum=0.1, eps=0.001}\n  %u",
                "training=True, momentum=0.1, eps=0.001}\n  %u",
            ),
            "it is training",
        ),
        (("return %y", "return %y, %c"), "the layer's own result is returned"),
        (
            (
                "%p: f32[2, 6] = mean(%m)",
                "%q: f32[2, 8, 4, 4] = relu(%c)\n  %p: f32[2, 6] = mean(%m)",
            ),
            "the layer's own result is read",
        ),
    ],
)
def test_fold_batch_norm_leaves_what_it_may_not_touch(change: tuple[str, str], why: str) -> None:
    assert change[0] in NORMS
    text = NORMS.replace(*change)
    if "%u2" in text:
        text = text.replace("  %m:", "  %u2: f32[2, 6, 8, 8] = relu(%u)\n  %m:")
    graph = filled(text)
    pipeline(graph, "fold-batch-norm")
    assert sum(n.op == "batch_norm" for n in graph.nodes) == 1, why


def test_a_weight_that_others_read_is_folded_into_a_copy() -> None:
    conv = next(line for line in NORMS.splitlines() if "%c:" in line)
    text = NORMS.replace("  return %y", conv.replace("%c:", "%k:") + "\n  return %y, %k")
    graph = filled(text)
    plain = graph.weights["conv.weight"].load()
    pipeline(graph, "fold-batch-norm")
    assert graph.nodes[0].inputs[1] is graph.weights["conv.weight.folded1"]
    assert graph.weights["conv.weight"].load() is plain


def test_folding_an_analysed_graph_keeps_its_axes() -> None:
    graph = filled(NORMS)
    assert pipeline(graph, "infer-axes,fold-batch-norm,dead-code")
    assert "%conv.bias: f32[(2 c0)]" in str(graph) or "%conv.bias: f32[(c0 c1)]" in str(graph)
    twin = filled(NORMS)
    pipeline(twin, "fold-batch-norm,dead-code,infer-axes")
    assert str(twin) == str(graph)


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
