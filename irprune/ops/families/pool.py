"""Pooling and resampling: channels pass, positions are fixed."""

from __future__ import annotations

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.registry import Arg, Sample, op


def spatial(count: int):  # type: ignore[no-untyped-def]
    """A rule that passes all but the last ``count`` dimensions, which are computed from frozen ones."""

    def rule(axes: Axes, node: Node) -> None:
        own = axes.of(node.operand(0))
        for a in own[-count:]:
            axes.freeze(a, f"positions of {node.op}")
        for value in node.outputs:
            value.axes = (*own[:-count], *(axes.frozen(s, f"positions of {node.op}") for s in value.shape[-count:]))

    return rule


_I = Arg((2, 3, 8, 8))
op("max_pool2d", spatial(2), aten=("max_pool2d.default",), samples=(Sample((_I,), {"kernel_size": [2, 2], "stride": [2, 2]}, free=2),))
op("avg_pool2d", spatial(2), aten=("avg_pool2d.default",), samples=(Sample((_I,), {"kernel_size": [2, 2], "stride": [2, 2]}, free=2),))
op("adaptive_avg_pool2d", spatial(2), aten=("adaptive_avg_pool2d.default",), samples=(Sample((_I,), {"output_size": [1, 1]}, free=2),))
