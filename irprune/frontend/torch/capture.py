"""Capture of an ``nn.Module``: a recorded call where that serves, ``torch.export`` where it does
not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from irprune.base.near import meant
from irprune.base.quiet import quiet
from irprune.errors import IrpruneError, users_line
from irprune.frontend.torch.declined import Declined
from irprune.frontend.torch.dynamic import WrongSizes
from irprune.frontend.torch.pretrained import any_batch, without_cache

if TYPE_CHECKING:
    import torch

    from irprune.ir.graph import Graph

__all__ = ["capture"]

METHODS = ("auto", "trace", "run", "export")


def capture(
    model: torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    method: str = "auto",
    dynamic: str = "all",
) -> Graph:
    """The graph of ``model`` called with ``args`` and ``kwargs``, in eval mode; the model is as
    before afterwards.

    ``dynamic`` says which sizes of the inputs stay open (``irprune.frontend.torch.dynamic``): all
    of them, unless forward fixes them. ``dynamic_shapes`` says it as in ``torch.export.export``
    instead. ``method`` is ``trace`` (one recorded call on fake tensors: quick), ``run`` (the same,
    but code that asks whether it is being captured hears no), ``export`` (``torch.export``) or
    ``auto``: a trace, a run where
    ``forward`` fails under it, and ``torch.export`` for dynamic shapes and where neither serves;
    the graph's notes say why. Raises IrpruneError for a model that cannot be captured."""
    if method not in METHODS:
        hint = meant(method, METHODS, f"use one of {', '.join(METHODS)}")
        raise IrpruneError(f"no capture method {method!r}", "", hint)
    if method in ("trace", "run") and dynamic_shapes is not None:
        raise IrpruneError(
            "a trace has static shapes", "", "leave dynamic_shapes out, or use method='export'"
        )
    kwargs = without_cache(model, args, kwargs)
    declined: list[Exception] = []
    if method != "export" and dynamic_shapes is None:
        from irprune.frontend.torch.trace import trace

        for plain in {"trace": (False,), "run": (True,), "auto": (False, True)}[method]:
            try:
                with quiet(), any_batch(model):
                    graph = trace(model, args, kwargs, plain, dynamic)
            except WrongSizes:
                raise
            # torch.export decides whether the model or the trace is at fault, and says so
            except Exception as why:
                if method != "auto":
                    raise IrpruneError(
                        f"the model cannot be traced: {_first_line(why)}", "", "use method='auto'"
                    ) from why
                declined.append(why)
                if isinstance(why, Declined):
                    break
            else:
                graph.notes += [
                    f"captured as it runs, because forward fails under capture for export: {_first_line(e)}"
                    for e in declined
                ]
                return graph
        if any("HigherOrderOperator" in str(why) for why in declined):
            _forget_compiled()
    from irprune.frontend.torch.export import export, from_exported
    from irprune.frontend.torch.own_backward import HOOK, functions_named, hooks_of_model
    from irprune.frontend.torch.train_mode import lost_in_training, modes_watched
    from irprune.run.stored_tensor import is_stored, read_whole

    whole = is_stored(model)
    if whole:
        read_whole(model)
    functions: dict[str, None] = {}
    try:
        with functions_named(functions), modes_watched() as asked, any_batch(model):
            program = export(model, tuple(args), kwargs, dynamic_shapes)
        graph = from_exported(program, model)
    except IrpruneError as refused:
        found = _by_example(model, args, kwargs, dynamic) if declined else None
        if found is not None:
            return found
        causes = [*declined, *(e for e in (refused.__cause__, refused.__context__) if e)]
        if any(map(_packs, causes)):
            raise IrpruneError(
                "the model cannot be captured: packed sequences have sizes that depend on the "
                "values of lengths",
                users_line(causes[-1]),
                "give an example without packing; the plan then fits the model with it",
            ) from refused
        # Forward itself is sound, and what it reads is in the way
        if len(declined) == 2 and isinstance(declined[1], Declined):
            own = declined[1]
            raise IrpruneError(
                f"the model cannot be captured: {_first_line(own)}", users_line(own), refused.hint
            ) from refused
        raise
    graph.notes += [
        f"the backward of {name} is not kept, gradients are those of its forward: torch.export does not keep it"
        for name in functions
        if name != HOOK
    ]
    if HOOK in functions:
        graph.notes.append(
            "a hook that forward puts on a tensor is not kept: torch.export does not keep it"
        )
    graph.notes += hooks_of_model(model)
    graph.notes += lost_in_training(model, asked, graph)
    if whole:
        graph.notes.append("the weights were read into memory: torch.export takes no others")
    if declined:
        graph.notes.append(
            f"captured by torch.export, because the quick trace declined: {_first_line(declined[0])}"
        )
    return graph


def _by_example(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic: str
) -> Graph | None:
    """The graph of the way that the example goes, where forward goes by sizes that depend on values
    and nothing else serves; None where there is none."""
    from irprune.frontend.torch.trace import trace

    for plain in (False, True):
        try:
            with quiet():
                found = _over_all_hits(model, args, kwargs, plain, dynamic)
                return found or trace(model, args, kwargs, plain, dynamic, by_example=True)
        except Exception:  # what was refused before is said
            continue
    return None


def _over_all_hits(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    plain: bool,
    dynamic: str,
) -> Graph | None:
    """The graph in which loops over what a mask hits go over all of it, where forward has such
    loops and that computes the same; else None."""
    from irprune.frontend.torch.hit_loops import HitLoops
    from irprune.frontend.torch.trace import trace

    loops = HitLoops()
    try:
        graph = trace(model, args, kwargs, plain, dynamic, by_example=True, loops=loops)
        if not loops.loops:
            return None
        waived = loops.settled(graph, model)
        if waived is None:
            return None
        loops.waived |= waived
        if waived:
            graph = trace(model, args, kwargs, plain, dynamic, by_example=True, loops=loops)
    except Exception:  # the loops go as the example does, then
        return None
    lines = list(loops.loops)
    more = f" and {len(lines) - 3} more lines" if len(lines) > 3 else ""
    graph.notes.append(
        f"the loops over what a mask hits at {', '.join(lines[:3])}{more} go over all of it, which "
        "adds nothing for what is not hit"
    )
    return graph


def _forget_compiled() -> None:
    """What torch compiled of ``torch.cond`` and its like under the trace would fail outside of
    it."""
    import torch

    torch._dynamo.reset()


def _packs(error: BaseException) -> bool:
    """Whether the error came up where torch packs sequences of several lengths."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith("torch/nn/utils/rnn.py"):
            return True
        trace = trace.tb_next
    return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
