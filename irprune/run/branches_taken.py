"""Whether calibration data take every branch of the Ifs that stand in a graph: of one that they
never take nothing can be learnt from them."""

from __future__ import annotations

from irprune.errors import IrpruneError, option
from irprune.ir.axis import leaves
from irprune.ir.graph import Graph, Weight
from irprune.ops.choice import guards
from irprune.run.calibration import Calibration
from irprune.run.interpret import evaluate

__all__ = ["check_branches_taken"]


def check_branches_taken(graph: Graph, data: Calibration) -> None:
    """Raises IrpruneError where a branch of the analysed ``graph`` in which something may be cut is
    never taken on ``data``."""
    wanted = {
        path: None
        for node, path in guards(graph.nodes, graph.outputs).items()
        if any(isinstance(v, Weight) and _may_shrink(v) for v in node.inputs)
    }
    missing = dict.fromkeys(side for path in wanted for side in path)
    choices = list(dict.fromkeys(choice for choice, _ in missing))
    for batch in data if missing else ():
        conditions = [choice.operand(0) for choice in choices]
        made = evaluate(graph, batch.inputs, wanted=conditions)
        for choice, found in zip(choices, made, strict=True):
            if found is not None:  # that of an If within a branch that was not taken
                missing.pop((choice, bool(found)), None)
        if not missing:
            return
    for choice, truth in missing:
        raise IrpruneError(
            f"the calibration data never take the {'then' if truth else 'else'} branch of the If "
            f"that gives '{choice.out.name}'",
            choice.where,
            f"give inputs that take each, what an input always is ({option('args')}) for a file of "
            f"one branch, or {option('calibration', 'False')} for a choice by the weights alone",
        )


def _may_shrink(weight: Weight) -> bool:
    return any(x.reason is None and x.size != 1 for a in weight.axes or () for x in leaves(a))
