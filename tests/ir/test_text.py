"""The text form: what is printed, that it parses back to the same graph, and what a text that
cannot be read says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irprune.errors import IrpruneError
from irprune.ir.axis import Axes, factors, find
from irprune.ir.graph import Graph, Origin, TensorType, Weight
from irprune.ir.parse import from_text
from irprune.ir.selection import Selection
from irprune.ir.size import symbol
from irprune.ir.text import Opaque, to_text
from irprune.passes.infer_axes import InferAxes
from irprune.passes.slice import Slice

PLAIN = """\
graph Net {
  %x: f32[n, 6] = input
  %mask: bool[?] = input
  %fc.weight: f32[8, 6] = parameter
  %fc.bias: f32[8] = parameter {trainable=False, aliases=["twin.bias"]}
  %mean: f32[8] = buffer

  %linear: f32[n, 8] = linear(%x, %fc.weight, %fc.bias)  # net.py:12 in fc
  %sub: f32[n, 8] = sub(%linear, %mean) {alpha=1}  # in fc.norm
  %view: f32[((n * 8) // 8), 2, 4] = reshape(%sub) {shape=[((n * 8) // 8), 2, -1]}
  %a: f32[n, 1, 4], %b: f32[n, 1, 4] = split(%view) {split_sizes=[1, 1], dim=1}  # net.py:13
  %odd: f32[(n * 2), 8] = "vendor::op"(%a, -, %b) {eps=1e-05, low=-inf, text="a \\"b\\", (c", ok=True, no=None, pair=(1, (n * 2)), one=(3,)}
  return %odd, %b
}
"""

ANALYSED = """\
graph Net with axes {
  axis c0 = 2 role="group"
  axis c1 = 3 keep=[0, 2] [1:3] within=c0
  axis c2 = 8 keep=[0:4, 6]
  axis c3 = 5 whole="kept: it matches 'head*'"

  %x: f32[n, 6] = input
  %w: f32[((c0 c1)+c2), 6] = parameter
  %v: f32[(2 (c2+1)), (c3 4)] = parameter
  %u: f32[(c2+(c0 c1)), c3] = parameter

  %z: f32[n, 6] = foldable zeros() {size=[n, 6]}
  return %z
}
"""


@pytest.mark.parametrize("text", [PLAIN, ANALYSED])
def test_print_parse_print_is_the_identity(text: str) -> None:
    assert to_text(from_text(text)) == text
    assert str(from_text(text).copy()) == text


def test_the_parsed_graph_holds_what_the_text_says() -> None:
    graph = from_text(PLAIN, "net.irp")
    n = symbol("n")
    assert [(v.name, v.type) for v in graph.inputs] == [
        ("x", TensorType("f32", (n, 6))),
        ("mask", TensorType("bool", None)),
    ]
    bias = graph.weights["fc.bias"]
    assert (bias.kind, bias.trainable, bias.aliases) == ("parameter", False, ("twin.bias",))
    assert (
        graph.weights["fc.weight"].trainable,
        graph.weights["mean"].kind,
        graph.weights["mean"].trainable,
    ) == (True, "buffer", False)
    linear, sub, view, split, odd = graph.nodes
    assert linear.inputs == [graph.inputs[0], graph.weights["fc.weight"], bias]
    assert (linear.origin.source, linear.origin.scope, sub.origin.source, sub.origin.scope) == (
        "net.py:12",
        "fc",
        "",
        "fc.norm",
    )
    assert view.attrs == {"shape": [n * 8 // 8, 2, -1]} and bias.users == {linear: 1}
    assert [o.index for o in split.outputs] == [0, 1] and odd.inputs == [
        split.outputs[0],
        None,
        split.outputs[1],
    ]
    assert (
        odd.op == "vendor::op"
        and graph.outputs == [odd.out, split.outputs[1]]
        and graph.axes is None
    )
    assert odd.attrs == {
        "eps": 1e-05,
        "low": float("-inf"),
        "text": 'a "b", (c',
        "ok": True,
        "no": None,
        "pair": (1, n * 2),
        "one": (3,),
    }


def test_parsed_axes_are_shared_and_chosen_as_the_text_says() -> None:
    graph = from_text(ANALYSED)
    w, v, u = (graph.weights[k].axes for k in "wvu")
    assert (
        w is not None
        and v is not None
        and u is not None
        and graph.axes is not None
        and graph.kept is not None
    )
    blocks, c2 = w[0].children
    c0, c1 = factors(blocks)
    assert u[0].children[0] is c2 and factors(u[0].children[1]) == [c0, c1]
    assert (
        factors(v[1])[0] is find(u[1])
        and factors(v[1])[1].reason is not None
        and c0.role == "group"
    )
    assert graph.kept.choice[c2].tolist() == [0, 1, 2, 3, 6] and graph.kept.within == {c1: c0}
    assert graph.kept.kept(w[0]).tolist() == [0, 2, 4, 5, 6, 7, 8, 9, 12]
    assert graph.skipped == {u[1]: "kept: it matches 'head*'"} and graph.axes.opened == {"z": None}


def test_choosing_on_the_text_and_on_the_graph_agree() -> None:
    text = """\
graph Block {
  %x: f32[2, 4] = input
  %up: f32[6, 4] = parameter
  %down: f32[3, 6] = parameter

  %h: f32[2, 6] = linear(%x, %up)
  %v: f32[2, 2, 3] = reshape(%h) {shape=[2, 2, 3]}
  %r: f32[2, 2, 3] = relu(%v)
  %f: f32[2, 6] = reshape(%r) {shape=[2, 6]}
  %y: f32[2, 3] = linear(%f, %down)
  return %y
}
"""
    graph = from_text(text)
    InferAxes().run(graph)
    inner = factors(graph.weights["up"].axes[0])[1]  # type: ignore[index]
    graph.kept = Selection({inner: [0, 2]})
    again = from_text(to_text(graph))
    for one in (graph, again):
        Slice().run(one)
    assert to_text(graph) == to_text(again)
    assert "%up: f32[4, 4] = parameter" in str(graph) and "{shape=[2, 2, 2]}" in str(graph)


def test_names_that_are_no_words_are_quoted() -> None:
    graph = Graph("a graph")
    x = graph.add_input("in put:0", TensorType("f32", (2,)))
    graph.add_weight(Weight("a#b", TensorType("f32", (2,)), lambda: None))
    origin = Origin(source="/home/me/net.py:3", scope=" a\nb")
    node = graph.add(
        "com.microsoft::Gelu",
        [x],
        {"odd key": 1},
        [("/layer/out", TensorType("f32", (2,)))],
        origin,
    )
    graph.outputs = [node.out]
    text = to_text(graph)
    assert (
        text
        == """\
graph "a graph" {
  %"in put:0": f32[2] = input
  %"a#b": f32[2] = parameter {trainable=False}

  %/layer/out: f32[2] = "com.microsoft::Gelu"(%"in put:0") {"odd key"=1}  # net.py:3 in a b
  return %/layer/out
}
"""
    )
    assert to_text(from_text(text)) == text


def test_what_has_no_literal_keeps_its_description() -> None:
    graph = from_text("graph g {\n  %y: f32[2] = thing() {}\n  return %y\n}")
    graph.nodes[0].attrs = {
        "table": np.arange(6, dtype=np.int32).reshape(2, 3),
        "body": Graph("loop"),
    }
    text = to_text(graph)
    assert '{table=opaque("int32[2, 3] ' in text and 'body=opaque("Graph loop")}' in text
    again = from_text(text)
    assert isinstance(again.nodes[0].attrs["table"], Opaque) and to_text(again) == text
    graph.nodes[0].attrs["table"][0, 0] = 7
    assert to_text(graph) != text, "another array prints otherwise"


def test_leaf_names_avoid_the_symbols_of_sizes() -> None:
    graph = from_text(
        "graph g {\n  %x: f32[c0, 3] = input\n  %w: f32[4, 3] = parameter\n\n  %y: f32[c0, 4] = linear(%x, %w)\n  return\n}"
    )
    InferAxes().run(graph)
    assert "  axis c1 = 4\n" in str(graph) and "%y: f32[c0, c1] = linear" in str(graph)
    assert to_text(from_text(str(graph))) == str(graph)


def test_weights_of_a_text_have_no_values() -> None:
    weight = from_text(PLAIN, "net.irp").weights["fc.weight"]
    with pytest.raises(
        IrpruneError,
        match=r"the weight 'fc.weight' has no values \(net.irp\); the text form holds none",
    ):
        weight.load()


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("graph Net {", "net Net {"), 1, "'graph' expected at 'net Net {'"),
        (("= input\n  %mask", "= imput\n  %mask"), 2, "'(' expected"),
        (("f32[8] = buffer", "f32[8 = buffer"), 6, "'[' is not closed"),
        (("f32[8, 6]", "f32[8, 6.5]"), 4, "'6.5' is no size"),
        (("linear(%x", "linear(%y"), 8, "%y is not defined before it is read"),
        (("%mean: f32[8] = buffer", "%x: f32[8] = buffer"), 6, "two values are called %x"),
        (("%fc.bias: f32[8]", "%fc.weight: f32[8]"), 5, "two weights are called 'fc.weight'"),
        (("aliases=", "names="), 5, "a weight has no 'names'"),
        (("alpha=1}", "alpha=}"), 9, "a value expected at '}'"),
        (("alpha=1}", "alpha=1} 7"), 9, "'7' is too much"),
        (('", ok', ", ok"), 12, "a quote is not closed"),
        (("  return %odd, %b\n}\n", ""), 12, "it ends before the graph does"),
        (("%b\n}\n", "%b\n}\n\nmore\n"), 16, "something follows the end of the graph"),
        (("  return", "  axis c0 = 3\n  return"), 13, "an axis in a graph without axes"),
    ],
)
def test_a_text_that_cannot_be_read_names_the_line(
    change: tuple[str, str], line: int, says: str
) -> None:
    assert change[0] in PLAIN
    with pytest.raises(IrpruneError) as caught:
        from_text(PLAIN.replace(*change), "net.irp")
    assert caught.value.where == f"net.irp:{line}" and says in caught.value.what


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("c1 = 3", "c0 = 3"), "two axes are called c0"),
        (("keep=[0:4, 6]", "keep=[0:4, 9]"), "kept indices are ascending and below 8"),
        (("within=c0", "within=c9"), "no axis c9"),
        (("(2 (c2+1))", "2 c0"), "'2 c0' is no dimension"),
        (("keep=[0:4, 6]", "keep=[0-4]"), "'0-4' is no range of indices"),
    ],
)
def test_axes_that_cannot_be_read_say_so(change: tuple[str, str], says: str) -> None:
    assert change[0] in ANALYSED
    with pytest.raises(IrpruneError) as caught:
        from_text(ANALYSED.replace(*change))
    assert says in caught.value.what


def test_an_empty_text_is_no_graph() -> None:
    with pytest.raises(IrpruneError, match="it is empty"):
        from_text("\n# nothing\n")


_SYMS = st.sampled_from([symbol("s0"), symbol("s0") * 2 + 1])
_LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | _SYMS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(min_size=1), _LITERALS, max_size=3), st.text(), st.text(min_size=1))
def test_any_attribute_and_any_name_survive(
    attrs: dict[str, object], scope: str, name: str
) -> None:
    graph = Graph()
    node = graph.add("op", [], attrs, [(name, TensorType("f32", ()))], Origin(scope=scope))
    graph.outputs = [node.out]
    again = from_text(to_text(graph))
    assert again.nodes[0].attrs == attrs and again.nodes[0].out.name == name
    assert to_text(again) == to_text(graph)


def test_axes_of_one_graph_print_the_same_in_every_run() -> None:
    def made() -> str:
        axes, graph = Axes(), Graph()
        graph.axes = axes
        for k in range(5):
            w = graph.add_weight(Weight(f"w{k}", TensorType("f32", (4, 6)), lambda: None))
            w.axes = (axes.leaf(4), axes.product([axes.leaf(2), axes.frozen(3, "kernel size")]))
        return to_text(graph)

    assert made() == made()
    assert "%w4: f32[c8, (c9 3)]" in made()
