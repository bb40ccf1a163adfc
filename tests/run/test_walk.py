"""A graph over calibration data part by part: the sums of one run, with a part of the weights."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

import irprune
from irprune.analysis.layers import layers
from irprune.base.garbage import without_collection
from irprune.base.memory import within_memory
from irprune.criteria.readings import Readings, has_products
from irprune.run import spill as spill_module
from irprune.run import statistics
from irprune.run.calibration import Calibration
from irprune.run.spill import spill
from irprune.run.walk import Walk


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4)
    )  # fmt: skip


def analysed():
    graph = irprune.capture(network(), (torch.randn(2, 8),))
    irprune.groups(graph)
    return graph, [torch.randn(4, 8, generator=torch.Generator().manual_seed(i)) for i in range(5)]


@pytest.mark.parametrize("memory", [1 << 30, 3000, 1])
def test_readings_do_not_depend_on_memory(memory: int) -> None:
    graph, data = analysed()
    whole = Readings(graph, Calibration(data, graph), 1 << 30)
    small = Readings(graph, Calibration(data, graph), memory)
    every = {x.weight.name: [x] for x in layers(graph)}
    expected = whole.of([x for (x,) in every.values()], products=True)
    portions = 0
    for some in small.portions(every):
        portions += 1
        read = small.of([every[name][0] for name in some], products=True)
        for key, reading in read.items():
            assert torch.equal(reading.covariance, expected[key].covariance)
            assert torch.equal(reading.mean, expected[key].mean)
    assert portions == (1 if memory == 1 << 30 else len(every) if memory == 1 else portions)
    assert memory == 1 << 30 or portions > 1


def test_each_weight_is_read_once_and_each_node_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = analysed()
    reads: list[str] = []
    for weight in graph.weights.values():

        def load(name: str = weight.name, own=weight.load):
            reads.append(name)
            return own()

        weight.load = load
    ran: list[str] = []
    advance = statistics.Tape.advance

    def counted(self, env, symbols, start, stop, hook=None) -> None:
        ran.extend(n.out.name for n in self.graph.nodes[start:stop])
        advance(self, env, symbols, start, stop, hook)

    monkeypatch.setattr(statistics.Tape, "advance", counted)
    readings = Readings(graph, Calibration(data, graph), 1)
    readings.data.sizes()  # one call tells how large chunks may be
    reads.clear()
    ran.clear()
    every = {x.weight.name: [x] for x in layers(graph)}
    for some in readings.portions(every):
        readings.of([every[name][0] for name in some], products=True)
    assert sorted(set(reads)) == sorted(reads), "a weight is read again"
    chunks = readings.data.chunk_count()
    assert all(ran.count(name) == chunks for name in ran), "a node is run again"


def test_what_fits_stays_for_the_next_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = analysed()
    gathered: list[str] = []
    total = Walk.total

    def counted(self, nodes, *rest):
        gathered.extend(n.out.name for n in nodes)
        return total(self, nodes, *rest)

    monkeypatch.setattr(Walk, "total", counted)
    every = {x.weight.name: [x] for x in layers(graph)}
    readings = Readings(graph, Calibration(data, graph), 3500)  # of 6656 with inverses
    for expected in (4, 2):  # the first two of the four stay, without their inverses
        gathered.clear()
        for some in readings.portions(every):
            for name in some:
                (made,) = readings.of([every[name][0]], products=True).values()
                made.inverse(1e-2)
                assert sum(r.gram.bytes for r in readings._held.values()) <= 3500
        assert len(gathered) == expected


def test_layers_behind_the_walk_begin_it_anew() -> None:
    graph, data = analysed()
    every = list(layers(graph))
    expected = Readings(graph, Calibration(data, graph)).of(every, products=True)
    readings = Readings(graph, Calibration(data, graph), 1)
    for _ in readings.portions({x.weight.name: [x] for x in reversed(every)}):
        pass
    for layer in reversed(every):
        ((key, made),) = readings.of([layer], products=True).items()
        assert torch.equal(made.covariance, expected[key].covariance)


def test_parts_hold_no_more_weights_than_asked() -> None:
    graph, data = analysed()
    nodes = [x.node for x in layers(graph)]
    walk = Walk(graph, Calibration(data, graph), 4 * (16 * 16 + 16 + 8 * 16 + 16))
    assert [len(part) for part in walk.parts(nodes)] == [2, 2]
    assert [len(p) for p in Walk(graph, Calibration(data, graph), 1).parts(nodes)] == [1, 1, 1, 1]


def test_a_wide_layer_has_a_gram_matrix_where_memory_for_it_is_asked() -> None:
    graph = irprune.capture(nn.Linear(6200, 2), (torch.randn(1, 6200),))
    irprune.groups(graph)
    (layer,) = layers(graph)
    assert not has_products(layer)
    with within_memory(10**9):
        assert has_products(layer)
    with within_memory(10**8):
        assert not has_products(layer)


def test_what_is_kept_aside_is_the_same_in_a_file() -> None:
    for tensor in (
        torch.randn(3, 5),
        torch.randn(4).bfloat16(),
        torch.zeros(0, 3),
        torch.tensor(2),
    ):
        with within_memory(1):
            load = spill(tensor)
        assert torch.equal(load(), tensor) and load().dtype == tensor.dtype
        load().add_(1)
        assert torch.equal(load(), tensor)


def test_what_is_held_at_once_shares_the_memory_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, data = analysed()
    monkeypatch.setattr(spill_module, "_held", 0)  # models of other tests may still live
    with within_memory(6 * 4000):
        assert Readings(graph, Calibration(data, graph)).memory == 4000
        held = [spill(torch.zeros(500)) for _ in range(4)]
    assert [type(h).__name__ for h in held] == ["_InMemory", "_InMemory", "_InFile", "_InFile"]
    del held
    assert Readings(graph, Calibration(data, graph)).memory == 1 << 30


def test_sums_are_freed_with_the_readings_not_by_a_search_for_cycles() -> None:
    """A model's Gram matrices are hundreds of megabytes, of which the collector knows nothing."""
    graph, data = analysed()
    readings = Readings(graph, Calibration(data, graph))
    readings.of(list(layers(graph)), products=True)
    sums = [weakref.ref(rows.gram) for rows in readings._held.values()]
    with without_collection():
        del readings
        assert sums and not any(one() for one in sums)
