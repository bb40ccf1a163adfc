"""The graph's own bookkeeping, and the verifier: each fault planted is found where it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from irprune.driver.verify import InvalidGraph, faults, verify
from irprune.ir.axis import Axes
from irprune.ir.graph import Graph, GraphError, TensorType, Value, Weight
from irprune.ir.parse import from_text
from irprune.ir.selection import Selection
from irprune.passes.infer_axes import InferAxes

NET = """\
graph Net {
  %x: f32[2, 6] = input
  %up: f32[8, 6] = parameter
  %down: f32[3, 8] = parameter

  %h: f32[2, 8] = linear(%x, %up)  # net.py:7 in up
  %r: f32[2, 8] = relu(%h)
  %s: f32[2, 8] = add(%r, %r)
  %y: f32[2, 3] = linear(%s, %down)
  return %y
}
"""


def net() -> Graph:
    return from_text(NET)


def f32(*shape: int) -> TensorType:
    return TensorType("f32", shape)


# -- use-def ---------------------------------------------------------------------------------------


def test_users_count_operand_slots() -> None:
    graph = net()
    linear, relu, add, _ = graph.nodes
    assert relu.out.users == {add: 2} and linear.out.users == {relu: 1}
    add.set_input(1, linear.out)
    assert relu.out.users == {add: 1} and linear.out.users == {relu: 1, add: 1}
    add.set_input(0, None)
    assert relu.out.users == {} and not add.has(0) and add.has(1)
    with pytest.raises(GraphError, match="has no operand 0"):
        add.operand(0)


def test_replace_reaches_every_reader_and_the_results() -> None:
    graph = net()
    relu, add = graph.nodes[1:3]
    graph.replace(relu.out, graph.nodes[0].out)
    assert add.inputs == [graph.nodes[0].out] * 2 and relu.out.users == {}
    graph.replace(graph.outputs[0], add.out)
    assert graph.outputs == [add.out]


def test_what_is_used_cannot_be_removed() -> None:
    graph = net()
    with pytest.raises(GraphError, match="still used"):
        graph.remove(graph.nodes[1])
    with pytest.raises(GraphError, match="still used"):
        graph.remove(graph.nodes[3])
    graph.replace(graph.nodes[1].out, graph.nodes[0].out)
    relu = graph.nodes[1]
    graph.remove(relu)
    assert (
        relu not in graph.nodes
        and relu.graph is None
        and graph.nodes[0].out.users == {graph.nodes[1]: 2}
    )
    verify(graph)


def test_remove_all_takes_nodes_that_read_each_other() -> None:
    graph = net()
    graph.outputs = [graph.nodes[0].out]
    graph.remove_all(graph.nodes[1:])
    assert len(graph.nodes) == 1 and graph.weights["down"].users == {}
    with pytest.raises(GraphError, match="still used"):
        graph.remove_all(graph.nodes)


def test_a_node_is_put_before_another() -> None:
    graph = net()
    made = graph.add("relu", [graph.inputs[0]], {}, [("early", f32(2, 6))], before=graph.nodes[1])
    assert graph.nodes.index(made) == 1 and made.graph is graph and made.out.producer is made


def test_two_weights_of_one_name_are_refused() -> None:
    graph = net()
    with pytest.raises(GraphError, match="two weights are called 'up'"):
        graph.add_weight(Weight("up", f32(1), lambda: None))


def test_a_copy_shares_nothing_that_an_edit_changes() -> None:
    graph = net()
    InferAxes().run(graph)
    twin = graph.copy()
    assert str(twin) == str(graph) and twin.nodes[0] is not graph.nodes[0]
    before = str(graph)
    twin.nodes[0].attrs["k"] = 1
    twin.nodes[0].origin.target = "other"
    twin.replace(twin.nodes[1].out, twin.nodes[0].out)
    twin.weights["up"].type = f32(4, 6)
    del twin.weights["down"]
    assert str(graph) == before and graph.nodes[0].origin.target == ""


# -- the verifier ----------------------------------------------------------------------------------


def test_a_sound_graph_has_no_faults() -> None:
    graph = net()
    assert faults(graph) == []
    InferAxes().run(graph)
    verify(graph, deep=True)


def order(graph: Graph) -> None:
    graph.nodes[1], graph.nodes[2] = graph.nodes[2], graph.nodes[1]


def stranger(graph: Graph) -> None:
    graph.nodes[1].set_input(0, Value("ghost", f32(2, 8)))


def same_name(graph: Graph) -> None:
    graph.nodes[2].out.name = "r"


def no_name(graph: Graph) -> None:
    graph.nodes[2].out.name = ""


def miscounted(graph: Graph) -> None:
    graph.nodes[0].out.users.clear()


def past_the_back(graph: Graph) -> None:
    graph.nodes[2].inputs[1] = graph.nodes[0].out


def adopted(graph: Graph) -> None:
    graph.nodes[1].graph = None


def two_parents(graph: Graph) -> None:
    graph.nodes[2].out.producer = graph.nodes[1]


def renamed_weight(graph: Graph) -> None:
    graph.weights["up"].name = "upper"


def foreign_result(graph: Graph) -> None:
    graph.outputs = [Value("ghost", f32(2, 3))]


def wrong_width(graph: Graph) -> None:
    graph.weights["down"].type = f32(3, 7)


def wrong_result(graph: Graph) -> None:
    graph.nodes[3].out.type = f32(2, 4)


def made_input(graph: Graph) -> None:
    graph.inputs[0].producer = graph.nodes[0]


@pytest.mark.parametrize(
    ("plant", "about", "says"),
    [
        (order, "s", "%r is read before it is made"),
        (stranger, "r", "%ghost is not of this graph"),
        (same_name, "r", "two values have this name"),
        (no_name, "", "a value without a name"),
        (miscounted, "h", "0 uses are recorded, 1 found"),
        (past_the_back, "h", "1 uses are recorded, 2 found"),
        (adopted, "r", "the node belongs to another graph"),
        (two_parents, "s", "result 0 says that another node makes it"),
        (renamed_weight, "upper", "the weight stands under the name 'up'"),
        (foreign_result, None, "the graph returns %ghost, which is not of this graph"),
        (wrong_width, "y", "sizes 8 and 7 meet"),
        (wrong_result, "y", "the type is f32[2, 4], the rule of linear gives [2, 3]"),
        (made_input, "x", "an input or a weight is made by linear"),
    ],
)
def test_a_planted_fault_is_found_where_it_is(
    plant: Callable[[Graph], None], about: str | None, says: str
) -> None:
    graph = net()
    plant(graph)
    place, text = faults(graph)[0]
    assert text == says
    name = place if place is None else place.name if isinstance(place, Value) else place.out.name
    assert name == about
    with pytest.raises(InvalidGraph):
        verify(graph)


def test_the_error_shows_the_lines_with_the_message_in_place() -> None:
    graph = net()
    past_the_back(graph)
    graph.nodes[0].origin.source = "/home/me/net.py:7"
    with pytest.raises(InvalidGraph) as caught:
        verify(graph)
    assert caught.value.first == "%h: 1 uses are recorded, 2 found"
    assert (
        str(caught.value)
        == """\
%h: 1 uses are recorded, 2 found (and 1 more)
  ...
  %up: f32[8, 6] = parameter
  %down: f32[3, 8] = parameter

  %h: f32[2, 8] = linear(%x, %up)  # net.py:7 in up
  # ^^^ 1 uses are recorded, 2 found
  %r: f32[2, 8] = relu(%h)
  # ^^^ 2 uses are recorded, 1 found
  %s: f32[2, 8] = add(%r, %h)
  %y: f32[2, 3] = linear(%s, %down)
  return %y"""
    )
    assert from_text(str(graph)).nodes[0].out.name == "h", "marks are comments"


def test_axes_and_choice_are_held_against_types() -> None:
    graph = net()
    graph.kept = Selection({})
    assert faults(graph)[0][1] == "there is a choice or a score, but no axes"
    InferAxes().run(graph)
    width = graph.weights["up"].axes[0]  # type: ignore[index]
    graph.kept = Selection({width: [0, 1]})
    assert faults(graph) == []
    graph.weights["up"].axes = (width,)
    assert faults(graph)[0][1] == "1 axes for 2 dimensions"
    InferAxes().run(graph)
    graph.nodes[1].out.type = f32(2, 9)
    assert faults(graph)[0][1] == "dimension 1 has size 9, its axis 8"


def test_a_choice_on_what_may_not_change_is_a_fault() -> None:
    graph = net()
    InferAxes().run(graph)
    classes = graph.weights["down"].axes[0]  # type: ignore[index]
    graph.kept = Selection({classes: [0, 1]})
    assert (
        faults(graph)[0][1]
        == "something is dropped of an axis that may not change: graph output 'y'"
    )
    graph.kept = Selection({Axes().leaf(4): [0]})
    assert "which is no axis of this graph" in faults(graph)[0][1]


def test_the_deep_check_asks_torch() -> None:
    graph = net()
    graph.nodes[1].out.type = TensorType("f16", (2, 8))
    verify(graph)
    with pytest.raises(InvalidGraph, match=r"%r: the type is f16\[2, 8\], torch gives f32\[2, 8\]"):
        verify(graph, deep=True)
    graph = from_text(
        "graph g {\n  %x: f32[n, 6] = input\n\n  %y: f32[n, 7] = relu(%x)\n  return %y\n}"
    )
    with pytest.raises(InvalidGraph, match=r"the type is f32\[n, 7\], torch gives f32\[\d+, 6\]"):
        verify(graph, deep=True)
    graph = from_text(
        "graph g {\n  %x: f32[2, 3] = input\n\n  %y: f32[4, 2] = conv(%x, %x) {groups=1}\n  return %y\n}"
    )
    graph.nodes[0].origin.dialect = "aten"
    graph.nodes[0].origin.target = "aten.mm.default"
    graph.nodes[0].origin.layout = (("self", 0), ("mat2", 1))
    graph.nodes[0].op = "matmul_like"
    with pytest.raises(InvalidGraph, match="torch refuses it"):
        verify(graph, deep=True)
