"""Pooling: channels pass, positions are fixed. Indices of maxima count positions, so channels pass
there too."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.registry import Arg, Rule, Sample
from irprune.ops.registry import op as declare

__all__ = ["spatial"]

op = partial(declare, family="pool")


def spatial(count: int) -> Rule:
    """A rule that passes all but the last ``count`` dimensions of the operands, which are
    positions."""

    def rule(axes: Axes, node: Node) -> None:
        lead = axes.of(node.operand(0))[:-count]
        for value in node.inputs:
            own = axes.of(value) if value is not None else ()
            for a in own[len(own) - count :]:
                axes.freeze(a, f"positions of {node.op}")
            for a, b in zip(lead, own[: len(own) - count], strict=False):
                axes.unify(a, b)
        for value in node.outputs:
            value.axes = (
                *lead,
                *(axes.frozen(s, f"positions of {node.op}") for s in value.shape[-count:]),
            )

    return rule


def image(count: int, size: int = 6) -> Arg:
    """A batch of 2 with 3 channels and ``count`` dimensions of positions."""
    return Arg((2, 3, *(size,) * count))


for _d in (1, 2, 3):
    _x, _flat, _kernel = (
        image(_d),
        Arg((3, *(6,) * _d)),
        {"kernel_size": [2] * _d, "stride": [2] * _d},
    )
    _whole = {"output_size": [3] * _d}
    op(
        f"max_pool{_d}d",
        spatial(_d),
        aten=(f"max_pool{_d}d.default",),
        samples=(Sample((_x,), _kernel, free=2), Sample((_flat,), _kernel, free=1)),
    )
    op(
        f"max_pool{_d}d_with_indices",
        spatial(_d),
        aten=(f"max_pool{_d}d_with_indices.default",),
        samples=(Sample((_x,), _kernel, free=2),),
    )
    op(
        f"avg_pool{_d}d",
        spatial(_d),
        aten=(f"avg_pool{_d}d.default",),
        samples=(Sample((_x,), _kernel, free=2),),
    )
    op(
        f"adaptive_avg_pool{_d}d",
        spatial(_d),
        samples=(Sample((_x,), _whole, free=2),),
        aten=(
            f"adaptive_avg_pool{_d}d.default",
            *((f"_adaptive_avg_pool{_d}d.default",) if _d > 1 else ()),
        ),
    )
    op(
        f"adaptive_max_pool{_d}d",
        spatial(_d),
        aten=(f"adaptive_max_pool{_d}d.default",),
        samples=(Sample((_x,), _whole, free=2),),
    )

op(
    "max_unpool2d",
    spatial(2),
    aten=("max_unpool2d.default",),
    samples=(
        Sample(
            (image(2, 3), Arg((2, 3, 3, 3), "i64", values=tuple(range(9)) * 6)),
            {"output_size": [6, 6]},
            free=2,
        ),
    ),
)
op(
    "max_unpool3d",
    spatial(3),
    aten=("max_unpool3d.default",),
    samples=(
        Sample(
            (image(3, 2), Arg((2, 3, 2, 2, 2), "i64", values=tuple(range(8)) * 6)),
            {"output_size": [4, 4, 4], "stride": [2, 2, 2], "padding": [0, 0, 0]},
            free=2,
        ),
    ),
)


def _fractional(count: int) -> Rule:
    """The random operand holds one place per channel and direction."""

    def rule(axes: Axes, node: Node) -> None:
        own, chance = axes.of(node.operand(0)), axes.of(node.operand(1))
        for a, b in zip(own, chance[:-1], strict=False):
            axes.unify(a, b)
        axes.freeze(chance[-1], "directions")
        for a in own[-count:]:
            axes.freeze(a, f"positions of {node.op}")
        for value in node.outputs:
            value.axes = (
                *own[:-count],
                *(axes.frozen(s, f"positions of {node.op}") for s in value.shape[-count:]),
            )

    return rule


for _d in (2, 3):
    op(
        f"fractional_max_pool{_d}d",
        _fractional(_d),
        aten=(f"fractional_max_pool{_d}d.default",),
        samples=(
            Sample(
                (image(_d), Arg((2, 3, _d), low=0.1, high=0.9)),
                {"kernel_size": [2] * _d, "output_size": [3] * _d},
                free=2,
            ),
        ),
    )
