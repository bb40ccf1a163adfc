"""protect-small: narrow widths stay whole.

Before: ``axis c0 = 8`` and ``%conv.weight: f32[c0, 3, 3, 3]``. After: ``%conv.weight: f32[8, 3, 3,
3]``, which nothing may cut.
"""

from dataclasses import dataclass

from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.passes import PassResult


@dataclass(frozen=True)
class ProtectSmall:
    """Freeze every coupled group with fewer than ``least`` channels."""

    least: int = 16

    def run(self, graph: Graph) -> PassResult:
        if graph.axes is None:
            raise IrpruneError("nothing is analysed", "protect-small", "run infer-axes first")
        small = [
            group for group in groups_of(graph) if not group.frozen and group.size < self.least
        ]
        for group in small:
            graph.axes.freeze(group.axis, f"fewer than {self.least} channels")
        return PassResult(bool(small))
