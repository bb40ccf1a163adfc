"""Canonicalize: what gives back its operand goes, and nothing else."""

from __future__ import annotations

import pytest
import torch
from pass_checks import check, pipeline, values

from irprune.emit.torch.module import emit_module
from irprune.frontend.torch.export import export, from_exported
from irprune.ir.parse import from_text
from irprune.ops.registry import load_table, lookup
from irprune.run.interpret import evaluate


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
