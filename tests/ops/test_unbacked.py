"""Sizes that depend on values: how many rows an expert gets, how many entries a mask keeps. They
freeze their own axes and no other."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune.analysis.cost import Costs
from irprune.driver.verify import verify
from irprune.emit.torch.module import source_of
from irprune.frontend.torch.capture import capture
from irprune.ir.axis import find
from irprune.ir.graph import Graph, TensorType
from irprune.ir.parse import from_text
from irprune.ir.size import symbol
from irprune.ir.symbols import backward_slice, defined_symbols, names_in
from irprune.ir.text import to_text
from irprune.passes.dead_code import DeadCode
from irprune.run.interpret import evaluate


class Experts(nn.Module):
    """Rows go to the expert that scores highest, sorted so that each expert's stand together; their
    numbers are read as ``.tolist()``."""

    def __init__(self, width: int = 8, hidden: int = 16, experts: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, hidden, width))
        self.down = nn.Parameter(torch.randn(experts, width, hidden))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        counts = F.one_hot(chosen, len(self.up)).sum(0).tolist()
        order = chosen.argsort(stable=True)
        pieces = x[order].split(counts)
        made = [
            F.linear(F.linear(p, self.up[i]).relu(), self.down[i]) for i, p in enumerate(pieces)
        ]
        return torch.zeros_like(x).index_add(0, order, torch.cat(made))


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.experts, self.last = nn.Linear(6, 8), Experts(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.experts(h))


class Masked(nn.Module):
    """A layer on the rows that a mask keeps, as many as the data say; a mean puts their number out
    of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        rows = (x[:, 0] > 0).nonzero()[:, 0]
        return self.last(self.second(h[rows]).relu().sum(0) / max(rows.shape[0], 1))


class Counted(nn.Module):
    """A number that only stands in a shape: what tells it has no other reader."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = (x > 0).nonzero().shape[0]
        return self.last(self.first(x).relu()) * torch.ones(n, 1).sum(0)


CASES = (Routed, Masked, Counted)


def built(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind().eval(), torch.randn(10, 6)


@pytest.mark.parametrize(
    ("kind", "method"), [*product(CASES, ("auto", "export")), (Routed, "trace"), (Counted, "trace")]
)
def test_the_graph_computes_what_forward_does_on_other_values(
    kind: type[nn.Module], method: str
) -> None:
    model, x = built(kind)
    graph = capture(model, (x,), method=method)
    assert any(names_in([v.type.shape for n in graph.nodes for v in n.outputs]))
    for seed in range(3):
        y = torch.randn(10, 6, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(evaluate(graph, [y])[0], model(y), atol=1e-6)


@pytest.mark.parametrize("kind", CASES)
def test_such_a_model_is_pruned_with_proof(kind: type[nn.Module]) -> None:
    model, x = built(kind)
    pruned = irprune.prune(model, (x,), ratio=0.5)
    assert pruned.report.proof is not None
    assert pruned.report.proof.passed
    assert pruned.report.params.after < 0.6 * pruned.report.params.before
    y = torch.randn(10, 6)
    assert pruned.module(y).shape == model(y).shape


def test_the_widths_of_experts_are_free_and_what_is_frozen_says_why() -> None:
    model, x = built(Routed)
    graph = irprune.capture(model, (x,))
    free = {
        (m.weight.name, m.dim) for g in irprune.groups(graph) if not g.frozen for m in g.members
    }
    assert {
        ("experts.up", 1),
        ("experts.up", 2),
        ("experts.down", 1),
        ("experts.down", 2),
        ("first.weight", 0),
    } <= free
    split = next(n for n in graph.nodes if n.op == "split")
    reasons = [str(find(v.axes[0]).reason) for v in split.outputs if v.axes]
    assert len(set(reasons)) == 3
    assert all(re.fullmatch(r"dynamic size [nu]\d+", reason) for reason in reasons)


@pytest.mark.parametrize("kind", CASES)
def test_text_cost_and_source_survive(kind: type[nn.Module], tmp_path: Path) -> None:
    model, x = built(kind)
    pruned = irprune.prune(model, (x,), ratio=0.5)
    graph = pruned.graph
    verify(graph)
    text = to_text(graph)
    assert to_text(from_text(text)) == text
    told = re.findall(r"\b([nu]\d+)\b", text)
    assert told
    assert Costs(graph).at({}).macs > Costs(graph).at(graph.kept).macs > 0
    assert any(f"{name} = " in source_of(pruned.module) for name in told)
    again = irprune.apply_plan(model, pruned.plan, (x,))
    assert torch.equal(again.module(x), pruned.module(x))
    pruned.save(tmp_path / "out")
    program = torch.export.load(str(tmp_path / "out" / "model.pt2")).module()
    assert torch.allclose(program(x), pruned.module(x), atol=1e-6)


def counting() -> Graph:
    """``count`` is read by nobody but gives the size of ``made``."""
    graph, u = Graph("counting"), symbol("u0")
    x = graph.add_input("x", TensorType("i64", ()))
    graph.add("item", [x], {"symbol": u}, [("count", TensorType("i64", ()))])
    made = graph.add(
        "full",
        [],
        {"size": [u], "fill_value": 1.0, "dtype": "f32"},
        [("made", TensorType("f32", (u,)))],
    )
    graph.outputs = [
        graph.add(
            "sum",
            [made.out],
            {"dim": None, "keepdim": False, "dtype": None},
            [("y", TensorType("f32", ()))],
        ).out
    ]
    return graph


def test_what_tells_a_size_is_alive_while_the_size_is_needed() -> None:
    graph = counting()
    assert [n.op for n in backward_slice(graph, graph.outputs)] == ["item", "full", "sum"]
    assert list(defined_symbols(graph.nodes[0])) == [("u0", 0, None)]
    assert list(defined_symbols(graph.nodes[1])) == [("u0", 0, 0)]
    assert not DeadCode().run(graph)
    assert evaluate(graph, [torch.tensor(5)])[0] == 5
    graph.outputs = [graph.inputs[0]]
    assert DeadCode().run(graph)
    assert not graph.nodes


def test_a_size_that_no_node_tells_is_one_clear_line() -> None:
    graph = counting()
    graph.nodes[0].attrs.clear()
    with pytest.raises(
        irprune.IrpruneError, match="takes a size u0 that depends on the values of tensors"
    ):
        evaluate(graph, [torch.tensor(5)])
