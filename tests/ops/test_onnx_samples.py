"""Every ONNX spelling, held sample by sample to what onnxruntime computes (see ``onnxcheck``)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from onnxcheck import OnnxCase, Refused, check_onnx, file_of, onnx_cases

from irprune.frontend.onnx.reader import capture_onnx
from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.choice import OPENED
from irprune.ops.onnx.contrib import FREEZES
from irprune.ops.onnx.importer import SPELLINGS, OnnxNode, Step, spelling_of
from irprune.ops.onnx.types import like
from irprune.ops.registry import TABLE, load_table

CASES = list(onnx_cases())

_LIST, _BODY = "lists of tensors: tests/ops/test_onnx_backend.py", "tests/ops/test_onnx_control.py"
_SIZES = "made from sizes alone, so that one node of it is a stored tensor: tests/frontend"
_RANDOM, _COUNTED = "never read: random numbers", "as large as the data say: test_onnx_backend.py"
UNSAMPLED = {  # operators that no file of one node can show, and why
    **dict.fromkeys(("If", "Loop", "Scan"), _BODY),
    **dict.fromkeys(("ConstantOfShape", "Range"), _SIZES),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"), _RANDOM),
    **dict.fromkeys(("RandomNormalLike", "RandomUniformLike"), _RANDOM),
    **dict.fromkeys(("NonZero", "Compress", "Unique", "NonMaxSuppression"), _COUNTED),
    **dict.fromkeys(("SequenceConstruct", "SequenceEmpty", "SequenceInsert"), _LIST),
    **dict.fromkeys(("SequenceErase", "SequenceAt", "SequenceLength"), _LIST),
    **dict.fromkeys(("ConcatFromSequence", "SplitToSequence", "Optional"), _LIST),
    **dict.fromkeys(("OptionalHasElement", "OptionalGetElement"), _LIST),
    **{f"com.microsoft::{name}": why for name, (why, _) in FREEZES.items()},
    OPENED: "written in no file: tests/emit/test_onnx_branches.py",
    "MelWeightMatrix": "made from sizes alone: tests/ops/test_onnx_backend.py",
}
WITHOUT_A_KERNEL = {"SwiGLU", "PRelu", "SpaceToDepth"}  # in onnxruntime, at some opset


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_slicing_commutes_with(case: OnnxCase) -> None:
    read = check_onnx(case)
    assert read.runs or case.spelling.target in WITHOUT_A_KERNEL


def test_every_operator_of_the_table_has_a_spelling() -> None:
    load_table()
    for entry in TABLE.values():
        for target in entry.onnx:
            assert spelling_of(target) is not None


@pytest.mark.parametrize("target", load_table() and sorted(SPELLINGS))
def test_every_entry_is_sampled_as_onnx_spells_it(target: str) -> None:
    """Some sample of each operator is read into each entry that the operator is read into."""
    spelling = SPELLINGS[target]
    if target in UNSAMPLED:
        assert not spelling.samples, f"{target} is sampled: take it off the list"
        return
    read = {
        n.op
        for case in CASES
        if case.spelling.target == target
        for n in capture_onnx(file_of(case)[0]).nodes
    }
    assert set(spelling.entries) <= read, (
        f"no sample of {target} is read into {sorted(set(spelling.entries) - read)}"
    )


# -- the check itself: what is wrong on purpose must be refused ------------------------------------


def _as_it_was(node: OnnxNode) -> Step:
    order = list(node.attrs.get("perm", range(node.rank())[::-1]))
    return Step("permute", (0,), {"dims": order}, [like(node)])


def _in_order(node: OnnxNode) -> Step:
    """A transposition that does nothing, of the right type."""
    shape = tuple(node.shape()[d] for d in node.attrs.get("perm", range(node.rank())[::-1]))
    return Step("reshape", (0,), {"shape": list(shape)}, [like(node, shape=shape)])


def _unrelated(axes: Axes, node: Node) -> None:
    for value in node.outputs:
        value.axes = tuple(axes.leaf(s) for s in value.shape)


def _frozen(axes: Axes, node: Node) -> None:
    for v in (*node.inputs, *node.outputs):
        for a in axes.of(v) if v is not None else ():
            axes.freeze(a, "too careful")


WRONG_SPELLINGS: dict[str, tuple[str, dict[str, object]]] = {
    "a type that the file does not give": ("Transpose", {"read": _as_it_was}),
    "another operator of the same type": (
        "Transpose",
        {"read": _in_order, "entries": ("reshape",)},
    ),
    "repeats that nobody writes": ("Tile", {"write": None}),
    "heads that nobody writes": ("com.microsoft::MultiHeadAttention", {"write": lambda *_: None}),
    "an entry that the spelling does not name": ("Gemm", {"entries": ("conv",)}),
}
WRONG_ENTRIES: dict[str, tuple[str, str, dict[str, object]]] = {
    "results with axes of their own": ("Relu", "relu", {"rule": _unrelated}),
    "a rule that freezes": ("Relu", "relu", {"rule": _frozen}),
    "a mean of what is dropped": ("ReduceMean", "mean", {"silence": None}),
    "a product of what is dropped": ("MatMul", "matmul", {"silence": None}),
    "groups that stay": ("Conv", "conv", {"resize": None}),
    "integers that are zeroed": ("ConvInteger", "conv_integer", {"silence": None}),
}


@pytest.mark.parametrize("fault", WRONG_SPELLINGS)
def test_wrong_spelling_is_refused(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, change = WRONG_SPELLINGS[fault]
    wrong = replace(SPELLINGS[target], **change)  # type: ignore[arg-type]
    monkeypatch.setitem(SPELLINGS, target, wrong)
    assert any(_refused(replace(c, spelling=wrong)) for c in CASES if c.spelling.target == target)


@pytest.mark.parametrize("fault", WRONG_ENTRIES)
def test_wrong_entry_is_refused(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, name, change = WRONG_ENTRIES[fault]
    monkeypatch.setitem(TABLE, name, replace(TABLE[name], **change))  # type: ignore[arg-type]
    assert any(_refused(c) for c in CASES if c.spelling.target == target)


def _refused(case: OnnxCase) -> bool:
    try:
        check_onnx(case)
    except Refused:
        return True
    return False
