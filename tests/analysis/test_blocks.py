"""Own choice per block where the blocks are another dimension of a weight: inputs of grouped
convolutions, experts, heads of einsum."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from block_models import (
    GROUPS,
    IMAGE,
    INNER,
    Between,
    Doubled,
    Experts,
    Heads,
    Pairs,
    Plain,
    ResNeXt,
    Shuffle,
    computed_weight,
    one_dimensional,
    regrouped,
    transposed,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import chosen, named, proven
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune import api
from irprune.analysis.blocks import blocks_of
from irprune.api.repair import output_error, repair
from irprune.choice.plan import Plan
from irprune.choice.replay import choose_by_plan
from irprune.criteria import criteria
from irprune.criteria.places import place_of
from irprune.emit.torch.module import emit_module
from irprune.errors import IrpruneError
from irprune.ir.axis import Axes
from irprune.ir.graph import Graph, TensorType, Weight
from irprune.ir.group import groups_of
from irprune.ir.selection import Selection
from irprune.ir.size import probe_of
from irprune.passes.score import Score
from irprune.run.calibration import Calibration
from irprune.run.error import relative_error
from irprune.run.oracle import silenced
from irprune.run.take import kept_indices, take

DATA = (
    "contribution",
    "fisher",
    "flap",
    "osscar",
    "reconstruction",
    "taylor",
    "taylor_squared",
    "wanda",
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def cuts(graph: Graph) -> dict[str, list[Any]]:
    """What is left of every weight."""
    return {w.name: w.load().tolist() for w in api.cut_graph(graph).weights.values()}


def within(graph: Graph) -> dict[str, str]:
    """Whatever is chosen per block, and in which blocks."""
    names = {g.axis: g.name for g in groups_of(graph)}
    return {names[x]: names[h] for x, h in blocks_of(graph).items()}


def shapes(graph: Graph) -> dict[str, tuple[Any, ...]]:
    return {w.name: w.shape for w in api.cut_graph(graph).weights.values()}


# -- where it is legal -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "example", "options", "name"),
    [
        (ResNeXt, IMAGE, {}, "conv2.weight:1"),
        (ResNeXt, IMAGE, {}, "conv2.weight:0/1"),
        (transposed, IMAGE, {}, "grouped.weight:0/1"),
        (transposed, IMAGE, {}, "grouped.weight:1"),
        (one_dimensional, IMAGE[..., 0], {}, "grouped.weight:1"),
        (computed_weight, IMAGE, {}, "enter.weight:0/1"),
        (regrouped, IMAGE, {}, "grouped.2.weight:0/1"),
        (regrouped, IMAGE, {}, "grouped.0.weight:1"),
        (Shuffle, IMAGE, {}, "conv1.weight:1"),
        (Shuffle, IMAGE, {}, "conv2.weight:1"),
        (Experts, torch.randn(5, 3), {"prefer": "head_dim"}, "up:2"),
        (Heads, torch.randn(5, 3), {"prefer": "head_dim"}, "into:2"),
    ],
)
def test_each_block_keeps_indices_of_its_own(
    make: Any, example: Tensor, options: dict[str, Any], name: str
) -> None:
    graph = proven(make(), example, **options)
    assert graph.kept is not None
    rows = graph.kept.choice[named(graph, name)]
    assert rows.ndim == 2 and len({tuple(r) for r in rows.tolist()}) > 1
    torch.manual_seed(0)
    same = proven(make(), example, per_block=False, **options)
    assert same.kept is not None and not same.kept.within
    assert shapes(same) == shapes(graph)


def test_groups_and_what_is_within_them_may_both_be_cut() -> None:
    for make in (ResNeXt, transposed):
        model = make().double().eval()
        graph = api.analyse(api.capture(model, (IMAGE.double(),)))
        blocks = blocks_of(graph)
        rng = np.random.default_rng(0)
        rows = {
            x: np.sort(np.stack([rng.permutation(probe_of(x.size))[:2] for _ in range(GROUPS)]))
            for x in blocks
        }
        graph.kept = Selection({**rows, **{h: [0, 2] for h in blocks.values()}}, blocks)
        with torch.no_grad():
            small = emit_module(api.cut_graph(graph))(IMAGE.double())
        assert relative_error([small], silenced(graph, graph.kept, [IMAGE.double()])) < 1e-12
        assert 2 * 2 in {s[0] for s in shapes(graph).values()}
        for again in (model, Doubled(model)):
            other = api.analyse(api.capture(again.eval(), (IMAGE.double(),)))
            choose_by_plan(Plan.from_graph(graph), other)
            assert cuts(other) == cuts(graph)


@pytest.mark.parametrize("inner", [4, 6, 8, 16])
def test_a_shuffle_leaves_what_is_legal(inner: int) -> None:
    """Channels of a group that are dealt out to several groups are no block of any of them, unless
    whole groups of them are."""
    assert "stem.weight:0" in within(proven(Shuffle(inner), IMAGE)).values()


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.flip(1),
        lambda y: y.roll(1, 1),
        lambda y: y.sort(1).values,
        lambda y: y.softmax(1),
        lambda y: y.cumsum(1),
        lambda y: F.layer_norm(y.movedim(1, -1), (GROUPS,)).movedim(-1, 1),
        lambda y: y - y.mean(1, keepdim=True),
        lambda y: F.normalize(y, dim=1),
        lambda y: y + y.amax(1, keepdim=True),
    ],
    ids=["flip", "roll", "sort", "softmax", "cumsum", "layer_norm", "mean", "normalize", "amax"],
)
def test_blocks_that_meet_or_change_places_keep_the_same(change: Any) -> None:
    for prefer in ("heads", "both"):
        graph = proven(Between(change), IMAGE, prefer=prefer)
        assert named(graph, "second.weight:1") not in blocks_of(graph)
        assert named(graph, "stem.weight:0/1") in blocks_of(graph)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.softmax(2),
        lambda y: y.cumsum(2),
        lambda y: F.layer_norm(y.movedim(2, -1), (INNER,)).movedim(-1, 2),
        lambda y: y.softmax(3),
        lambda y: y.transpose(1, 2).contiguous().transpose(1, 2) * 2,
    ],
    ids=["softmax", "cumsum", "layer_norm", "places", "transpose"],
)
def test_what_is_done_within_blocks_is_done_to_each(change: Any) -> None:
    graph = proven(Between(change), IMAGE)
    assert named(graph, "second.weight:1") in blocks_of(graph)


def test_of_two_that_always_stand_together_the_first_is_the_outer_one() -> None:
    for model in (Heads(), Experts()):
        graph = api.analyse(api.capture(model.eval(), (torch.randn(5, 3),)))
        blocks = blocks_of(graph)
        assert blocks and not any(h in blocks for h in blocks.values())
    assert within(api.analyse(api.capture(Heads().eval(), (torch.randn(5, 3),)))) == {
        "into:2": "into:1"
    }


class Merged(nn.Module):
    """Attention over batch and heads as one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 3 * GROUPS * INNER), nn.Linear(GROUPS * INNER, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            y.view(b, t, GROUPS, INNER).transpose(1, 2).reshape(b * GROUPS, t, INNER)
            for y in self.qkv(x).chunk(3, -1)
        )
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.out(y.view(b, GROUPS, t, INNER).transpose(1, 2).reshape(b, t, -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dynamic", [False, True])
def test_blocks_in_a_dimension_of_unknown_size(dynamic: bool) -> None:
    shapes = {"x": {0: torch.export.Dim("batch")}} if dynamic else None
    pruned = irprune.prune(
        Merged(), (torch.randn(2, 5, 12),), dynamic_shapes=shapes, prefer="head_dim"
    )
    assert pruned.report.proof is not None and pruned.report.proof.passed
    assert pruned.graph.kept is not None and bool(pruned.graph.kept.within) != dynamic


@pytest.mark.parametrize("side_by_side", [True, False])
def test_heads_that_meet_in_pairs_keep_the_same(side_by_side: bool) -> None:
    graph = proven(Pairs(side_by_side), torch.randn(5, 3), prefer="head_dim")
    assert (
        graph.kept is not None
        and not graph.kept.within
        and graph.kept.changes(named(graph, "out:1"))
    )


# -- what each criterion sees ----------------------------------------------------------------------


class Planted(nn.Module):
    """Half of the inputs of each group count for nothing, others in each group."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        wide = GROUPS * INNER
        self.enter, self.norm = nn.Conv2d(3, wide, 1), nn.BatchNorm2d(wide)
        self.grouped = (nn.ConvTranspose2d if transposed else nn.Conv2d)(
            wide, wide, 3, groups=GROUPS
        )
        self.leave = nn.Conv2d(wide, 4, 1)
        self.strong = np.sort(
            np.stack(
                [np.random.default_rng(g).permutation(INNER)[: INNER // 2] for g in range(GROUPS)]
            )
        )
        there = torch.zeros(GROUPS, INNER)
        there.scatter_(1, torch.from_numpy(self.strong), 1.0)
        with torch.no_grad():
            flat = there.flatten().clamp(min=1e-3)
            self.enter.weight.mul_(flat[:, None, None, None])
            self.norm.weight.mul_(flat)
            weight = self.grouped.weight
            if transposed:
                weight.mul_(flat[:, None, None, None])
            else:
                weight.mul_(there.clamp(min=1e-3).repeat_interleave(INNER, 0)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.grouped(F.relu(self.norm(self.enter(x))))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", sorted(set(criteria()) - {"random", "uniform"}))
def test_what_is_unimportant_in_each_group_goes(name: str, transposed: bool) -> None:
    model = Planted(transposed)
    data = torch.randn(64, 3, 8, 8) if name in DATA else None
    graph = chosen(model, IMAGE, importance=name, data=data)
    assert graph.kept is not None
    inputs = named(graph, "grouped.weight:0/1" if transposed else "grouped.weight:1")
    assert graph.scores[inputs].shape == (GROUPS, INNER)
    assert graph.kept.choice[inputs].tolist() == model.strong.tolist()


def test_scores_are_those_of_the_weights_of_each_block() -> None:
    model = ResNeXt()
    graph = api.analyse(api.capture(model.eval(), (IMAGE,)))
    Score(normalise="none", reduce="sum").run(graph)
    own = model.conv2.weight.detach().double().square().reshape(GROUPS, INNER, INNER, 9).sum((1, 3))
    made = (
        model.conv1.weight.detach().double().square().sum((1, 2, 3))
        + model.norm1.weight.detach().double().square()
    )
    np.testing.assert_allclose(
        graph.scores[named(graph, "conv2.weight:1")] ** 2,
        own + made.reshape(GROUPS, INNER),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["conv2.weight:1", "conv2.weight:0/1"])
def test_places_tell_the_blocks_apart(name: str) -> None:
    graph = api.analyse(api.capture(ResNeXt().eval(), (IMAGE,)))
    leaf = named(graph, name)
    member = next(
        m for g in groups_of(graph) if g.axis is leaf for m in g.members if str(m) == name
    )
    place = place_of(member, blocks_of(graph)[leaf])
    # [g, o, i] as the weight has them
    whole = np.arange(GROUPS * INNER * INNER).reshape(GROUPS, INNER, INNER)
    expected = (
        whole.transpose(0, 2, 1)
        if name.endswith(":1")
        else np.arange(GROUPS * INNER).reshape(GROUPS, INNER, 1)
    )
    assert place.dims == ((0, 1) if name.endswith(":1") else (0,)) and np.array_equal(
        place.at, expected
    )


# -- slicing ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_weight_is_cut_block_by_block(data: st.DataObject) -> None:
    """Against loops: blocks, what is within them and what is within that, in any order of
    dimensions."""
    axes = Axes()
    g, o, i, j, k = (axes.leaf(n) for n in (3, 2, 4, 5, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))

    def some(rows: int, size: int, count: int) -> np.ndarray[Any, Any]:
        return np.sort(np.stack([rng.permutation(size)[:count] for _ in range(rows)]))

    kept = Selection(
        {g: some(1, 3, 2)[0], o: some(3, 2, 1), i: some(3, 4, 2), j: some(4, 5, 3)},
        {o: g, i: g, j: i},
    )
    order = data.draw(st.permutations(range(4)))
    dims = [(axes.product((g, o)), 6), (i, 4), (j, 5), (k, 2)]
    weight = Weight("w", TensorType("f32", tuple(dims[d][1] for d in order)), lambda: None)
    weight.axes = tuple(dims[d][0] for d in order)
    whole = rng.integers(0, 100, (6, 4, 5, 2))
    expected = np.asarray(
        [
            [[whole[2 * a + b, c, d] for d in kept.choice[j][c]] for c in kept.choice[i][a]]
            for a in kept.choice[g]
            for b in kept.choice[o][a]
        ]
    ).transpose(order)
    array = np.ascontiguousarray(whole.transpose(order))
    indices = kept_indices(weight, kept)
    assert np.array_equal(take(array, indices), expected)
    dtype = data.draw(
        st.sampled_from(
            [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.complex128, torch.bool]
        )
    )
    made = take(torch.from_numpy(array).to(dtype), indices)
    assert made.dtype == dtype and torch.equal(made, torch.from_numpy(expected.copy()).to(dtype))
    assert np.array_equal(take(np.asfortranarray(array), indices), expected)


def test_kept_has_a_row_for_each_kept_output() -> None:
    model = ResNeXt()
    pruned = irprune.prune(model, (IMAGE,), calibration=False)
    outputs, inputs, *rest = pruned.kept["conv2.weight"]
    assert outputs is not None and inputs is not None and rest == [None, None]
    assert len(outputs) == len(inputs) == 12 and all(len(row) == 3 for row in inputs)
    expected = torch.stack(
        [model.conv2.weight[o][row] for o, row in zip(outputs, inputs, strict=True)]
    )
    assert torch.equal(pruned.module.get_parameter("conv2.weight"), expected)
    assert len({tuple(row) for row in inputs}) > 1
    alike = irprune.prune(model, (IMAGE,), per_block=False).kept["conv2.weight"][1]
    assert alike is not None and len(alike) == 3 and isinstance(alike[0], int)
    single = irprune.prune(transposed(), (IMAGE,), ratios={"grouped.weight:1": 0.75}).kept[
        "grouped.weight"
    ][1]
    assert single is not None and len(single) == 12 and all(len(row) == 1 for row in single)


# -- ways in and out -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ResNeXt, transposed, Shuffle])
def test_the_same_cut_in_the_instance_as_onnx_and_by_its_plan(make: Any, tmp_path: Path) -> None:
    model = make().eval()
    pruned = irprune.prune(model, (IMAGE,), calibration=False)
    assert pruned.graph.kept is not None and pruned.graph.kept.within
    assert pruned.report.proof is not None and pruned.report.proof.passed
    pruned.onnx(tmp_path / "small.onnx")
    assert pruned.report.parity is not None and pruned.report.parity.passed
    again = irprune.apply_plan(model, Plan.load(pruned.plan.save(tmp_path / "plan.json")), (IMAGE,))
    assert again.kept == pruned.kept
    with torch.no_grad():
        expected = pruned.module(IMAGE)
        assert torch.equal(again.module(IMAGE), expected)
        torch.testing.assert_close(pruned.apply_to(model)(IMAGE), expected)


@pytest.mark.parametrize("make", [ResNeXt, transposed, one_dimensional])
@pytest.mark.parametrize("dynamo", [True, False])
def test_a_file_is_cut_as_the_module_is(make: Any, dynamo: bool, tmp_path: Path) -> None:
    """From its ONNX export, chosen there and by the plan of the module."""
    model, example = make().eval(), IMAGE[..., 0] if make is one_dimensional else IMAGE
    path = str(tmp_path / "whole.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        if dynamo:
            torch.onnx.export(model, (example,), path, dynamo=True, verbose=False)
        else:
            torch.onnx.export(
                model,
                (example,),
                path,
                dynamo=False,
                opset_version=17,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
    pruned = irprune.prune(path, calibration=False)
    assert pruned.graph.kept is not None and pruned.graph.kept.within
    assert pruned.report.proof is not None and pruned.report.proof.passed
    plan = irprune.prune(model, (example,), calibration=False).plan
    replayed = irprune.apply_plan(path, plan)
    assert replayed.report.proof is not None and replayed.report.proof.passed
    ours, theirs = irprune.apply_plan(model, plan, (example,)).kept, replayed.kept
    shared = [n for n in ours if n in theirs]
    assert any(isinstance(row, list) for n in shared for dim in ours[n] if dim for row in dim)
    assert [theirs[n] for n in shared] == [ours[n] for n in shared]


def test_a_plan_that_is_chosen_in_each_group_is_refused_where_groups_change_places() -> None:
    plan = irprune.prune(Between(lambda y: y * 1), (IMAGE,)).plan
    with pytest.raises(IrpruneError, match=r"the plan does not fit this model.*coupled"):
        irprune.apply_plan(Between(lambda y: y.flip(1)), plan, (IMAGE,))


@pytest.mark.parametrize("method", ["fold", "least_squares"])
def test_repairs_know_who_is_left_in_each_group(method: str) -> None:
    """Every dropped input is the double of one that its own group keeps, so that nothing is
    lost."""
    model = Plain(
        nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, groups=GROUPS), nn.Conv2d(24, 4, 1)
    ).eval()
    rows = np.sort(
        np.stack([np.random.default_rng(g).permutation(INNER)[: INNER // 2] for g in range(GROUPS)])
    )
    with torch.no_grad():
        for p in model.enter.parameters():
            for g, row in enumerate(rows.tolist()):
                for kept, gone in zip(row, sorted(set(range(INNER)) - set(row)), strict=True):
                    p[INNER * g + gone] = p[INNER * g + kept] * 2
    graph = api.analyse(api.capture(model, (IMAGE,)))
    inputs = named(graph, "grouped.weight:1")
    graph.kept = Selection({inputs: rows}, blocks_of(graph))
    cut = api.cut_graph(graph)
    fresh = Calibration(torch.randn(16, 3, 8, 8), graph)
    assert output_error(graph, cut, fresh) > 0.1
    assert repair(graph, cut, torch.randn(64, 3, 8, 8), method).methods == (method,)
    assert output_error(graph, cut, fresh) < 1e-2


@pytest.mark.parametrize("method", ["bias", "affine"])
def test_every_repair_lowers_the_error(method: str) -> None:
    pruned = irprune.prune(
        ResNeXt(), (IMAGE,), calibration=torch.randn(64, 3, 8, 8), repair=method, importance="wanda"
    )
    assert pruned.graph.kept is not None and pruned.graph.kept.within
    found = pruned.report.repair
    assert found is not None and found.methods == (method,) and found.after < found.before


def quantised(kind: str) -> Any:
    """A grouped convolution between two others in a file, its weight stored as 8 bits with a scale
    for each channel."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    wide, swap = GROUPS * INNER, kind == "ConvTranspose"
    shape = (wide, INNER, 3, 3)
    held = {
        "enter": rng.normal(size=(wide, 3, 1, 1)),
        "leave": rng.normal(size=(4, wide, 1, 1)),
        "scale": rng.uniform(0.01, 0.02, INNER if swap else wide),
        "bias": rng.normal(size=wide),
        "step": np.asarray(0.05),
    }
    arrays = {name: a.astype(np.float32) for name, a in held.items()}
    arrays |= {"w": rng.integers(-90, 90, shape).astype(np.int8), "point": np.zeros((), np.uint8)}
    axis = 1 if swap else 0
    if kind == "QLinearConv":
        arrays |= {
            "zero": np.zeros(wide, np.int8),
            "bias": rng.integers(-99, 99, wide).astype(np.int32),
        }
        arrays["coarse"] = np.asarray(1, np.float32)
        operands = ["q", "step", "point", "w", "scale", "zero", "coarse", "point", "bias"]
        middle = [
            helper.make_node("QuantizeLinear", ["r", "step", "point"], ["q"]),
            helper.make_node("QLinearConv", operands, ["c"], group=GROUPS),
            helper.make_node("DequantizeLinear", ["c", "coarse", "point"], ["y"]),
        ]
    else:
        middle = [
            helper.make_node("DequantizeLinear", ["w", "scale"], ["d"], axis=axis),
            helper.make_node(kind, ["r", "d", "bias"], ["y"], group=GROUPS),
        ]
    nodes = [
        helper.make_node("Conv", ["x", "enter"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        *middle,
        helper.make_node("Relu", ["y"], ["s"]),
        helper.make_node("Conv", ["s", "leave"], ["out"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [2, 3, 8, 8]), ("out", None))
    ]
    used = {i for n in nodes for i in n.input}
    graph = helper.make_graph(
        nodes,
        "g",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(a, n) for n, a in arrays.items() if n in used],
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    )


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "QLinearConv"])
def test_quantised_weights_are_cut_block_by_block(kind: str) -> None:
    """Where the scale of an output is the same for all groups, so is what is kept of them."""
    pruned = irprune.prune(quantised(kind))
    assert pruned.report.proof is not None and pruned.report.proof.passed
    rows, columns = pruned.kept["w"][:2]
    assert rows is not None and columns is not None
    if kind == "ConvTranspose":
        assert len(rows) == 12 and columns == pruned.kept["scale"][0]
        starts = [[r % INNER for r in rows[n : n + 3]] for n in range(0, 12, 3)]
    else:
        assert rows == pruned.kept["scale"][0]
        starts = columns
    assert len({tuple(s) for s in starts}) > 1
