"""drop-blocks: whole residual branches that go: the attention or the feed-forward part of a block.

Before: ``%y = add(%x, %f)`` with %f computed from %x. After ``drop-blocks{names=["layers.3.mlp"]}``
and slice: what read %y reads %x, and what only %f needed is gone. The proof compares with the
original whose branch is zero. In ``choose``, a knapsack of measured losses does the same where that
loses the least."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from irprune.analysis.branches import branches_of
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.passes.result import PassResult

__all__ = ["DropBlocks"]


@dataclass(frozen=True)
class DropBlocks:
    """Leave out the branches that ``names`` match, beside what is chosen already.

    ``names`` are patterns over the module paths of branches (``irprune.analysis.branches``). Raises
    IrpruneError for one that matches none."""

    names: tuple[str, ...] = ()

    def run(self, graph: Graph) -> PassResult:
        if graph.axes is None:
            raise IrpruneError("nothing is analysed", "drop-blocks", "run infer-axes first")
        found = branches_of(graph)
        for pattern in self.names:
            if not any(fnmatchcase(b.name, pattern) for b in found):
                known = ", ".join(b.name for b in found[:4]) or "none"
                raise IrpruneError(
                    f"{pattern!r} matches no residual branch", "drop-blocks", f"there are: {known}"
                )
        gone = [b for b in found if any(fnmatchcase(b.name, p) for p in self.names)]
        before = graph.kept if graph.kept is not None else Selection({})
        dropped = {**before.dropped, **{b.join.out.name: b.stream for b in gone}}
        graph.kept = Selection(before.choice, before.within, dropped)
        return PassResult(dropped != before.dropped, tuple(f"{b.name} is left out" for b in gone))
