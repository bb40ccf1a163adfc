"""Operators that draw at random: drawn at the full width, of which the kept part is taken.

So the cut model gets, from the same seed, the numbers that the original would see in the channels
that are left, and can be proven like any other. What each number is drawn with (a rate for each
element, say) may not be cut."""

from __future__ import annotations

from functools import partial

import numpy as np

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType, Value, Weight
from irprune.ops.aten.create import fresh
from irprune.ops.aten.elementwise import broadcast
from irprune.ops.registry import Arg, Cut, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="chance")

_UNIT = Arg((2, 6, 5), low=0.1, high=0.9)
_SIZE = {"size": [4, 6]}


def _draw_whole(node: Node, cut: Cut) -> None:
    """An operand that gives shape and type alone becomes one of the full size; of the result, what
    is kept is taken."""
    out, graph = node.out, node.graph
    indices = {d: np.asarray(cut.kept(a)) for d, a in enumerate(out.axes or ()) if cut.changes(a)}
    if graph is None or not indices:
        return
    if node.inputs:
        whole = graph.add(
            "new_empty",
            [node.operand(0)],
            {"size": [*out.shape]},
            [(f"{out.name}.whole", out.type)],
            before=node,
        )
        node.set_input(0, whole.out)
    axes, shape, made = out.axes, [*out.shape], node
    out.axes = None
    after = graph.nodes.index(node) + 1
    following = graph.nodes[after] if after < len(graph.nodes) else None
    readers = Value(f"{out.name}.kept", out.type)
    graph.replace(out, readers)
    for d, index in indices.items():
        shape[d] = len(index)
        held = graph.add_weight(
            Weight(f"{out.name}.kept_{d}", TensorType("i64", (len(index),)), index.copy, "constant")
        )
        name, kind = f"{out.name}.kept_in_{d}", TensorType(out.dtype, tuple(shape))
        made = graph.add(
            "index_select", [made.out, held], {"dim": d}, [(name, kind)], before=following
        )
    made.out.axes = axes
    graph.replace(readers, made.out)


for _name, _aten, _more in (
    ("rand", ("rand.default", "rand.generator"), {}),
    ("randn", ("randn.default", "randn.generator"), {}),
    (
        "randint",
        ("randint.default", "randint.low", "randint.generator", "randint.low_generator"),
        {"high": 5},
    ),
    ("normal_sized", ("normal.float_float",), {"mean": 0.0, "std": 1.0}),
):
    op(
        _name,
        fresh,
        resize=_draw_whole,
        creates=True,
        random=True,
        aten=_aten,
        samples=tuple(
            Sample(
                (),
                {
                    **_SIZE,
                    **_more,
                    **({"low": 2} if "low" in a else {}),
                    **({"generator": None} if "generator" in a else {}),
                },
                free=2,
                target=f"aten.{a}",
            )
            for a in _aten
        ),
    )

for _name, _more in (
    ("rand_like", {}),
    ("randn_like", {}),
    ("randint_like", {"high": 5}),
    ("uniform", {}),
    ("exponential", {}),
    ("normal_functional", {}),
):
    op(
        _name,
        broadcast,
        resize=_draw_whole,
        random=True,
        aten=(f"{_name}.default",),
        samples=(Sample((_UNIT,), _more, free=3),),
    )
op(
    "bernoulli_sized",
    broadcast,
    resize=_draw_whole,
    random=True,
    aten=("bernoulli.p",),
    samples=(Sample((_UNIT,), {"p": 0.5}, free=3),),
)


# -- drawn from what the operands say --------------------------------------------------------------


def _each(axes: Axes, node: Node) -> None:
    """How many numbers an element takes from the generator may depend on its operands."""
    for value in node.inputs:
        for a in axes.of(value) if value is not None else ():
            axes.freeze(a, "drawn at random")
    node.out.axes = tuple(axes.frozen(s, "drawn at random") for s in node.out.shape)


def _drawn(axes: Axes, node: Node) -> None:
    """What is drawn are positions, which a smaller size would renumber."""
    node.out.axes = tuple(axes.frozen(s, "positions drawn at random") for s in node.out.shape)


op(
    "bernoulli",
    _each,
    random=True,
    aten=("bernoulli.default", "bernoulli.Tensor"),
    samples=(
        Sample((_UNIT,), free=0, target="aten.bernoulli.default"),
        Sample((_UNIT, _UNIT), free=0, target="aten.bernoulli.Tensor"),
    ),
)
op("poisson", _each, random=True, aten=("poisson.default",), samples=(Sample((_UNIT,), free=0),))
op(
    "normal",
    _each,
    random=True,
    aten=("normal.Tensor_Tensor", "normal.Tensor_float", "normal.float_Tensor"),
    samples=(
        Sample((_UNIT, _UNIT), free=0),
        Sample((_UNIT,), {"std": 0.5}, free=0, target="aten.normal.Tensor_float"),
        Sample((_UNIT,), {"mean": 0.5}, free=0, target="aten.normal.float_Tensor"),
    ),
)
op(
    "multinomial",
    _each,
    random=True,
    aten=("multinomial.default",),
    samples=(Sample((Arg((4, 6), low=0.1),), {"num_samples": 3}, free=0),),
)
op(
    "randperm",
    _drawn,
    random=True,
    aten=("randperm.default",),
    samples=(Sample((), {"n": 6}, free=0),),
)
