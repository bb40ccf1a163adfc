"""The operator table, held entry by entry to what torch computes (see ``opcheck``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from opcheck import Case, Misfit, Refused, build, cases, check, macs

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.call import overload
from irprune.ops.onnx.importer import sampled, spell
from irprune.ops.registry import TABLE, Arg, Cut, Op, Sample, load_table, op, spelling
from irprune.ops.torch.dispatched import canonical_target

CASES = list(cases())
COMMON = (Path(__file__).parents[1] / "data" / "common_aten.txt").read_text().split()

NOT_OPERATORS = {
    "python.getitem": "picks a result",
    "python.ge": "compares sizes",
    "python.le": "compares sizes",
    "aten.sym_size.int": "a size, read off the types",
    "aten._assert_tensor_metadata.default": "has no result",
    "aten._assert_scalar.default": "has no result",
    "wrap_with_set_grad_enabled": "inlined by the capture",
}

UNSAMPLED = {  # spellings that no sample can run, and why
    "transformers.grouped_mm_fallback.default": "registered by transformers alone",
    "torchvision.deform_conv2d.default": "registered by torchvision alone",
    "aten._grouped_mm.default": "takes no float64",
    "aten._scaled_dot_product_flash_attention.default": "runs on a GPU alone",
    "aten._scaled_dot_product_efficient_attention.default": "runs on a GPU alone",
    "aten._scaled_dot_product_cudnn_attention.default": "runs on a GPU alone",
    "aten.item.default": "gives a number, no tensor: tests/ops/test_unbacked.py",
    "aten._local_scalar_dense.default": "gives a number, no tensor: tests/ops/test_unbacked.py",
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_slicing_commutes_with(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.target in ("", c.sample.target, next(iter(c.entry.aten), ""))],
    ids=str,
)
def test_slicing_commutes_at_dynamic_sizes_with(case: Case) -> None:
    try:
        check(case, dynamic=True)
    except Misfit as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("case", [c for c in CASES if c.entry.macs is not None], ids=str)
def test_multiply_accumulates_of(case: Case) -> None:
    """What torch counts; of a chain it counts the cheapest order, of an outer product that nothing
    is summed up is not seen."""
    ours, counted = macs(build(case))
    if counted and ours and case.entry.name != "chain_matmul":
        assert ours == counted


@pytest.mark.parametrize("name", load_table())
def test_entry_is_sampled_in_every_spelling(name: str) -> None:
    sampled = {c.target for c in CASES if c.entry.name == name}
    entry = TABLE[name]
    for target in entry.aten:
        if target.startswith("aten."):
            overload(target)  # raises where torch has no such operator
        assert target in sampled or target in UNSAMPLED, (
            f"no sample of {name!r} runs {target}: give one with target={target!r}"
        )
        assert not (target in sampled and target in UNSAMPLED), (
            f"{target} is sampled: take it off the list"
        )
    assert all(s.target in ("", *entry.aten) for s in entry.samples), (
        f"a sample of {name!r} names a spelling that it does not have"
    )
    assert sampled or all(t in UNSAMPLED for t in entry.aten) or entry.onnx


@pytest.mark.parametrize("target", COMMON)
def test_common_overload_has_a_rule(target: str) -> None:
    """The overloads met in at least three of some five hundred public architectures."""
    if target in NOT_OPERATORS:
        return
    if target.startswith("aten."):
        target = canonical_target(overload(target))
    assert spelling("aten", target) is not None, f"no rule for {target}"


# -- declarations that cannot be right are refused at once -----------------------------------------

_TBC = "t n i, k i o, o -> u n o"
_GATE = "mylib.gate.default"
DECLARED_WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("n c, c = n c", {}, "is no signature"),
    ("n (c, c -> n c", {}, r"'\(' in 'n \(c' says nothing"),
    ("n c -> n c", {"fixed": "nc"}, "fixed names nc, which"),
    ("n c -> n c", {"roles": {"g": "group"}}, "roles names g"),
    ("n c -> n c", {"sizes": {"x": "groups"}}, "sizes names x"),
    (_TBC, {"fixed": "t k"}, "does not say how often is multiplied: give macs="),
    ("*d -> *d", {"aten": _GATE}, rf"aten is '{_GATE}': give a tuple"),
    ("*d -> *d", {"aten": ("mylib::gate",)}, "is no overload, as in"),
    ("*d -> *d", {"onnx": "Gate"}, "onnx is 'Gate': give a tuple"),
    ("*d -> *d", {"samples": Sample((Arg((2, 3)),))}, "samples is Sample"),
    ("*d -> *d", {"aten": (_GATE, "relu.default")}, "'aten.relu.default' is declared twice"),
]


@pytest.mark.parametrize(("rule", "more", "told"), DECLARED_WRONG)
def test_a_declaration_that_cannot_be_right_is_refused(
    rule: str, more: dict[str, Any], told: str
) -> None:
    load_table()
    with pytest.raises(ValueError, match=told):
        op("mylib_gate", rule, **more)
    assert "mylib_gate" not in TABLE and spelling("aten", _GATE) is None


def test_spellings_of_what_there_is_not_are_refused() -> None:
    load_table()
    with pytest.raises(ValueError, match=r"MyPool: .*no entry 'vector_nrm'; did you mean vector"):
        spell("vector_nrm", "MyPool")
    with pytest.raises(ValueError, match=r"samples of 'GlobalLpPol', which is not spelled"):
        sampled("GlobalLpPol")


def test_an_overload_that_torch_lacks_is_named() -> None:
    with pytest.raises(AttributeError, match=r"torch has no operator aten\.conv_tbcc\.default"):
        overload("aten.conv_tbcc.default")


# -- the check itself: rules that are wrong on purpose must be refused -----------------------------


def _matmul_of_the_wrong_axis(axes: Axes, node: Node) -> None:
    a, b = axes.of(node.operand(0)), axes.of(node.operand(1))
    axes.unify(a[0], b[1])
    node.out.axes = (a[0], b[1])


def _reshape_with_swapped_factors(axes: Axes, node: Node) -> None:
    a = axes.of(node.operand(0))
    inner, outer = axes.split(a[0], node.out.shape[1])
    assert outer is not None and inner is not None
    node.out.axes = (outer, inner)


def _cat_as_a_product(axes: Axes, node: Node) -> None:
    a, b = axes.of(node.operand(0)), axes.of(node.operand(1))
    axes.unify(a[0], b[0])
    node.out.axes = (axes.product((axes.frozen(2, "tensors"), a[0])),)


def _cat_in_reverse(axes: Axes, node: Node) -> None:
    a, b = axes.of(node.operand(0)), axes.of(node.operand(1))
    node.out.axes = (axes.sum((b[0], a[0])),)


def _like_the_operand(axes: Axes, node: Node) -> None:
    node.out.axes = axes.of(node.operand(0))


def _fresh(axes: Axes, node: Node) -> None:
    for value in node.outputs:
        value.axes = tuple(axes.leaf(s) for s in value.shape)


def _transposed(axes: Axes, node: Node) -> None:
    node.out.axes = axes.of(node.operand(0))[::-1]


def _all_frozen(axes: Axes, node: Node) -> None:
    for a in axes.of(node.operand(0)):
        axes.freeze(a, "too careful")
    node.out.axes = axes.of(node.operand(0))


def _doubled(torch, node, operands, present, run):  # type: ignore[no-untyped-def]
    return run(*operands) if present(node.operand(0), [1]) is None else 2 * run(*operands)


def _keeps_the_old_size(node: Node, cut: Cut) -> None:
    pass


def _conv_of_wrong_groups(axes: Axes, node: Node) -> None:
    """Groups as the inner factor of the channels instead of the outer one."""
    x, w = axes.of(node.operand(0)), axes.of(node.operand(1))
    inner, groups = axes.split(x[1], w[1].size)
    _, out = axes.split(w[0], node.attrs["groups"])
    assert inner is not None and groups is not None and out is not None
    axes.unify(inner, w[1])
    for a in (*x[2:], *w[2:], groups):
        axes.freeze(a, "fixed")
    node.out.axes = (x[0], w[0], *(axes.frozen(s, "positions") for s in node.out.shape[2:]))


Rule = Callable[[Axes, Node], None]
_SQUARE = Sample((Arg((4, 4)), Arg((4, 4))), free=2)
WRONG: dict[str, tuple[str, dict[str, object], Sample]] = {
    "matmul of the wrong axis": (
        "matmul",
        {"rule": _matmul_of_the_wrong_axis},
        replace(_SQUARE, free=3),
    ),
    "matmul without silence": ("matmul", {"silence": None}, replace(_SQUARE, free=3)),
    "reshape with swapped factors": (
        "reshape",
        {"rule": _reshape_with_swapped_factors},
        Sample((Arg((16,)),), {"shape": [4, 4]}, free=2),
    ),
    "cat as a product": (
        "cat",
        {"rule": _cat_as_a_product},
        Sample((Arg((4,)), Arg((4,))), {"dim": 0}, free=2),
    ),
    "cat in reverse order": (
        "cat",
        {"rule": _cat_in_reverse},
        Sample((Arg((4,)), Arg((4,))), {"dim": 0}, free=2),
    ),
    "softmax without silence": (
        "softmax",
        {"silence": None},
        Sample((Arg((2, 6)),), {"dim": 1}, free=2),
    ),
    "softmax silenced otherwise": (
        "softmax",
        {"silence": _doubled},
        Sample((Arg((2, 6)),), {"dim": 1}, free=2),
    ),
    "a view that keeps the old size": (
        "reshape",
        {"resize": _keeps_the_old_size},
        Sample((Arg((2, 6)),), {"shape": [12]}, free=2),
    ),
    "a transposition that forgets to": (
        "t",
        {"rule": _like_the_operand},
        Sample((Arg((4, 4)),), free=2),
    ),
    "relu that transposes": ("relu", {"rule": _transposed}, Sample((Arg((4, 4)),), free=2)),
    "relu with results of their own": ("relu", {"rule": _fresh}, Sample((Arg((6,)),), free=2)),
    "relu that freezes": ("relu", {"rule": _all_frozen}, Sample((Arg((6,)),), free=1)),
    "sizes that do not agree": (
        "sum",
        {"rule": _like_the_operand},
        Sample((Arg((4, 4)),), {"dim": [0], "keepdim": True}, free=2),
    ),
    "groups inside": (
        "conv",
        {"rule": _conv_of_wrong_groups, "resize": None},
        Sample((Arg((1, 4, 3, 3)), Arg((4, 2, 1, 1))), {"groups": 2}, free=2),
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_rule_is_refused(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change, sample = WRONG[fault]
    right = load_table()[name]
    wrong: Op = replace(right, **change)  # type: ignore[arg-type]
    monkeypatch.setitem(TABLE, name, wrong)
    with pytest.raises(Refused):
        check(Case(wrong, sample.target or next(iter(wrong.aten)), sample, 0))


def test_free_dynamic_axis_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(axes: Axes, node: Node) -> None:
        for a in axes.of(node.operand(0)):
            a.reason = None
        node.out.axes = axes.of(node.operand(0))

    wrong = replace(load_table()["relu"], rule=forgets)
    monkeypatch.setitem(TABLE, "relu", wrong)
    case = Case(wrong, "aten.relu.default", Sample((Arg((4, 6)),), free=2), 0)
    check(case)  # right where all sizes are known
    with pytest.raises(Refused):
        check(case, dynamic=True)
