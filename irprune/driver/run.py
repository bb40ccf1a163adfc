"""The driver: passes in order, instruments around each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from irprune.driver.instruments import Instrument
from irprune.driver.passes import Pass, name_of
from irprune.errors import CheckFailed, IrpruneError, gist, users_line
from irprune.ir.graph import Graph

__all__ = ["run"]


def run(graph: Graph, passes: Iterable[Pass], instruments: Sequence[Instrument] = ()) -> bool:
    """Run ``passes`` in order, with ``instruments`` around each; whether any changed the graph.

    What a pass raises is raised on as IrpruneError (CheckFailed stays what it is) that names the
    pass and those that ran before it."""
    names: list[str] = []
    any_changed = False
    for instrument in instruments:
        instrument.start(graph)
    for index, one in enumerate(passes, 1):
        name = name_of(one)
        for instrument in instruments:
            instrument.before(graph, name, index)
        ran = f"{name}, after {', '.join(names)}" if names else f"{name}, the first pass"
        try:
            changed = one.run(graph)
        except IrpruneError as error:
            kind = CheckFailed if isinstance(error, CheckFailed) else IrpruneError
            raise kind(
                error.what, f"{error.where}; in {ran}" if error.where else f"in {ran}", error.hint
            ) from error
        except Exception as error:
            at = users_line(error)
            raise IrpruneError(
                gist(error), f"{at}; in {ran}" if at else f"in {ran}", "this is a bug of the pass"
            ) from error
        if not isinstance(changed, bool):
            raise IrpruneError(
                f"run returned {changed!r}, not whether it changed the graph",
                f"in {ran}",
                "return True or False",
            )
        names.append(name)
        any_changed |= changed
        for instrument in reversed(instruments):
            instrument.after(graph, name, index, changed)
    return any_changed
