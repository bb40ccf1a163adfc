"""Operators that draw at random: a smaller tensor is drawn in the place of a larger one."""

from __future__ import annotations

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.families.create import fresh, set_size
from irprune.ops.families.elementwise import broadcast
from irprune.ops.registry import Arg, Sample, op

_UNIT = Arg((2, 6, 5), low=0.1, high=0.9)
_SIZE = {"size": [4, 6]}

for _name, _aten, _more in (
    ("rand", ("rand.default",), {}),
    ("randn", ("randn.default",), {}),
    ("randint", ("randint.default", "randint.low"), {"high": 5}),
    ("normal_sized", ("normal.float_float",), {"mean": 0.0, "std": 1.0}),
):
    _samples = [Sample((), {**_SIZE, **_more}, free=2)]
    if _name == "randint":
        _samples.append(Sample((), {**_SIZE, "low": 2, "high": 5}, free=2, target="aten.randint.low"))
    op(_name, fresh, resize=set_size, creates=True, random=True, aten=_aten, samples=tuple(_samples))

for _name, _aten, _more in (
    ("rand_like", ("rand_like.default",), {}),
    ("randn_like", ("randn_like.default",), {}),
    ("randint_like", ("randint_like.default",), {"high": 5}),
    ("bernoulli", ("bernoulli.default", "bernoulli.p"), {}),
    ("uniform", ("uniform.default",), {}),
    ("exponential", ("exponential.default",), {}),
    ("poisson", ("poisson.default",), {}),
    ("normal_functional", ("normal_functional.default",), {}),
):
    _samples = [Sample((_UNIT,), _more, free=3)]
    if _name == "bernoulli":
        _samples.append(Sample((_UNIT,), {"p": 0.5}, free=3, target="aten.bernoulli.p"))
    op(_name, broadcast, random=True, aten=_aten, samples=tuple(_samples))
op("bernoulli_tensor", broadcast, random=True, aten=("bernoulli.Tensor",), samples=(Sample((_UNIT, _UNIT), free=3),))
op("normal", broadcast, random=True, aten=("normal.Tensor_Tensor", "normal.Tensor_float", "normal.float_Tensor"), samples=(
    Sample((_UNIT, _UNIT), free=3), Sample((_UNIT,), {"std": 0.5}, free=3, target="aten.normal.Tensor_float"),
    Sample((_UNIT,), {"mean": 0.5}, free=3, target="aten.normal.float_Tensor"),
))


def _drawn(axes: Axes, node: Node) -> None:
    """What is drawn are positions, which a smaller size would renumber."""
    node.out.axes = tuple(axes.frozen(s, "positions drawn at random") for s in node.out.shape)


def _multinomial(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    axes.freeze(own[-1], "positions drawn at random")
    node.out.axes = (*own[:-1], axes.frozen(node.out.shape[-1], "number of draws"))


op("randperm", _drawn, random=True, aten=("randperm.default",), samples=(Sample((), {"n": 6}, free=0),))
op("multinomial", _multinomial, random=True, aten=("multinomial.default",),
   samples=(Sample((Arg((4, 6), low=0.1),), {"num_samples": 3}, free=1),))
