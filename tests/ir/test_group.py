"""Groups are found once, and again where axes or weights have changed."""

import gc
import weakref

from irprune.ir.axis import Axes
from irprune.ir.graph import Graph, TensorType, Weight
from irprune.ir.group import groups_of


def analysed() -> Graph:
    graph = Graph()
    graph.axes = Axes()
    for name in ("a", "b"):
        graph.add_weight(Weight(name, TensorType("f32", (6, 4)), lambda: None))
        graph.axes.of(graph.weights[name])
    return graph


def names(graph: Graph) -> list[list[str]]:
    return [[str(m) for m in g.members] for g in groups_of(graph)]


def test_groups_are_found_once() -> None:
    graph = analysed()
    first, second = groups_of(graph), groups_of(graph)
    assert first is not second  # a caller's list is its own
    assert [g is h for g, h in zip(first, second, strict=True)] == [True] * 4
    assert names(graph.copy()) == names(graph)
    assert groups_of(graph.copy())[0].members[0].weight is not graph.weights["a"]


def test_what_changes_is_seen() -> None:
    graph = analysed()
    a, b = graph.weights.values()
    assert names(graph) == [["a:0"], ["a:1"], ["b:0"], ["b:1"]]
    assert graph.axes is not None
    assert a.axes is not None
    assert b.axes is not None
    graph.axes.unify(a.axes[0], b.axes[0])
    assert names(graph) == [["a:0", "b:0"], ["a:1"], ["b:1"]]
    graph.axes.unify(a.axes[1], graph.axes.product([graph.axes.leaf(2), graph.axes.leaf(2)]))
    assert names(graph) == [["a:0", "b:0"], ["a:1"], ["a:1/1"], ["b:1"]]
    b.axes = a.axes
    assert names(graph) == [["a:0", "b:0"], ["a:1", "b:1"], ["a:1/1", "b:1/1"]]
    del graph.weights["a"]
    assert names(graph) == [["b:0"], ["b:1"], ["b:1/1"]]
    graph.axes.freeze(b.axes[0], "so it is said")
    assert [bool(g.frozen) for g in groups_of(graph)] == [True, False, False]


def test_a_graph_whose_groups_were_found_goes_with_its_last_reader() -> None:
    graph = analysed()
    graph.weights["a"].load = lambda whole=graph: whole  # as nodes that read it do
    assert groups_of(graph)
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None
