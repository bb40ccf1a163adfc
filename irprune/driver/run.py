"""The driver: passes in order, instruments around each."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from irprune.driver.instruments import Instrument
from irprune.driver.passes import Pass, name_of
from irprune.errors import CheckFailed, IrpruneError, gist, users_line
from irprune.ir.graph import Graph
from irprune.passes.result import PassResult

__all__ = ["run"]


def run(graph: Graph, passes: Iterable[Pass], instruments: Sequence[Instrument] = ()) -> PassResult:
    """Run ``passes`` in order, with ``instruments`` around each.

    Returns:
        Whether any pass changed the graph; the notes of all, each behind the name of its pass; and
        in ``data`` what each found out, by its name.

    Raises:
        IrpruneError: What a pass raises (CheckFailed stays what it is), with the name of the pass
            and of those that ran before it.
    """
    names: list[str] = []
    notes: list[str] = []
    data: dict[str, Mapping[str, Any]] = {}
    any_changed = False
    for instrument in instruments:
        instrument.start(graph)
    for index, one in enumerate(passes, 1):
        name = name_of(one)
        for instrument in instruments:
            instrument.before(graph, name, index)
        ran = f"{name}, after {', '.join(names)}" if names else f"{name}, the first pass"
        try:
            made = one.run(graph)
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
        result = _result(made, ran)
        names.append(name)
        notes += [f"{name}: {note}" for note in result.notes]
        if result.data:
            data[name] = result.data
        any_changed |= result.changed
        for instrument in reversed(instruments):
            instrument.after(graph, name, index, result)
    return PassResult(any_changed, tuple(notes), data)


def _result(made: object, ran: str) -> PassResult:
    """What ``run`` of a pass returned; ``ran`` says which."""
    if isinstance(made, PassResult):
        return made
    if isinstance(made, bool):  # what a pass returned up to 0.1
        warnings.warn(
            f"run returned {made}, in {ran}: return PassResult({made}) of irprune.passes",
            DeprecationWarning,
            stacklevel=3,
        )
        return PassResult(made)
    raise IrpruneError(
        f"run returned {made!r}, not what it did to the graph",
        f"in {ran}",
        "return PassResult(True) or PassResult(False) of irprune.passes",
    )
