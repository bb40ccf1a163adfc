"""Language models: losses told by the distributions of the next token, sinks that are kept, whole
branches that go, budgets over parts. The decoder is made here, so that no library is needed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from language_models import token_ids
from torch import nn

import irprune
from irprune import api
from irprune.analysis.branches import branches_of
from irprune.analysis.cost import Costs
from irprune.api.option_kinds import read_amount
from irprune.base.tolerance import FLOAT32
from irprune.choice.plan import Plan
from irprune.choice.replay import choose_by_plan
from irprune.criteria.readings import key_of, readings_of
from irprune.criteria.sinks import sinks_of
from irprune.driver.pipelines import analyse, cut_graph
from irprune.emit.torch.module import emit_module
from irprune.errors import IrpruneError
from irprune.ir.selection import Selection
from irprune.passes.drop_blocks import DropBlocks
from irprune.run.logits import divergence, logits_of
from irprune.run.oracle import silenced
from irprune.validate.prove import prove_cut

VOCABULARY, WIDTH, HEADS, HIDDEN = 50, 24, 3, 40


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, n, WIDTH))


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (
            nn.Linear(WIDTH, HIDDEN, bias=False),
            nn.Linear(WIDTH, HIDDEN, bias=False),
        )
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention, self.mlp = _Attention(), _Gated()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class _Decoder(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(_Block() for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(
        self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = self.embed(ids)
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


@pytest.fixture
def model() -> _Decoder:
    torch.manual_seed(0)
    return _Decoder().eval()


def _ids(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    return token_ids(rows, length, seed, VOCABULARY)


def _text() -> list[tuple[torch.Tensor]]:
    return [(_ids(4, 16, seed),) for seed in range(1, 7)]


# -- logits ----------------------------------------------------------------------------------------


def test_logits_are_told_by_the_table_that_the_input_indexes(model: _Decoder) -> None:
    graph = analyse(irprune.capture(model, (_ids(),)))
    found = logits_of(graph)
    assert found is not None and found.output == 0 and found.mask is None
    groups = {g.axis: g.name for g in irprune.groups(graph)}
    assert [groups[x] for x in found.stream] == ["embed.weight:1"]
    picture = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    assert logits_of(analyse(irprune.capture(picture, (torch.randn(1, 3, 8, 8),)))) is None


def test_padding_counts_for_nothing(model: _Decoder) -> None:
    mask = torch.ones(2, 12, dtype=torch.int64)
    graph = analyse(irprune.capture(model, (_ids(), mask)))
    found = logits_of(graph)
    assert found is not None and found.mask == 1
    mask[0, :5] = 0
    weights = found.weights((_ids(), mask))
    ours, theirs = torch.randn(2, 12, VOCABULARY), torch.randn(2, 12, VOCABULARY)
    theirs[1], ours[1] = 0.0, 0.0
    ours[0, 5:], theirs[0, 5:] = 0.0, 0.0
    assert divergence(ours, theirs, weights) == (pytest.approx(0.0, abs=1e-6), 19)
    assert divergence(ours, theirs)[0] > 1.0


def test_divergence_is_that_of_torch() -> None:
    ours, theirs = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    total, count = divergence(ours, theirs)
    expected = nn.functional.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="sum"
    )
    assert count == 6 and total == pytest.approx(float(expected), rel=1e-5)


def test_the_defaults_for_a_language_model(model: _Decoder) -> None:
    pruned = irprune.prune(
        model, (_ids(),), budget={"params": {"layers*": 0.7}}, calibration=_text()
    )
    report = pruned.report
    assert report.proof.passed and report.repair.methods == ("static",)
    assert report.repair.measure == "divergence in nats"
    assert report.repair.after < report.repair.before
    assert any("the residual stream, stays whole" in note for note in report.notes)
    before, after = (
        sum(p.numel() for n, p in m.named_parameters() if n.startswith("layers"))
        for m in (model, pruned.module)
    )
    assert 0.65 * before < after <= 0.7 * before


def test_what_is_given_is_not_settled_otherwise(model: _Decoder) -> None:
    pruned = irprune.prune(
        model, (_ids(),), ratio=0.3, importance="magnitude", repair=False, calibration=_text()
    )
    assert pruned.report.repair is None
    assert pruned.options.values["importance"] == "magnitude"


# -- sinks -----------------------------------------------------------------------------------------


def _with_sink(model: _Decoder, unit: int = 7) -> _Decoder:
    """A hidden unit of the second MLP that is huge at token 0 alone, as the attention sinks of
    trained decoders are; by the norms of its weights it is the least of all."""
    made = copy.deepcopy(model)
    mlp = made.layers[1].mlp
    with torch.no_grad():
        made.embed.weight[0] = 0.0
        made.embed.weight[:, 0] = 0.0
        made.embed.weight[0, 0] = 300.0
        for part in ("q", "k", "v", "o"):
            getattr(made.layers[0].attention, part).weight.mul_(1e-3)
        made.layers[0].mlp.down.weight.mul_(1e-3)
        made.layers[1].attention.o.weight.mul_(1e-3)
        mlp.gate.weight[unit], mlp.up.weight[unit] = 0.0, 0.0
        mlp.gate.weight[unit, 0], mlp.up.weight[unit, 0] = 12.0, 12.0
        mlp.down.weight[:, unit] *= 0.05
    return made


def _begun() -> list[tuple[torch.Tensor]]:
    """Texts whose first token is 0 and no other."""
    out = []
    for seed in range(1, 7):
        ids = _ids(4, 40, seed).clamp(min=1)
        ids[:, 0] = 0
        out.append((ids,))
    return out


def test_a_planted_sink_is_found_kept_and_left_alone(model: _Decoder) -> None:
    sunk = _with_sink(model)
    graph = analyse(irprune.capture(sunk, (_ids(),)))
    from irprune.analysis.layers import layers

    down = next(x for x in layers(graph) if x.weight.name == "layers.1.mlp.down.weight")
    reading = readings_of(_begun(), graph, "test").of([down], products=True)[key_of(down)]
    assert sinks_of(reading).nonzero().tolist() == [[0, 7]]
    pruned = irprune.prune(sunk, (_ids(),), ratio=0.5, calibration=_begun())
    assert 7 in pruned.kept["layers.1.mlp.down.weight"][1]
    at = pruned.kept["layers.1.mlp.down.weight"][1].index(7)
    mine = pruned.module.get_parameter("layers.1.mlp.down.weight")[:, at]
    assert torch.equal(mine, sunk.layers[1].mlp.down.weight[:, 7]), "the refit changed the sink"
    assert any("massive activations" in note for note in pruned.report.repair.notes)


def test_nothing_is_a_sink_in_a_plain_model(model: _Decoder) -> None:
    from irprune.analysis.layers import layers

    graph = analyse(irprune.capture(model, (_ids(),)))
    many = list(layers(graph))
    read = readings_of(_text(), graph, "test").of(many, products=True)
    assert not any(bool(sinks_of(reading).any()) for reading in read.values())


# -- branches --------------------------------------------------------------------------------------


def test_branches_are_attention_and_mlp(model: _Decoder) -> None:
    graph = analyse(irprune.capture(model, (_ids(),)))
    names = [b.name for b in branches_of(graph)]
    assert names == [f"layers.{i}.{part}" for i in range(3) for part in ("attention", "mlp")]
    assert all(b.leaf is not None for b in branches_of(graph))


def test_branches_of_a_convolutional_net_and_none_of_a_plain_one() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.b(torch.relu(self.a(x))))

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Residual(), Residual(), Residual()).eval()
    graph = analyse(irprune.capture(net, (torch.randn(1, 3, 8, 8),)))
    assert [b.name for b in branches_of(graph)] == ["1.b", "2.b", "3.b"]
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    assert branches_of(analyse(irprune.capture(plain, (torch.randn(1, 4),)))) == []


def test_a_branch_that_is_read_from_outside_is_none() -> None:
    class Leaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = torch.relu(self.a(x))
            y = x + h
            return y + torch.relu(self.b(y)), h

    graph = analyse(irprune.capture(Leaks().eval(), (torch.randn(2, 4),)))
    assert branches_of(graph) == []  # the first leaks, and one alone repeats nothing


def _dropped(model: _Decoder):
    graph = analyse(irprune.capture(model, (_ids(),)))
    branch = next(b for b in branches_of(graph) if b.name == "layers.1.attention")
    graph.kept = Selection({}, dropped={branch.join.out.name: branch.stream})
    return graph


def test_a_dropped_branch_is_proven_against_the_silenced_original(model: _Decoder) -> None:
    graph = _dropped(model)
    cut = cut_graph(graph)
    module = emit_module(cut)
    assert not [n for n, _ in module.named_parameters() if n.startswith("layers.1.attention")]
    result = prove_cut(graph, cut, lambda: module, lambda: torch.device("cpu"))
    assert result is not None and result.passed
    with torch.no_grad():
        expected = copy.deepcopy(model)
        expected.layers[1].attention.o.weight.zero_()
        assert torch.allclose(module(_ids()), expected(_ids()), atol=1e-5)
        (silent,) = silenced(graph, graph.kept, (_ids(),))
        assert torch.allclose(silent, expected(_ids()), atol=1e-5)
    after = Costs(graph).at(graph.kept).params
    assert after == sum(p.numel() for p in module.parameters())


def test_the_pass_drops_by_name(model: _Decoder) -> None:
    graph = analyse(irprune.capture(model, (_ids(),)))
    result = DropBlocks(("layers.[12].mlp",)).run(graph)
    assert result.changed and len(result.notes) == 2 and len(graph.kept.dropped) == 2
    cut = cut_graph(graph)
    assert not [n for n in cut.weights if ".mlp." in n and not n.startswith("layers.0")]
    assert not DropBlocks(("layers.1.mlp",)).run(graph).changed
    with pytest.raises(IrpruneError, match="matches no residual branch"):
        DropBlocks(("layers.9.*",)).run(graph)


def test_a_wrong_drop_fails_the_proof(model: _Decoder) -> None:
    """The operand that stays is mistaken for the branch."""
    graph = _dropped(model)
    cut = cut_graph(graph)
    (name,) = graph.kept.dropped
    other = next(b for b in branches_of(graph) if b.name == "layers.2.mlp")
    graph.kept = Selection({}, dropped={other.join.out.name: other.stream})
    result = prove_cut(graph, cut, lambda: emit_module(cut), lambda: torch.device("cpu"))
    assert result is None or not result.passed, name


def test_useless_branches_go_first_and_the_instance_skips_them(model: _Decoder) -> None:
    with torch.no_grad():
        model.layers[1].attention.o.weight.mul_(1e-4)
        model.layers[2].mlp.down.weight.mul_(1e-4)
    pruned = irprune.prune(
        model, (_ids(),), budget={"params": {"layers*": 0.7}}, calibration=_text()
    )
    gone = [
        b.name for b in branches_of(pruned.graph) if b.join.out.name in pruned.graph.kept.dropped
    ]
    assert "layers.1.attention" in gone
    mine = pruned.apply_to(copy.deepcopy(model))
    with torch.no_grad():
        assert torch.allclose(mine(_ids()), pruned.module(_ids()), atol=FLOAT32)
    kept = irprune.prune(
        model,
        (_ids(),),
        budget={"params": {"layers*": 0.7}},
        calibration=_text(),
        drop_blocks=False,
    )
    assert not kept.graph.kept.dropped


def test_a_plan_remembers_what_was_dropped(model: _Decoder, tmp_path: Path) -> None:
    graph = _dropped(model)
    plan = Plan.from_graph(graph)
    plan.save(tmp_path / "plan.json")
    again = analyse(irprune.capture(model, (_ids(),)))
    choose_by_plan(Plan.load(tmp_path / "plan.json"), again)
    assert again.kept.same_as(Selection({}, dropped=graph.kept.dropped))
    other = analyse(irprune.capture(_Decoder(4).eval(), (_ids(),)))
    with pytest.raises(IrpruneError, match="leaves whole branches out"):
        choose_by_plan(plan, other)
    data = plan.as_json()
    del data["dropped"]
    assert Plan.from_json(json.loads(json.dumps(data))).dropped == {}


# -- budgets over parts ----------------------------------------------------------------------------


def test_a_budget_over_a_part(model: _Decoder) -> None:
    pruned = irprune.prune(model, (_ids(),), budget={"params": {"layers.0*": 0.5}}, keep=["embed*"])

    def count(net: nn.Module, prefix: str) -> int:
        return sum(p.numel() for n, p in net.named_parameters() if n.startswith(prefix))

    assert count(pruned.module, "layers.0") <= 0.5 * count(model, "layers.0")
    with pytest.raises(IrpruneError, match="matches no weight"):
        irprune.prune(model, (_ids(),), budget={"params": {"nothing*": 0.5}})
    with pytest.raises(IrpruneError, match="no budget on 'macs of layers"):
        irprune.prune(model, (_ids(),), budget={"macs": {"layers*": 0.5}})


def test_the_command_line_spells_it() -> None:
    assert read_amount("params", "layers*=0.8,head*=50%") == {"layers*": 0.8, "head*": 0.5}
    assert api.Options(budget={"params": "layers*=0.8"}).budget == {"params of layers*": 0.8}
    with pytest.raises(IrpruneError, match="a share"):
        read_amount("params", "layers*=much")
