"""Tensors made from sizes, as ONNX spells them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from irprune.ir.axis import Axes
from irprune.ir.dtype import computed_type
from irprune.ir.graph import Node, TensorType
from irprune.ir.size import Size, Sym
from irprune.ops.aten.create import fresh
from irprune.ops.onnx.fold import SIZES
from irprune.ops.onnx.importer import (
    Edit,
    OnnxNode,
    Step,
    UnsupportedUse,
    runs,
    sampled,
    spell,
    use,
)
from irprune.ops.onnx.types import agree, like
from irprune.ops.registry import Arg
from irprune.ops.registry import op as declare

op = partial(declare, family="create")

__all__: list[str] = []


def _sizes(axes: Axes, node: Node) -> None:
    """Sizes as a tensor: what they were, whatever pruning does to the shape that they were read
    from."""
    node.out.axes = tuple(axes.frozen(s, "sizes as a tensor") for s in node.out.shape)


op(SIZES, _sizes, run=runs("sizes"), free=True)


def _filled(node: OnnxNode) -> Step:
    shape = node.sizes(0)
    dtype, value = "f32", 0.0
    if "value" in node.attrs:
        from onnx import numpy_helper

        array = numpy_helper.to_array(node.attrs["value"])
        dtype, value = computed_type(node.attrs["value"].data_type), array.reshape(-1)[0].item()
        if not dtype:
            raise UnsupportedUse("a ConstantOfShape of an unusual type")
    assert shape is not None
    return Step(
        "full",
        (),
        {"size": shape, "fill_value": value, "dtype": dtype},
        [TensorType(dtype, tuple(shape))],
    )


def _write_filled(edit: Edit, node: Node) -> None:
    now = edit.value(0)
    if now is None or not agree(now, node.attrs["size"]):
        edit.input(0, node.attrs["size"])


spell("full", "ConstantOfShape", read=_filled, write=_write_filled)


def _range(node: OnnxNode) -> Step:
    start, end, step = (node.sizes(i) for i in range(3))
    assert start is not None and end is not None and step is not None
    a, b, s = start[0], end[0], step[0]
    count: Size
    if any(isinstance(v, Sym) for v in (a, b, s)):
        if s != 1:
            raise UnsupportedUse("a Range of a dynamic length with a step")
        count = b - a
    else:
        count = max(0, int(np.ceil((b - a) / s)))  # type: ignore[operator]
    dtype = node.type(0).dtype
    return Step(
        "arange_from",
        (),
        {"start": a, "end": b, "step": s, "dtype": dtype},
        [TensorType(dtype, (count,))],
    )


op("arange_from", fresh, run=runs("arange_from"), creates=True, free=True)
spell("arange_from", "Range", read=_range)


def _eye_like(node: OnnxNode) -> Step:
    dtype = computed_type(node.attrs["dtype"]) if "dtype" in node.attrs else node.type(0).dtype
    if not dtype:
        raise UnsupportedUse("an EyeLike of an unusual type")
    return Step(
        "eye_like",
        (0,),
        {"diagonal": node.attrs.get("k", 0), "dtype": dtype},
        [like(node, dtype=dtype)],
    )


def _frozen_sides(axes: Axes, node: Node) -> None:
    for a in axes.of(node.operand(0)):
        axes.freeze(a, "sides of a diagonal")
    node.out.axes = axes.of(node.operand(0))


op("eye_like", _frozen_sides, run=runs("eye_like"), free=True)
spell("eye_like", "EyeLike", read=_eye_like)


def _random(node: OnnxNode) -> Any:
    raise UnsupportedUse("random numbers")


for _name in (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
):
    spell("full", _name, read=_random)

# -- samples ---------------------------------------------------------------------------------------

sampled("EyeLike", use(Arg((4, 5)), free=0, k=1))
